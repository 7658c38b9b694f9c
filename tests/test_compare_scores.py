"""What finished models make, judged: rows, the paper's figure beside them, table and figure, and kept logs."""

from pathlib import Path

import pytest
from tiny_study import results, write, write_base, write_data

from plait.compare.kept import kept_records
from plait.compare.study import load_study
from plait.compare.workflow import compare, evaluate_study, keep_study
from plait.errors import ConfigError
from plait.evaluate.suite import FILE
from plait.files import write_json
from plait.progress import QuietProgress

PAPER = {"claim": "FID", "value": 15.8, "arm": "mot", "score": "image_frechet", "unit": "FID"}
QUIET = QuietProgress()


def evaluate(config, progress) -> None:
    """Write figures that follow from the seed, in place of `plait evaluate`."""
    figures = {"image_frechet": 200.0 + 10 * config.seed, "caption_object_accuracy": 0.25, "val_loss/seen/text": 3.0}
    write_json(Path(config.out) / FILE, {"figures": figures})


@pytest.fixture
def finished(tmp_path):
    """A folder with a study of which three of four runs are finished."""
    write_base(tmp_path, write_data(tmp_path / "data"))
    study = load_study(write(tmp_path, paper=[PAPER]))
    compare(study, QUIET, arms=["dense"], seeds=[0])
    compare(study, QUIET, arms=["mot"])
    return tmp_path


def test_scores_stand_by_run_beside_the_papers_and_are_kept(finished):
    study, evaluated = load_study(finished / "tiny.yaml"), []
    page = evaluate_study(study, QUIET, lambda c, p: (evaluated.append(Path(c.out).parts[-3:]), evaluate(c, p)))
    assert [(arm, seed) for arm, _, seed in evaluated] == [("dense", "seed-0"), ("mot", "seed-0"), ("mot", "seed-1")]
    found = results(finished)
    assert found["scores"][2] == {"arm": "mot", "seed": 1, "image_frechet": 210.0, "caption_object_accuracy": 0.25}
    (claim,) = found["claims"]
    assert [claim[key] for key in ("paper", "ours", "low", "high", "seeds")] == [15.8, 205.0, 200.0, 210.0, 2]
    html = page.read_text()
    assert 'id="scores"' in html and "What the models make" in html and "205 (200 to 210)" in html
    keep_study(study, QUIET, finished / "docs")
    assert kept_records(study, finished / "docs" / "study_logs").scores == found["scores"]


def test_a_score_that_is_not_measured_is_named(finished):
    wrong = load_study(write(finished, paper=[PAPER | {"score": "image_frechett"}]))
    compare(wrong, QUIET)  # nothing is evaluated yet, so nothing is known of it
    with pytest.raises(ConfigError, match=r"'FID': unknown name 'image_frechett', .* did you mean 'image_frechet'"):
        evaluate_study(wrong, QUIET, evaluate)
