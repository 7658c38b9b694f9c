"""What finished models make, judged: rows, the paper's figure beside them, table and figure, and kept logs."""

import shutil
from pathlib import Path

import pytest
from helpers.tiny_study import results, write, write_base, write_data

from plait.common.files import write_json
from plait.common.progress import QuietProgress
from plait.compare.kept_rows import kept_records
from plait.compare.records import Records
from plait.compare.results import gather
from plait.compare.run_scores import evaluate_runs
from plait.compare.study import load_study
from plait.compare.study_charts import charts
from plait.compare.workflow import compare, examine_study, keep_study
from plait.config.settings import MEASURED, identity
from plait.evaluate.suite import FILE

PAPER = {"claim": "FID", "value": 15.8, "arm": "mot", "score": "image_frechet", "unit": "FID"}
QUIET = QuietProgress()


class Evaluate:
    """Writes figures that follow from the seed, in place of `plait evaluate`."""

    def __init__(self, *, judges: bool = True):
        self.judges, self.runs = judges, []

    def __call__(self, config, progress) -> None:
        self.runs.append(Path(config.out).parts[-3::2])
        figures = {"caption_object_accuracy": 0.25, "caption_object_accuracy/seen": 0.25, "caption_object_low": 0.2,
                   "caption_object_chance": 0.01, "val_loss/seen/text": 3.0}  # fmt: skip
        judged = {"image_frechet": 200.0 + 10 * config.seed, "image_frechet_real": 50.0}
        key = {"measured": identity(config, (MEASURED,))}
        write_json(Path(config.out) / FILE, {"key": key, "figures": figures | (judged if self.judges else {})})

    def on(self, study, progress=QUIET) -> Path:
        """Examine a study's runs, and return the page."""
        return examine_study(study, progress, lambda run: evaluate_runs(run, self))


@pytest.fixture
def finished(tmp_path):
    """A folder with a study of which three of four runs are finished."""
    write_base(tmp_path, write_data(tmp_path / "data"))
    study = load_study(write(tmp_path, paper=[PAPER]))
    compare(study, QUIET, arms=["dense"], seeds=[0])
    compare(study, QUIET, arms=["mot"])
    return tmp_path


def test_scores_stand_by_run_beside_the_papers_and_are_kept(finished):
    study, evaluate = load_study(finished / "tiny.yaml"), Evaluate()
    page = evaluate.on(study)
    assert evaluate.runs == [("dense", "seed-0"), ("mot", "seed-0"), ("mot", "seed-1")]
    found = results(finished)
    assert found["scores"][2]["image_frechet"] == 210.0 and "val_loss/seen/text" not in found["scores"][2]
    (claim,) = found["claims"]
    assert [claim[key] for key in ("paper", "ours", "low", "high", "seeds")] == [15.8, 205.0, 200.0, 210.0, 2]
    assert claim["split"] == ""  # not of the training set, as a figure of step matching would be
    html = page.read_text()
    assert 'id="scores"' in html and "What the models make" in html and "205 (200 to 210)" in html
    table = html.split("What plait evaluate measures")[1].split("</table>")[0]
    assert "dense (1 seed)" in table and "mot (2 seeds)" in table
    assert "accuracy/seen" not in table and "object low" not in table  # said twice; of one run alone
    keep_study(study, QUIET, finished / "kept")
    assert kept_records(study, finished / "kept").scores == found["scores"]


def test_the_chart_has_a_panel_a_figure_with_what_chance_gets(finished):
    study = load_study(finished / "tiny.yaml")
    Evaluate().on(study)
    records = Records(scores=results(finished)["scores"])
    (chart,) = [c for c in charts(gather(study, records)) if c.name == "scores"]
    assert [p.title for p in chart.panels] == ["caption object accuracy", "image Fréchet"]
    shares, distances = ([(s.name, s.y[0]) for s in panel.series] for panel in chart.panels)
    assert shares == [("chance", 0.01), ("dense", 0.25), ("mot", 0.25)]
    assert distances == [("real images", 50.0), ("dense", 200.0), ("mot", 205.0)]


def test_without_judges_nothing_is_lost(finished):
    """A score that is not measured is a dash, and is named while evaluating."""
    study, progress = load_study(finished / "tiny.yaml"), Lines()
    Evaluate(judges=False).on(study, progress)
    (claim,) = results(finished)["claims"]
    assert (claim["ours"], claim["seeds"]) == (None, 0)
    said = "score of 'FID': unknown name 'image_frechet', allowed: caption_object"
    assert any(said in line for line in progress.lines)


def test_what_was_measured_otherwise_is_left_out(finished):
    Evaluate().on(load_study(finished / "tiny.yaml", overrides=["evaluate.images=7"]))
    assert results(finished)["scores"]
    compare(load_study(finished / "tiny.yaml"), QUIET)
    assert results(finished)["scores"] == []


def test_runs_without_a_checkpoint_are_named(finished):
    shutil.rmtree(finished / "out" / "runs" / "dense" / "0.01" / "seed-0" / "checkpoints")
    evaluate, progress = Evaluate(), Lines()
    evaluate.on(load_study(finished / "tiny.yaml"), progress)
    assert ("dense", "seed-0") not in evaluate.runs and len(evaluate.runs) == 2
    assert "dense, seed 0: it has no checkpoint any more, so it is left out" in progress.lines


class Lines(QuietProgress):
    """Keeps what is printed."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def print(self, text: str) -> None:
        self.lines.append(text)
