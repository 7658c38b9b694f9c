"""Claims that are not the paper's: judged by the same rules, shown apart from the ten."""

import json

import numpy as np
import pytest
import yaml
from claims import Claims, read_claims
from conclude import conclude
from helpers.fake_study import shipped

from plait.common.errors import ConfigError
from plait.compare.curves import Curve
from plait.compare.kept_rows import keep
from plait.compare.records import Records
from plait.compare.results import gather
from plait.compare.study import Study

LOSS = {"study": "actions", "arm": "mot", "modality": "actions", "split": "validation"}
SUCCESS = {"study": "actions", "arm": "mot", "value": "share_difference", "share": "success"}
TASKS = ("open", "close")


def own(figure: dict, **edge) -> dict:
    return {"number": 11, "claim": "actions gain", "rows": [{"figure": "figure", "of": [figure]} | edge]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("conclude.draw_figures", lambda charts, where: [])
    monkeypatch.setattr("conclude.difference_of_identical_towers", lambda: 0.0)
    return tmp_path


def concluded(folder, *claims) -> tuple[dict, str, list[str]]:
    """Return the verdicts on claims of our own by their numbers, the page, and what is still open."""
    paper = {"number": 1, "claim": "c", "rows": [{"figure": "f", "of": [{"value": "identical_towers"}], "below": 1}]}
    values = {"rules": ["a rule"], "studies": ["actions"], "claims": [paper], "own": [*claims]}
    (folder / "claims.yaml").write_text(yaml.safe_dump(values))
    path, still_open = conclude(folder, shipped)
    judged = json.loads((folder / "results.json").read_text())["own"]
    return {c["number"]: c["verdict"] for c in judged["claims"]}, path.read_text(), still_open


def records_with(hits: dict[str, list[int]]) -> tuple[Study, Records]:
    """Return the study's records, with successes in ten starts of two tasks by arm and seed; mot learns faster."""
    study, records = shipped("actions"), Records()
    row = {"parameters": 9, "active_parameters": 9, "steps": study.config.budget.steps, "learning_rate": 5e-3,
           "learning_rate_from": "tuned", "learning_rate_at_edge": False, "flops_a_step": 1e9,
           "flops_a_step_counted": 1e9}  # fmt: skip
    steps = np.arange(25, 601, 25)
    for arm, config in study.config.arms.items():
        records.arms.append({"arm": arm, **row})
        for seed in config.seeds:
            records.runs.append({"arm": arm, "seed": seed, "status": "finished", "error": "", "steps": 600, "tokens": 9,
                                 "seconds": 9.0, "skipped_steps": 0, "step_seconds": 0.5})  # fmt: skip
            losses = ((2 if arm == "mot" else 1) * steps) ** -0.5
            records.curves[arm, seed] = {("unseen_starts", "actions"): Curve(steps.tolist(), losses.tolist())}
    for arm, by_seed in hits.items():
        for seed, count in enumerate(by_seed):
            groups = {f"success/{task}": count / 10 for task in TASKS} | {f"success/{task}_count": 10 for task in TASKS}
            records.scores.append({"arm": arm, "seed": seed, "success": count / 10, "success_count": 20, **groups})
    return study, records


def test_without_runs_they_are_not_run_yet(folder):
    verdicts, page, still_open = concluded(folder, own(LOSS, below=1), own(SUCCESS, above=0) | {"number": 12})
    assert verdicts == {11: "not run yet", 12: "not run yet"} and still_open == []
    table = page.split("## Claims of our own")[1].split("##")[0]
    assert "| 11 | **actions gain** |" in table and "paper |" not in table and "**not run yet**" in table
    assert "| actions | 0 | 0 | 9 |" in page


@pytest.mark.parametrize(
    ("mot", "verdict", "word"),
    [([6, 5, 7], "reproduced", "holds"), ([6, 5, 4], "inconclusive", "inconclusive"),
     ([4, 3, 1], "not reproduced", "does not hold")],
)  # fmt: skip
def test_success_is_compared_over_the_same_tries(folder, mot, verdict, word):
    study, records = records_with({"dense": [5, 4, 5], "mot": mot, "roles": [5, 4, 5]})
    keep(study, records, {"components": []}, folder / "study_logs")
    verdicts, page, still_open = concluded(folder, own(LOSS, below=1), own(SUCCESS, above=0) | {"number": 12})
    assert verdicts == {11: "reproduced", 12: verdict}
    assert f"**{word}** |" in page and "### The models tried by group" in page
    assert len(still_open) == (verdict != "reproduced")  # what was tried, or would decide, is to be said
    share = next(r for r in gather(study, records).results["share_differences"] if r["arm"] == "mot")
    assert share["mean"] == pytest.approx((sum(mot) - 14) / 30) and share["pairs"] == 6


def test_trained_runs_that_were_not_tried_leave_it_open(folder):
    study, records = records_with({"dense": [5, 4, 5], "mot": [6, 5]})
    keep(study, records, {"components": []}, folder / "study_logs")
    assert concluded(folder, own(LOSS, below=1), own(SUCCESS, above=0) | {"number": 12})[0] == {
        11: "reproduced", 12: "not run yet"}  # fmt: skip


@pytest.mark.parametrize(
    ("figure", "sentence"),
    [
        (SUCCESS | {"share": "sucess"}, "share of 'actions': unknown name 'sucess'.* did you mean 'success'"),
        ({k: v for k, v in SUCCESS.items() if k != "share"}, "share"),
    ],
)
def test_a_share_that_is_none_is_refused(folder, figure, sentence):
    with pytest.raises(ConfigError, match=sentence):
        concluded(folder, own(figure, above=0))


def test_a_difference_has_no_mean_with_others(folder):
    row = {"figure": "both", "of": [SUCCESS, SUCCESS], "above": 0}
    values = {"rules": [], "studies": ["actions"], "claims": [], "own": [{"number": 11, "claim": "c", "rows": [row]}]}
    (folder / "claims.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="a difference of shares among others"):
        read_claims(folder / "claims.yaml")
    assert Claims(rules=[], studies=[], claims=[]).own == []
