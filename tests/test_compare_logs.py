"""Step matching of logs that other trainers wrote."""

import json

import pytest

from plait.cli import main
from plait.compare.curves import Curve, final_losses, read_curves, score, step_seconds
from plait.compare.logs import compare_logs, read_log


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def log(path, speed: float, *, names=("val_loss/held out/text", "loss/text")) -> str:
    rows = [{"step": t, "anything": "else"} | {name: 8 - t * speed / 256 for name in names} for t in range(0, 1001, 50)]
    return write(path, rows)


def test_twice_as_fast_is_half(tmp_path, capsys):
    dense, mine = log(tmp_path / "dense.jsonl", 1), log(tmp_path / "mine.jsonl", 2)
    rows = compare_logs([dense, mine, dense])[3]
    assert [row[1:4] for row in rows[:3]] == [
        ["held out", "text", "0.500"], ["validation", "text", "0.500"], ["training", "text", "0.500"]
    ]  # fmt: skip
    assert {row[3] for row in rows[3:]} == {"1.000"}
    assert main(["compare", "--from-logs", dense, mine, "--warmup", "100"]) == 0
    assert "0.500" in capsys.readouterr().out


def test_training_losses_alone_do(tmp_path):
    logs = [log(tmp_path / f"{speed}.jsonl", speed, names=["loss/image"]) for speed in (2, 1)]
    (row,) = compare_logs(logs)[3]
    assert row[1:3] == ["training", "image"] and row[3].startswith("≥ ") and row[5] == "0.500"


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"loss/a": 1.0}], "row 1: it has no number 'step'"),
        ([{"step": 2, "loss/a": 1.0}, {"step": 1, "loss/a": 1.0}], "its steps do not increase"),
        ([{"step": 1}], "it has neither 'val_loss/<set>/<modality>' nor 'loss/<modality>'"),
        ([{"step": 1, "loss/a": 1.0}, {"step": 1, "loss/a": 2.0}], "two losses of training/a at one step"),
        ([{"step": 1, "loss/b": 1.0}], "has no curve of"),
    ],
)
def test_logs_that_do_not_do_are_refused(rows, sentence, tmp_path, capsys):
    good = write(tmp_path / "good.jsonl", [{"step": 1, "loss/a": 2.0}])
    assert main(["compare", "--from-logs", good, write(tmp_path / "bad.jsonl", rows)]) == 3
    message = capsys.readouterr().err
    assert sentence in message and message.count("\n") == 1


def test_one_log_and_no_study_are_refused(tmp_path, capsys):
    assert main(["compare", "--from-logs", log(tmp_path / "a.jsonl", 1)]) == 3
    assert "at least two" in capsys.readouterr().err
    assert main(["compare"]) == 2
    assert "needs a study, --conclude or --from-logs" in capsys.readouterr().err
    assert main(["compare", "--from-logs", str(tmp_path / "none.jsonl"), str(tmp_path / "a.jsonl")]) == 3


def test_a_log_of_ours_is_one(tmp_path):
    rows = [{"step": 1, "seconds": 0.1, "tokens": 9, "loss/text": 3.0, "grad_norm": None},
            {"step": 2, "seconds": 0.2, "tokens": 18, "val_loss/seen/text": 2.5}]  # fmt: skip
    assert set(read_log(write(tmp_path / "metrics.jsonl", rows))) == {
        ("seen", "text"), ("validation", "text"), ("training", "text")
    }  # fmt: skip


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
