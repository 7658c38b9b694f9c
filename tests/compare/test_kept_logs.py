"""The logs of studies that are kept with the code: compact, of one kind of data, and enough for all results."""

import json

import pytest
from helpers.fake_study import fake_analyses, fake_records, shipped

from plait.common.errors import DataError
from plait.compare.kept_rows import keep, kept_analyses, kept_records
from plait.compare.logs import match_logs
from plait.compare.results import gather
from plait.compare.tables import tables


def test_runs_on_other_data_are_not_kept_beside_one_another(tmp_path):
    study = shipped("chameleon")
    records = fake_records(study, arms=["dense"], seeds=[0])
    records.data = "0123"
    place = keep(study, records, {"components": []}, tmp_path)
    assert kept_records(study, tmp_path).data == "0123"
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    other = fake_records(study, arms=["dense", "mot"], seeds=[0])
    other.data = "4567"
    with pytest.raises(DataError, match=r"read other data \(0123\) than these \(4567\)"):
        keep(study, other, {"components": []}, tmp_path)
    assert before == {path.name: path.read_bytes() for path in place.iterdir()}


def test_logs_of_another_length_are_not_those_of_the_study(tmp_path):
    study = shipped("transfusion")
    keep(study, fake_records(study), {"components": []}, tmp_path)
    study.config.budget.steps = 99
    with pytest.raises(DataError, match=r"keeps runs of [\d,]+ steps of 'dense', but the study has 99"):
        kept_records(study, tmp_path)


def test_trials_on_other_data_are_marked():
    study = shipped("chameleon")
    records = fake_records(study)
    records.data, records.tuning[0]["data"] = "0123", "0123"
    note, _, rows = next(t[1:] for t in tables(gather(study, records).results) if t[0] == "Learning rates tried")
    assert "*: run on other data" in note and [row[1].endswith(" *") for row in rows[:2]] == [False, True]


def test_kept_logs_hold_what_results_are_made_of(tmp_path):
    study = shipped("chameleon")
    records = fake_records(study)
    records.curves["mot", 1]["seen", "image"].losses[3:4] = []
    records.curves["mot", 1]["seen", "image"].steps[3:4] = []  # a loss that was not finite
    step = records.curves["mot", 1]["validation", "image"].steps.pop(3)
    records.curves["mot", 1]["validation", "image"].losses.pop(3)
    for curves in records.curves.values():
        for m in ("text", "image"):  # the mean over the sets, as it is in a log
            sets = [dict(zip(curves[s, m].steps, curves[s, m].losses, strict=True)) for s in ("seen", "unseen")]
            curves["validation", m].losses = [(sets[0][t] + sets[1][t]) / 2 for t in curves["validation", m].steps]
    folder = keep(study, records, fake_analyses(study, ["dense"]), tmp_path)
    assert folder == tmp_path / "chameleon" and sum(p.stat().st_size for p in folder.glob("*.jsonl")) < 18 * 8000
    again = kept_records(study, tmp_path)
    assert again.arms == records.arms and again.runs == records.runs and len(again.tuning) == len(records.tuning)
    assert again.curves.keys() == records.curves.keys()
    for run, curves in records.curves.items():
        for key, curve in curves.items():
            assert again.curves[run][key].steps == curve.steps
            assert again.curves[run][key].losses == pytest.approx(curve.losses, rel=1e-5)
    assert step not in again.curves["mot", 1]["validation", "image"].steps
    matched = match_logs([str(folder / "dense-0.jsonl"), str(folder / "mot-0.jsonl")], warmup=100)
    assert matched.arms == ["dense-0", "mot-0"] and len(matched.results["matches"]) == 8
    assert {r["seed"] for r in kept_analyses(study, tmp_path)["components"]} == {0}


def test_studies_of_one_folder_are_kept_together(tmp_path):
    for name in ("chameleon", "scale"):
        study = shipped(name)
        keep(study, fake_records(study, seeds=[0, 1]), {"components": []}, tmp_path)
    rows = json.loads((tmp_path / "chameleon" / "study.json").read_text())
    assert {r["arm"] for r in rows["arms"]} >= {"dense", "moe_causal", "mot_64"}
    assert len({(r["arm"], r["seed"]) for r in rows["runs"]}) == len(rows["runs"]) == 24
    found = gather(shipped("scale"), kept_records(shipped("scale"), tmp_path))
    assert [a["arm"] for a in found.results["arms"]] == list(shipped("scale").config.arms)
    assert len(found.results["scaling"]["fits"]) == 8
