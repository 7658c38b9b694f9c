"""Step matching of logs that other trainers wrote."""

import json

import numpy as np
import pytest

from plait.cli import main
from plait.common.errors import DataError
from plait.compare.curves import Curve, curves_of, final_losses, read_curves, score, step_seconds
from plait.compare.logs import match_logs, read_log
from plait.compare.study_charts import charts


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def log(path, speed: float, *, names=("val_loss/held out/text", "loss/text")) -> str:
    rows = [{"step": t, "anything": "else"} | {name: 8 - t * speed / 256 for name in names} for t in range(0, 1001, 50)]
    return write(path, rows)


def matches(logs, **how) -> list[dict]:
    return match_logs(logs, **how).results["matches"]


def test_twice_as_fast_is_half(tmp_path, capsys):
    dense, mine = log(tmp_path / "dense.jsonl", 1), log(tmp_path / "mine.jsonl", 2)
    rows = matches([dense, mine, dense])
    assert [(row["arm"], row["split"], row["modality"], row["steps_ratio"]) for row in rows[:3]] == [
        ("mine", split, "text", pytest.approx(0.5, abs=1e-9)) for split in ("held out", "validation", "training")
    ]
    assert {(row["arm"], row["steps_ratio"]) for row in rows[3:]} == {("dense (3)", 1.0)}
    assert main(["compare", "--from-logs", dense, mine, "--warmup", "100"]) == 0
    out = capsys.readouterr().out
    assert "0.500" in out and "FLOPs" not in out.split("modality")[1].splitlines()[0]


def test_training_losses_alone_do(tmp_path):
    logs = [log(tmp_path / f"{speed}.jsonl", speed, names=["loss/image"]) for speed in (2, 1)]
    (row,) = matches(logs)
    assert (row["split"], row["modality"], row["steps_ratio_is_bound"]) == ("training", "image", True)
    assert row["reverse_ratio"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"loss/a": 1.0}], "row 1: it has no number 'step' from 0 to 1e+15"),
        ([{"step": "1", "loss/a": 1.0}], "it has no number 'step' from 0 to 1e+15, but '1'"),
        ([{"step": True, "loss/a": 1.0}], "it has no number 'step'"),
        ([{"step": -1, "loss/a": 1.0}], "it has no number 'step'"),
        ([{"step": 10**400, "loss/a": 1.0}], "it has no number 'step'"),
        ([{"step": 2, "loss/a": 1.0}, {"step": 1, "loss/a": 1.0}], "row 2: step 1 comes after 2"),
        ([{"step": 1, "loss/a": "2.0"}], "row 1: 'loss/a' is '2.0', it must be a number"),
        ([{"step": 1, "loss/a": [1, 2]}], "row 1: 'loss/a' is [1, 2], it must be a number"),
        ([{"step": 1, "val_loss/a": 2.0}], "row 1: 'val_loss/a' is not of the form 'val_loss/<set>/<modality>'"),
        ([{"step": 1, "loss/a/b": 2.0}], "row 1: 'loss/a/b' is not of the form 'loss/<modality>'"),
        ([{"step": 1}], "it has neither 'val_loss/<set>/<modality>' nor 'loss/<modality>'"),
        ([{"step": 1, "loss/a": 10**400}], "it has neither"),
        ([{"step": 1, "loss/a": 1e300}], "'loss/a' is 1e+300, it must be at most 1e+15"),
        ([{"step": 1, "val_loss/x/a": 1.0}, {"step": 1, "val_loss/x/a": 2.0}], "the second 'val_loss/x/a' of step 1"),
        ([{"step": 0, "loss/a": 1.0}], "no loss after the warm-up of 0 steps can be matched"),
        ([{"step": 1, "loss/b": 1.0}], "has no curve of"),
    ],
)
def test_logs_that_do_not_do_are_refused(rows, sentence, tmp_path, capsys):
    good = write(tmp_path / "good.jsonl", [{"step": 1, "loss/a": 2.0}])
    assert main(["compare", "--from-logs", good, write(tmp_path / "bad.jsonl", rows)]) == 3
    message = capsys.readouterr().err
    assert sentence in message and message.count("\n") == 1


