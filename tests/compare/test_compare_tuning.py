"""The search for each arm's learning rate: by whole runs, or taken from logs that were kept."""

import json

import pytest
import yaml
from helpers.tiny_study import results, write, write_base, write_data

from plait.cli import main
from plait.common.progress import QuietProgress
from plait.compare import planned_runs, runner, workflow
from plait.compare.study import load_study
from plait.compare.workflow import compare, keep_study
from plait.train.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def folder(tmp_path, data):
    return write_base(tmp_path, data)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Count one batch, and draw nothing."""
    monkeypatch.setattr(planned_runs, "BATCHES", 1)
    monkeypatch.setattr(workflow, "draw_figures", lambda charts, folder: [])


def test_learning_rates_are_tried_and_inherited(folder, monkeypatch):
    """By whole runs of the first seed; the best of them is that seed's run, and is not trained again."""
    path = write(folder, tuning={"learning_rates": [1e-4, 1e-2, 3e-3]}, arms__dense__tune=True, seeds=[3, 1],
                 arms__ffn={"settings": {"model.untied": ["ffn"]}, "learning_rate_of": "dense"},
                 arms__fixed={"learning_rate": 5e-3})  # fmt: skip
    trained, original = [], Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda t: (trained.append(t.out.parts[-3:]), original(t))[1])
    assert main(["compare", str(path), "--arms", "ffn", "--seeds", "1"]) == 0
    found = results(folder)
    trials = found["tuning"]
    assert [t["learning_rate"] for t in trials] == [1e-4, 3e-3, 1e-2] and {t["arm"] for t in trials} == {"dense"}
    best = min(trials, key=lambda t: t["score"])
    assert best["score"] == pytest.approx((best["validation/text"] * best["validation/image"]) ** 0.5)
    arms, rate = {a["arm"]: a for a in found["arms"]}, f"{best['learning_rate']:g}"
    assert arms["dense"]["learning_rate"] == arms["ffn"]["learning_rate"] == best["learning_rate"]
    assert (arms["dense"]["learning_rate_from"], arms["ffn"]["learning_rate_from"]) == ("tuned", "dense")
    assert arms["fixed"]["learning_rate"] == 5e-3
    assert arms["mot"]["learning_rate"] == 1e-2 and arms["mot"]["learning_rate_from"] == "config"
    assert arms["dense"]["learning_rate_at_edge"] == (best in (trials[0], trials[-1]))
    assert sorted(trained) == sorted(
        [*(("dense", r, "seed-3") for r in ("0.0001", "0.01", "0.003")), ("ffn", rate, "seed-1")]
    )
    statuses = {(r["arm"], r["seed"]): r["status"] for r in found["runs"]}
    assert statuses["dense", 3] == statuses["ffn", 1] == "finished" and statuses["dense", 1] == "waiting"
    assert main(["compare", str(path), "--arms", "dense"]) == 0
    assert trained[4:] == [("dense", rate, "seed-1")]
    config = yaml.safe_load((folder / "out" / "runs" / "dense" / rate / "seed-1" / "config.yaml").read_text())
    assert config["train"]["learning_rate"] == best["learning_rate"] and config["train"]["steps"] == 6


