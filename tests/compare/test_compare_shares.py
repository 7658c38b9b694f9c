"""Models of a study that act: how often they succeed, all seeds together, in pairs, in table and figure, kept."""

from pathlib import Path

import pytest
from helpers.fake_study import fake_records
from helpers.tiny_study import results, write, write_base, write_data

from plait.common.errors import Held
from plait.common.files import write_json
from plait.common.progress import QuietProgress
from plait.compare.kept_rows import kept_records
from plait.compare.results import gather
from plait.compare.run_scores import evaluate_runs
from plait.compare.runner import StudyRun
from plait.compare.shares import difference_rows, differences, share_rows, tries
from plait.compare.study import load_study
from plait.compare.study_charts import charts
from plait.compare.tables import tables
from plait.compare.workflow import compare, examine_study, keep_study
from plait.config.settings import MEASURED, identity
from plait.evaluate.measures import wilson
from plait.evaluate.suite import FILE

QUIET = QuietProgress()
HITS = {("dense", 0): (1, 2), ("dense", 1): (2, 2), ("mot", 0): (3, 2), ("mot", 1): (4, 1)}
"""Successes of 4 starts of two tasks, by arm and seed."""


def figures(hits: tuple[int, int], starts: int = 4) -> dict:
    """Return figures as `plait.prepare.raw.Trials` gives them: of all tries, and of each task."""
    found = {"success": sum(hits) / starts / 2, "success_low": 0.0, "success_high": 1.0, "success_count": 2 * starts}
    for task, count in zip(("open", "close"), hits, strict=True):
        found |= {f"success/{task}": count / starts, f"success/{task}_low": 0.0, f"success/{task}_count": starts}
    return found | {"success_random": 0.05, "seconds_per_action": 0.01}


SCORES = [{"arm": arm, "seed": seed} | figures(hits) for (arm, seed), hits in HITS.items()]


def test_tries_of_all_seeds_are_counted_together():
    rows = share_rows(["success"], ["dense", "mot", "waiting"], SCORES)
    assert [(r["group"], r["arm"], r["hits"], r["tries"]) for r in rows] == [
        ("", "dense", 7, 16), ("", "mot", 10, 16), ("open", "dense", 3, 8), ("open", "mot", 7, 8),
        ("close", "dense", 4, 8), ("close", "mot", 3, 8),
    ]  # fmt: skip
    whole = rows[1]
    assert (whole["mean"], whole["low"], whole["high"], whole["seeds"]) == (0.625, 0.625, 0.625, 2)
    assert (whole["interval_low"], whole["interval_high"]) == wilson(10 / 16, 16)


def test_arms_are_compared_over_the_same_tries():
    (row,) = difference_rows(["success"], {"dense": "dense", "mot": "dense"}, SCORES)
    assert (row["arm"], row["against"], row["seeds"], row["pairs"]) == ("mot", "dense", 2, 4)
    assert (row["mean"], row["low"], row["high"]) == (3 / 16, 1 / 8, 2 / 8)
    assert (row["better"], row["worse"]) == (2, 1)
    assert -0.25 <= row["interval_low"] < 3 / 16 < row["interval_high"] <= 0.5
    assert differences("success", "mot", "dense", SCORES[:3]) == {0: 2 / 8}


def test_other_tries_are_no_pair():
    """Neither those of another number, nor what was not measured."""
    fewer = [SCORES[0], {"arm": "mot", "seed": 0} | figures((1, 1), starts=2)]
    assert difference_rows(["success"], {"mot": "dense"}, fewer) == []
    assert difference_rows(["success"], {"mot": "dense"}, [SCORES[0], {"arm": "mot", "seed": 0}]) == []
    assert tries({"success": 0.0, "success_count": 0}, "success") is None
    alone = [
        {"arm": arm, "seed": 0, "crash": share, "crash_count": 10} for arm, share in (("dense", 0.5), ("mot", 0.1))
    ]
    (row,) = difference_rows(["crash"], {"mot": "dense"}, alone)  # without groups, a seed is a pair
    assert (row["pairs"], row["worse"], row["interval_low"]) == (1, 1, None) and row["mean"] == pytest.approx(-0.4)