def test_training_losses_are_means_over_as_many_steps_in_every_log(tmp_path, rng):
    """A run against itself is 1, whatever its log holds beside the training losses, and however long the other ran."""
    losses = 8 * np.arange(1, 401) ** -0.3 + 0.1 * rng.standard_normal(400)
    plain = [{"step": 10 * i, "loss/text": x} for i, x in enumerate(losses, start=1)]
    validated = [row | ({"val_loss/seen/text": 1.0} if row["step"] % 200 == 0 else {}) for row in plain]
    logs = [write(tmp_path / f"{n}.jsonl", r) for n, r in enumerate([plain, validated, plain[:200]])]
    for pair in (logs[:2], logs[1::-1]):
        (row,) = matches(pair)
        assert (row["split"], row["modality"]) == ("training", "text")
        assert [row[name] for name in ("steps_ratio", "end_ratio", "reverse_ratio")] == [1.0, 1.0, 1.0]
    assert matches([logs[1], logs[0]])[0]["points"] > 15  # the longer log is not cut where a shorter one ends
    assert matches([logs[1], logs[0], logs[2]])[0]["points"] > 15


def test_means_of_other_validation_sets_are_not_matched(tmp_path):
    names = {"a": ["val_loss/a/text"], "ab": ["val_loss/a/text", "val_loss/b/text"], "b": ["val_loss/b/text"]}
    logs = {key: log(tmp_path / f"{key}.jsonl", 1, names=mine) for key, mine in names.items()}
    assert [row["split"] for row in matches([logs["a"], logs["ab"]])] == ["a"]
    assert [row["split"] for row in matches([logs["ab"], logs["ab"]])] == ["a", "b", "validation"]
    with pytest.raises(DataError, match="it has a/text, validation/text, not b/text, validation/text"):
        match_logs([logs["b"], logs["a"]])


def test_a_set_may_be_called_as_a_derived_curve_is(tmp_path):
    """`plait prepare` calls the held-out part of a manifest "validation"."""
    rows = [
        {"step": t, "loss/text": 5.0 - t, "val_loss/validation/text": 4.0 - t, "val_loss/training/text": 2.0 - t}
        for t in range(3)
    ]
    curves = curves_of(read_log(write(tmp_path / "a.jsonl", rows)))
    assert curves["validation set", "text"].losses == [4.0, 3.0, 2.0]
    assert curves["validation", "text"].losses == [3.0, 2.0, 1.0]  # the mean of both sets
    assert curves["training", "text"].losses == [5.0, 4.0, 3.0]
    assert len(matches([str(tmp_path / "a.jsonl")] * 2)) == 4


def test_no_log_takes_the_name_of_another(tmp_path):
    slow, fast = log(tmp_path / "a.jsonl", 1), log(tmp_path / "a (3).jsonl", 2)
    rows = [row for row in matches([slow, fast, slow]) if row["split"] == "training"]
    assert [(row["arm"], row["steps_ratio"]) for row in rows] == [("a (3)", pytest.approx(0.5)), ("a (3) (3)", 1.0)]


def test_names_in_logs_are_no_markup(tmp_path, capsys):
    names = ["val_loss/[/x] [bold]/a$x_{$", "val_loss/set\ud800/text"]
    logs = [log(tmp_path / f"{name}.jsonl", speed, names=names) for name, speed in (("_dense", 1), ("run[bold]", 2))]
    assert main(["compare", "--from-logs", *logs, "--out", str(tmp_path / "match")]) == 0
    out = capsys.readouterr().out
    assert "[/x]" in out and "run[bold]" in out and "a$x_{$" in out and "set\\ud800" in out


def test_long_logs_are_drawn_at_as_many_points_as_can_be_seen(tmp_path):
    rows = [{"step": t, "loss/text": 8 - t / 1e4} for t in range(20_000)]
    logs = [write(tmp_path / f"{name}.jsonl", rows) for name in ("a", "b")]
    matched = match_logs(logs)
    assert matched.results["matches"][0]["points"] > 10_000
    for chart in charts(matched):
        for series in (s for panel in chart.panels for s in panel.series):
            assert len(series.x) <= 2000
    (losses,) = [c for c in charts(matched) if c.name == "losses_training"]
    assert (losses.panels[0].series[0].x[0], losses.panels[0].series[0].x[-1]) == (0, 19_999)


