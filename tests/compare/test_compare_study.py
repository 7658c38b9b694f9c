"""Studies: the file, its checks, and a whole small study, killed and gone on with."""

import json
import multiprocessing
import os
import signal
import time

import pytest
from helpers import ROOT
from helpers.fake_data import scene_like, write_folder
from helpers.tiny_study import STUDY, arm_and_seed, results, write, write_base, write_data

from plait.cli import main
from plait.common.errors import ConfigError
from plait.common.progress import QuietProgress
from plait.compare import analysis, planned_runs, runner, workflow
from plait.compare.curves import read_curves
from plait.compare.study import load_study
from plait.compare.workflow import compare, examine_study
from plait.config.shipped import config_path
from plait.train.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def folder(tmp_path, data):
    return write_base(tmp_path, data)


RATE = "0.01"
"""The base's learning rate, as run folders have it."""


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Count one batch, and draw where a test looks at the page."""
    monkeypatch.setattr(planned_runs, "BATCHES", 1)
    if request.function is not test_a_whole_study:
        monkeypatch.setattr(workflow, "draw_figures", lambda charts, folder: [])


def comparable(found: dict) -> dict:
    """Return what does not depend on the clock."""
    matches = [{k: v for k, v in m.items() if not k.startswith("time_ratio")} for m in found["matches"]]
    return {"matches": matches, "claims": found["claims"], "tuning": found["tuning"]}


def test_a_whole_study(folder, capsys):
    assert main(["compare", str(write(folder))]) == 0
    out = capsys.readouterr().out
    assert "study.html" in out and "Step matching" in out and "reverse" in out
    found = results(folder)
    assert [(r["arm"], r["seed"], r["status"], r["steps"]) for r in found["runs"]] == [
        ("dense", 0, "finished", 6), ("dense", 1, "finished", 6), ("mot", 0, "finished", 6), ("mot", 1, "finished", 6)
    ]  # fmt: skip
    keys = {(m["split"], m["modality"]) for m in found["matches"]}
    assert keys == {(s, m) for s in ("training", "validation", "seen", "unseen") for m in ("text", "image")}
    for m in found["matches"]:
        assert (m["arm"], m["against"]) == ("mot", "dense") and m["seeds"] <= 2
        if m["points"] == 0:  # ids are random, so little is learnt
            assert m["steps_ratio"] is m["time_ratio"] is None and m["seeds"] == 0
            continue
        assert m["steps_ratio_low"] <= m["steps_ratio"] <= m["steps_ratio_high"]
        assert m["flops_ratio"] == pytest.approx(m["steps_ratio"]) and m["time_ratio"] > 0
    assert any(m["points"] for m in found["matches"])
    image, distance = found["claims"]
    training = next(m for m in found["matches"] if m["split"] == "training" and m["modality"] == "image")
    assert (image["paper"], image["ours"], image["seeds"]) == (0.35, training["steps_ratio"], training["seeds"])
    assert (distance["paper"], distance["ours"], distance["seeds"]) == (15.8, None, 0)
    dense, mot = found["arms"]
    assert mot["flops_ratio"] == 1 and mot["parameters"] > dense["parameters"]
    made = folder / "out" / "results" / "tiny"
    html, text = (made / "study.html").read_text(), (made / "results.md").read_text()
    assert (
        html.count('figure class="chart"') == 1 + 2 + 4 == len(list(made.glob("*.png")))
        and "a tower for each modality" in html
    )
    assert "| image | 0.350 (7B) |" in text and "## Step matching" in text


def test_all_arms_see_the_same_batches(folder, monkeypatch):
    """The same documents in the same order for all arms of a seed, others for another seed."""
    seen, original = {}, Trainer.update

    def noting(trainer, batches):
        documents = [d.index for b in batches for d in b.documents]
        seen.setdefault(arm_and_seed(trainer), []).append(documents)
        return original(trainer, batches)

    monkeypatch.setattr(Trainer, "update", noting)
    compare(load_study(write(folder)), QuietProgress())
    assert seen["dense", "seed-0"] == seen["mot", "seed-0"] != seen["dense", "seed-1"] == seen["mot", "seed-1"]
    runs = [read_curves(folder / "out" / "runs" / arm / RATE / "seed-0") for arm in ("dense", "mot")]
    assert {tuple(c.steps) for curves in runs for c in curves.values()} == {(1, 2, 3, 4, 5, 6)}


def test_what_is_done_is_skipped_and_a_stopped_run_goes_on(folder, tmp_path_factory, monkeypatch):
    whole = tmp_path_factory.mktemp("whole")
    path = write(folder, out=str(whole / "out"))
    compare(load_study(path), QuietProgress())
    path, original, trained = write(folder), Trainer.update, []

    def noting(trainer, batches):
        if len(trained) == 9:
            raise KeyboardInterrupt  # as sudden as a kill: nothing is saved
        trained.append((*arm_and_seed(trainer), trainer.state.step))
        return original(trainer, batches)

    monkeypatch.setattr(Trainer, "update", noting)
    with pytest.raises(KeyboardInterrupt):
        compare(load_study(path), QuietProgress())
    assert trained[5:] == [("dense", "seed-0", 5), ("mot", "seed-0", 0), ("mot", "seed-0", 1), ("mot", "seed-0", 2)]
    trained.append("stopped")
    compare(load_study(path), QuietProgress())
    assert trained[10][:2] == ("mot", "seed-0") and trained[10][2] == 2  # from its checkpoint
    assert ("dense", "seed-0") not in [t[:2] for t in trained[10:]]
    assert comparable(results(folder)) == comparable(results(whole))


def test_killed_and_gone_on_with(folder):
    path = write(folder)
    child = multiprocessing.get_context("fork").Process(target=main, args=(["compare", str(path)],))
    child.start()
    begun, until = folder / "out" / "runs" / "mot" / RATE / "seed-0" / "checkpoints", time.monotonic() + 60
    while not list(begun.glob("step-*")) and child.is_alive() and time.monotonic() < until:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert main(["compare", str(path)]) == 0
    assert [r["status"] for r in results(folder)["runs"]] == ["finished"] * 4


def test_several_processes_share_the_runs_of_a_study(folder, monkeypatch):
    """Each trial and each run is trained once, by one of them, and all of them end when everything is done."""
    path = write(folder, tuning={"learning_rates": [1e-3, 1e-2, 3e-3]}, arms__dense__tune=True)
    original = Trainer.run

    def slow(trainer):
        with (folder / "begun.txt").open("a") as file:
            file.write(f"{os.getpid()} {trainer.out.relative_to(folder / 'out')}\n")
        time.sleep(0.3)  # so that the others come while it is at it
        return original(trainer)

    monkeypatch.setattr(Trainer, "run", slow)
    monkeypatch.setattr(runner, "SECONDS_TO_WAIT", 0.05)
    start = multiprocessing.get_context("fork").Process
    children = [start(target=main, args=(["compare", str(path)],)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    begun = [line.split() for line in (folder / "begun.txt").read_text().splitlines()]
    assert len({name for _, name in begun}) == len(begun) == 3 - 1 + 4
    assert {pid for pid, _ in begun} == {str(child.pid) for child in children}
    assert [r["status"] for r in results(folder)["runs"]] == ["finished"] * 4 and len(results(folder)["tuning"]) == 3


def test_a_signal_saves_the_run_and_writes_down_what_is_done(folder, monkeypatch, capsys):
    path, original = write(folder), Trainer.update

    def stopping(trainer, batches):
        trainer._stop = arm_and_seed(trainer) == ("dense", "seed-1") and trainer.state.step == 2
        return original(trainer, batches)

    monkeypatch.setattr(Trainer, "update", stopping)
    assert main(["compare", str(path)]) == 130
    assert "stopped at step 3 and saved" in capsys.readouterr().err
    states = {(r["arm"], r["seed"]): r["status"] for r in results(folder)["runs"]}
    assert states == {("dense", 0): "finished", ("dense", 1): "stopped", ("mot", 0): "finished", ("mot", 1): "waiting"}
    monkeypatch.setattr(Trainer, "update", original)
    assert main(["compare", str(path)]) == 0


def test_a_failed_run_is_kept_and_the_others_go_on(folder, monkeypatch, capsys):
    path, original = write(folder), Trainer.update

    def failing(trainer, batches):
        if arm_and_seed(trainer) == ("mot", "seed-0") and trainer.state.step == 3:
            raise RuntimeError("the device fell off")
        return original(trainer, batches)

    monkeypatch.setattr(Trainer, "update", failing)
    assert main(["compare", str(path)]) == 1
    message = capsys.readouterr().err
    assert "plait: study: runs/mot/0.01/seed-0: the device fell off; the other runs are done" in message
    runs = {(r["arm"], r["seed"]): r for r in results(folder)["runs"]}
    assert runs["mot", 0]["status"] == "failed" and runs["mot", 0]["error"] == "the device fell off"
    assert all(r["status"] == "finished" for key, r in runs.items() if key != ("mot", 0))
    assert {m["seeds"] for m in results(folder)["matches"] if m["points"]} == {1}
    assert (
        "| mot | 0 | failed | – | – | – | – | the device fell off |"
        in (folder / "out" / "results" / "tiny" / "results.md").read_text()
    )
    monkeypatch.setattr(Trainer, "update", original)
    assert main(["compare", str(path)]) == 0
    assert {r["status"] for r in results(folder)["runs"]} == {"finished"}


def test_a_budget_of_operations_gives_larger_models_fewer_steps(folder):
    arms = {
        "dense": STUDY["arms"]["dense"],
        "large": {"settings": STUDY["arms"]["dense"]["settings"] | {"model.num_layers": 3}, "equal_flops": False},
    }
    study = load_study(write(folder, arms=arms, paper=[], budget={"flops": 2e9}))
    found = planned_runs.make_plan(study, ["large"])
    assert list(found) == ["dense", "large"]  # the one it is matched with is planned too
    assert found["large"].steps < found["dense"].steps == round(2e9 / found["dense"].flops.formula)


def test_the_plan_is_shown_and_trains_nothing(folder, capsys):
    assert main(["compare", str(write(folder)), "--plan", "--arms", "mot"]) == 0
    out = capsys.readouterr().out
    assert "Plan of tiny" in out and "mot" in out
    assert not (folder / "out" / "runs").exists()


def test_finished_models_are_looked_into(folder, monkeypatch, capsys):
    """By arm and seed, on the same batches, once; gradients at every checkpoint that is kept."""
    path = write(folder, settings={"train.keep_checkpoints": 2})
    assert main(["compare", str(path), "--analyse"]) == 0  # nothing is finished, and nothing is trained
    assert not (folder / "out" / "runs").exists() and {r["status"] for r in results(folder)["runs"]} == {"waiting"}
    assert main(["compare", str(path), "--arms", "dense", "--seeds", "0"]) == 0
    compare(load_study(path), QuietProgress(), arms=["mot"])
    assert main(["compare", str(path), "--analyse"]) == 0
    assert "study.html" in capsys.readouterr().out
    made = folder / "out" / "results" / "tiny"
    found = json.loads((made / "analysis.json").read_text())
    runs = {(r["arm"], r["seed"]) for r in found["layers"]}
    assert runs == {("dense", 0), ("mot", 0), ("mot", 1)} and [r["layer"] for r in found["layers"]] == [0, 1] * 3
    assert {r["step"] for r in found["conflict"]} == {4, 6} and {r["step"] for r in found["attention"]} == {6}
    even = {(r["query"], r["key"]): set() for r in found["attention"]}
    for r in found["attention"]:
        even[r["query"], r["key"]].add(r["even"])
    assert all(len(values) == 1 for values in even.values())  # the same batches for all
    html = (made / "study.html").read_text()
    assert all(f'id="{name}"' in html for name in ("separation", "attention", "conflict_steps", "components_mot"))
    monkeypatch.setattr(analysis, "_analyse_run", lambda *_: pytest.fail("it was analysed before"))
    examine_study(load_study(path), QuietProgress(), analysis.analyse)
    assert json.loads((made / "analysis.json").read_text()) == found


def test_a_validation_set_that_is_not_there_is_named_before_training(folder):
    paper = [{"claim": "a", "value": 1, "arm": "mot", "modality": "text", "split": "seenn"}]
    with pytest.raises(ConfigError, match=r"^paper\[0\]\.split: unknown name 'seenn', .* did you mean 'seen'"):
        compare(load_study(write(folder, paper=paper)), QuietProgress())
    assert not (folder / "out" / "runs").exists()


def test_a_users_validation_part_is_a_set_of_its_own(tmp_path):
    """`plait prepare` calls it "validation", as the mean over all sets is called."""
    documents = {"train": [scene_like(i) for i in range(150)], "validation": [scene_like(i, seed=1) for i in range(20)]}
    write_base(tmp_path, write_folder(tmp_path / "data", documents))
    compare(load_study(write(tmp_path)), QuietProgress(), seeds=[0])
    assert {m["split"] for m in results(tmp_path)["matches"]} == {"validation", "validation set", "training"}


def without_plan(run):
    """Return the run so that it fails where it asks for data."""
    run.make_plan = lambda *_: pytest.fail("what is written needs no data")
    return run


def test_logs_are_kept_of_what_is_finished(folder, monkeypatch, capsys):
    path, kept = write(folder), folder / "kept"
    assert main(["compare", str(path), "--keep", str(kept)]) == 3
    assert "which `plait compare` writes" in capsys.readouterr().err and not kept.exists()
    assert main(["compare", str(path), "--seeds", "0"]) == 0
    compare(load_study(path), QuietProgress(), seeds=[1], arms=["dense"])
    monkeypatch.setattr(workflow, "StudyRun", lambda *a, run=runner.StudyRun, **k: without_plan(run(*a, **k)))
    assert main(["compare", str(path), "--keep", str(kept)]) == 0
    assert {p.name for p in (kept / "out").glob("*.jsonl")} == {"dense-0.jsonl", "dense-1.jsonl", "mot-0.jsonl"}
    assert f"kept: {kept / 'out'}" in capsys.readouterr().out


def test_studies_of_one_folder_share_their_arms(folder, monkeypatch):
    compare(load_study(write(folder, seeds=[0])), QuietProgress())
    trained, original = set(), Trainer.update
    monkeypatch.setattr(Trainer, "update", lambda t, b: (trained.add(arm_and_seed(t)[0]), original(t, b))[1])
    arms = STUDY["arms"] | {"ffn": {"settings": {"model.untied": ["ffn"]}}}
    compare(load_study(write(folder, name="more", arms=arms, seeds=[0])), QuietProgress())
    assert trained == {"ffn"}


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["none.yaml"], 2, "study: there is no file 'none.yaml'"),
        (["{study}", "--arms", "mott"], 2, "--arms: unknown name 'mott', allowed: dense, mot; did you mean 'mot'?"),
        (["{study}", "--seeds", "7"], 2, "--seeds: 7 is not allowed, it must be among the seeds of these arms (0, 1)"),
        (["{study}", "--train.steps", "7"], 2, "train.steps: '7' is not allowed, it must be left to the study file"),
        (["{study}", "--train.devise", "cpu"], 2, "did you mean 'device'?"),
        (["{study}", "--warmup", "7"], 2, "--warmup is for --from-logs, leave out --warmup"),
        (["{study}", "--keep", "c", "--seeds", "0"], 2, "--keep keeps all finished runs, leave out --seeds"),
        (["--keep", "c", "--out", "o"], 2, "plait compare needs a study or --from-logs"),
    ],
)
def test_mistakes_get_one_sentence(folder, arguments, code, sentence, capsys):
    study = str(write(folder))
    assert main(["compare", *(a.format(study=study) for a in arguments)]) == code
    message = capsys.readouterr().err
    assert message.startswith("plait: ") and message.count("\n") == 1 and sentence in message


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--help"])
    assert stop.value.code == 0
    assert "plait compare chameleon --plan" in capsys.readouterr().out


def test_the_documented_study_is_one(tmp_path):
    text = (ROOT / "docs" / "compare.md").read_text()
    (tmp_path / "example.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    study = load_study(tmp_path / "example.yaml", find_base=config_path)
    assert list(study.config.arms) == ["dense", "mot", "ffn"]