class Evaluate:
    """Writes what became of a model's actions, in place of `plait evaluate`."""

    def __init__(self, *, held: int = 0):
        self.held, self.runs = held, []

    def __call__(self, config, progress) -> None:
        if self.held:
            self.held -= 1
            raise Held("run: another process writes it")
        arm, seed = Path(config.out).parts[-3], config.seed
        self.runs.append((arm, seed))
        key = {"measured": identity(config, (MEASURED,))}
        write_json(Path(config.out) / FILE, {"key": key, "figures": figures(HITS[arm, seed])})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a study whose runs are finished."""
    folder = tmp_path_factory.mktemp("study")
    write_base(folder, write_data(folder / "data"))
    compare(load_study(write(folder, shares=["success"], paper=[], budget__steps=2)), QUIET)
    return folder


def test_success_stands_in_the_results_and_is_kept(finished):
    study, evaluate = load_study(finished / "tiny.yaml"), Evaluate(held=1)
    page = examine_study(study, QUIET, lambda run: evaluate_runs(run, evaluate))
    # another process was at the first one; whole comparisons come first
    assert evaluate.runs == [("mot", 0), ("dense", 1), ("mot", 1), ("dense", 0)]
    found = results(finished)
    assert found["shares"] == share_rows(["success"], ["dense", "mot"], found["scores"]) and len(found["shares"]) == 6
    by_title = {title: rows for title, _, _, rows in tables(found)}
    dense, mot = by_title["The models tried"]
    assert (
        dense[1:7] == ["dense", "0.438", "0.375 to 0.500", "2", "7 of 16", "0.231 to 0.668"] and dense[7:] == ["–"] * 5
    )
    assert mot[1] == "mot" and mot[7:10] == ["dense", "+0.188", "+0.125 to +0.250"] and mot[11] == "2, 1 of 4"
    assert by_title["The models tried by group"][0] == ["success", "open", "0.375 (3 of 8)", "0.875 (7 of 8)"]
    made = [row[0] for row in by_title["What the models make"]]
    assert made == ["success random", "seconds per action"]  # the others have tables of their own
    html = page.read_text()
    assert "7 of 16" in html and 'id="tried"' in html
    keep_study(study, QUIET, finished / "kept")
    assert gather(study, kept_records(study, finished / "kept")).results["shares"] == found["shares"]


def test_the_chart_has_a_bar_an_arm(finished):
    study = load_study(finished / "tiny.yaml")
    records = fake_records(study, steps=2)
    records.scores = SCORES
    (chart,) = [c for c in charts(gather(study, records)) if c.name == "tried"]
    (panel,) = chart.panels
    assert [(s.name, list(s.y)) for s in panel.series] == [("dense", [7 / 16]), ("mot", [10 / 16])]
    assert (panel.series[0].low, panel.series[0].high) == tuple([edge] for edge in wilson(7 / 16, 16))


def test_a_share_that_nobody_has_is_named(finished):
    lines = []
    progress = QuietProgress()
    progress.print = lines.append
    study = load_study(write(finished, shares=["sucess"], paper=[], budget__steps=2))
    run = StudyRun(study, progress, arms=["dense"], seeds=[0])
    evaluate_runs(run, Evaluate())
    assert any("shares: unknown name 'sucess'" in line and "did you mean 'success'" in line for line in lines)


def test_what_is_not_learned_is_not_matched(finished):
    base = {"model.modalities.text.loss_weight": 0}
    study = load_study(write(finished, settings=base, paper=[], budget__steps=2))
    assert list(gather(study, fake_records(study, steps=2)).units) == ["image"]