def test_trials_that_are_kept_are_not_run_again(folder, monkeypatch, capsys):
    tuned = {"tuning": {"learning_rates": [1e-4, 1e-2, 3e-3]}, "arms__dense__tune": True}
    study = load_study(write(folder, **tuned))
    compare(study, QuietProgress(), arms=["dense"], seeds=[0])
    keep_study(study, QuietProgress(), folder / "kept")
    before = results(folder)
    rate = next(a["learning_rate"] for a in before["arms"] if a["arm"] == "dense")
    trained, original = [], Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda t: (trained.append(t.out.parts[-3:]), original(t))[1])

    elsewhere = ["--out", str(folder / "again")]  # kept logs go by the folder that the study names
    path = str(write(folder, arms__ffn={"settings": {"model.untied": ["ffn"]}, "learning_rate_of": "dense"}, **tuned))
    assert main(["compare", path, *elsewhere, "--rates", str(folder / "kept"), "--plan"]) == 0
    said = capsys.readouterr().out
    assert "trials of dense are taken from" in said and "6 runs and 0 with other learning rates" in said
    assert main(["compare", path, *elsewhere, "--arms", "ffn,dense", "--seeds", "0"]) == 0  # it remembers
    assert sorted(trained) == [("dense", f"{rate:g}", "seed-0"), ("ffn", f"{rate:g}", "seed-0")]
    after = json.loads((folder / "again" / "results" / "tiny" / "results.json").read_text())
    assert after["tuning"] == before["tuning"] and after["data"] == before["data"] != ""

    del trained[:]
    tuned["tuning"]["learning_rates"].append(2e-2)  # of which nothing is kept
    assert main(["compare", str(write(folder, **tuned)), *elsewhere, "--arms", "dense", "--seeds", "0"]) == 0
    assert trained == [("dense", "0.02", "seed-0")]


def test_trials_of_another_model_are_refused(folder, capsys):
    tuned = {"tuning": {"learning_rates": [1e-4, 1e-2, 3e-3]}, "arms__dense__tune": True}
    study = load_study(write(folder, **tuned))
    compare(study, QuietProgress(), arms=["dense"], seeds=[0])
    keep_study(study, QuietProgress(), folder / "kept")
    path, elsewhere = str(folder / "tiny.yaml"), ["--out", str(folder / "again"), "--rates", str(folder / "kept")]
    for other in (["--model.width", "32"], ["--data.batch_tokens", "512"]):
        assert main(["compare", path, *elsewhere, *other]) == 2
        message = capsys.readouterr().err
        assert "arms.dense: it has" in message and "trials.json' to try the rates again" in message
    assert main(["compare", str(write(folder)), *elsewhere]) == 3
    assert "keeps no trials of the learning rates of 'tiny'" in capsys.readouterr().err


def test_no_rate_is_taken_before_all_were_tried(folder, monkeypatch):
    path, original = write(folder, tuning={"learning_rates": [1e-3, 1e-2, 3e-3]}, arms__dense__tune=True), Trainer.run

    def stopping(trainer):
        if trainer.out.parts[-2] == "0.01":
            raise KeyboardInterrupt
        return original(trainer)

    monkeypatch.setattr(Trainer, "run", stopping)
    run = runner.StudyRun(load_study(path), QuietProgress(), arms=["dense"], seeds=[])
    with pytest.raises(KeyboardInterrupt):
        run.run()
    tuned = run.read_trials("dense")
    assert tuned.learning_rate is None and not tuned.is_over and len(tuned.trials) == 1
    assert run.status("dense", 0) == ("waiting", "")


def test_a_trial_that_fails_is_recorded(folder, monkeypatch):
    path = write(
        folder, tuning={"learning_rates": [1e-3, 1e-2, 1e-1]}, seeds=[0], arms={"dense": {"tune": True}}, paper=[]
    )
    original = Trainer.update

    def failing(trainer, batches):
        if trainer.config.train.learning_rate == 1e-1:
            raise RuntimeError("too fast")
        return original(trainer, batches)

    monkeypatch.setattr(Trainer, "update", failing)
    compare(load_study(path), QuietProgress())
    assert [t["error"] for t in results(folder)["tuning"]] == ["", "", "too fast"]
    monkeypatch.setattr(Trainer, "update", lambda *_: (_ for _ in ()).throw(RuntimeError("none")))
    study = load_study(write(folder, tuning={"learning_rates": [1, 2, 3]}, seeds=[0],
                             arms={"dense": {"tune": True}}, paper=[], out=str(folder / "other")))  # fmt: skip
    with pytest.raises(runner.StudyFailed, match=r"dense, seed 0: no learning rate of 'dense' ended well"):
        compare(study, QuietProgress())
    row = json.loads((folder / "other" / "results" / "tiny" / "results.json").read_text())["runs"][0]
    assert (row["status"], row["error"]) == ("failed", "no learning rate of 'dense' ended well")