def test_a_mean_needs_all_sets(tmp_path):
    rows = [{"step": t, f"val_loss/{'ab'[t % 2]}/text": 9.0 - t} for t in range(4)]
    curves = curves_of(read_log(write(tmp_path / "odd.jsonl", rows)))
    assert not curves["validation", "text"].losses and curves["a", "text"].steps == [0, 2]


def test_one_log_and_no_study_are_refused(tmp_path, capsys):
    assert main(["compare", "--from-logs", log(tmp_path / "a.jsonl", 1)]) == 3
    assert "at least two" in capsys.readouterr().err
    assert main(["compare", "scale", "--from-logs", "a.jsonl", "b.jsonl"]) == 2
    assert "--from-logs stands in place of a study, leave out a study" in capsys.readouterr().err
    assert main(["compare"]) == 2
    assert "needs a study or --from-logs" in capsys.readouterr().err
    assert main(["compare", "--from-logs", str(tmp_path / "none.jsonl"), str(tmp_path / "a.jsonl")]) == 3


def test_a_log_of_ours_is_one(tmp_path):
    rows = [
        {"step": 1, "seconds": 0.1, "tokens": 9, "loss/text": 3.0, "grad_norm": None},
        {"step": 2, "seconds": 0.2, "tokens": 18, "val_loss/seen/text": 2.5},
    ]
    assert set(curves_of(read_log(write(tmp_path / "metrics.jsonl", rows)))) == {
        ("seen", "text"),
        ("validation", "text"),
        ("training", "text"),
    }


def run_folder(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_curves_of_a_run_folder(tmp_path):
    rows = [
        {"step": 1, "loss/a": 4.0, "tokens": 10, "tokens_per_second": 1},
        {"step": 2, "loss/a": 2.0, "loss/b": 8.0, "tokens": 20, "tokens_per_second": 5.0},
        {"step": 2, "val_loss/x/a": 3.0, "val_loss/y/a": 5.0, "val_loss/x/b": 1.0},
        {"step": 4, "loss/a": 1.0, "tokens": 40, "tokens_per_second": 5.0},
        {"step": 4, "val_loss/x/a": 2.0, "val_loss/y/a": None, "val_loss/x/b": 1.0},
    ]
    curves = read_curves(run_folder(tmp_path / "run", rows))
    assert curves["x", "a"] == Curve([2, 4], [3.0, 2.0]) and curves["y", "a"] == Curve([2], [5.0])
    assert curves["validation", "a"] == Curve([2], [4.0])  # not the mean of fewer sets at step 4
    assert curves["training", "a"] == Curve([2, 4], [3.0, 1.0])
    assert step_seconds(tmp_path / "run") == 2.0
    assert read_curves(run_folder(tmp_path / "bare", rows[:2]))["training", "a"] == Curve([1, 2], [4.0, 2.0])
    assert final_losses(tmp_path / "run")["x/b"] == 1.0
    assert step_seconds(tmp_path / "none") is None and read_curves(tmp_path / "none") == {}


def test_the_score_counts_all_modalities_alike():
    assert score({"validation/a": 4.0, "validation/b": 0.01, "x/a": 9.0}) == pytest.approx(0.2)
    assert score({"training/a": 4.0}) == 4.0 and score({}) is None
    assert score({"validation/a": 4.0, "validation/b": None}) is None


def test_a_loss_that_ended_before_the_run_did_is_none(tmp_path):
    rows = [{"step": t, "val_loss/x/a": 3.0, "val_loss/x/b": None if t == 4 else 1.0} for t in (2, 4)]
    losses = final_losses(run_folder(tmp_path / "run", rows))
    assert losses["x/a"] == 3.0 and losses["x/b"] is None and score(losses) is None
