"""A run is accepted before anything is written: real restarts of a tiny run by the command line."""

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.fake_data import MODALITIES, scene_like, write_folder
from helpers.training import config_for

from plait.cli import main
from plait.common.errors import ConfigError
from plait.common.locks import one_writer
from plait.config.file import to_dict
from plait.run.load import run_config
from plait.train import checkpoint
from plait.train.metrics import read_metrics
from plait.train.trainer import Trainer


def documents(seed: int = 0) -> dict:
    return {"train": [scene_like(i, seed=seed) for i in range(60)], "seen": [scene_like(i, seed=7) for i in range(8)]}


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A folder with prepared data and a run of two steps."""
    folder = tmp_path_factory.mktemp("begun")
    data = write_folder(folder / "data", documents())
    config = config_for(data, folder / "run", steps=2, checkpoint_every=1, validate_every=2)
    (folder / "run.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    assert main(["train", str(folder / "run.yaml")]) == 0
    return folder


@pytest.fixture
def run(begun, tmp_path) -> Path:
    shutil.copytree(begun, tmp_path / "x")
    folder = tmp_path / "x"
    values = yaml.safe_load((folder / "run.yaml").read_text())
    values["out"], values["data"]["path"] = str(folder / "run"), str(folder / "data")
    (folder / "run.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def trained(run: Path, *settings: str) -> int:
    return main(["train", str(run / "run.yaml"), *settings])


REFUSED = {
    "model.width": "32",
    "train.optimizer": "muon",
    "data.batch_tokens": "256",
    "data.tasks": "{'image,text': 1.0, 'text,image': 1.0}",
    "seed": "5",
    "prepare.passages": "0.3",
    "train.trackers": "[smoke]",
}
FREE = {
    "model.modalities.image.loss_weight": "0.5",
    "model.towers.image.learning_rate_scale": "0.1",
    "train.learning_rate": "0.01",
    "train.keep_checkpoints": "1",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_training_changes_nothing(run, capsys, name):
    before = files(run)
    assert trained(run, f"--{name}", REFUSED[name], "--train.steps", "4") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"plait: {name}: ") and said.count("\n") == 1
    if name != "train.trackers":
        assert "differs from" in said and "was made with" in said and "take the old setting" in said
    assert files(run) == before


def test_what_is_free_goes_on(run):
    """Four restarts, each with another setting."""
    for steps, (name, value) in enumerate(FREE.items(), start=3):
        assert trained(run, f"--{name}", value, "--train.steps", str(steps)) == 0
        kept = yaml.safe_load((run / "run/config.yaml").read_text())
        for key in name.split("."):
            kept = kept[key]
        assert kept == yaml.safe_load(value)
    rows = read_metrics(run / "run/metrics.jsonl")
    assert [r["step"] for r in rows if "tokens_per_second" in r] == [1, 2, 3, 4, 5, 6]


def test_data_of_other_codecs_and_other_documents_are_refused(run, capsys):
    """Ids of another codec mean something else, whatever they are called."""
    other = {name: record | {"fingerprint": f"{name}-2"} for name, record in MODALITIES.items()}
    for what, data in (
        ("encodes text by another codec", write_folder(run / "codecs", documents(), modalities=other)),
        ("are not those the run started with", write_folder(run / "documents", documents(seed=3))),
    ):
        before = files(run)
        assert trained(run, "--data.path", str(data), "--train.steps", "4") == 2
        said = capsys.readouterr().err
        assert said.startswith("plait: data.path: ") and what in said and said.count("\n") == 1
        assert files(run) == before
    assert main(["generate", str(run / "run"), "--out", str(run / "made"), "--device", "cpu"]) == 4  # no codecs here
    shutil.move(run / "documents", run / "elsewhere")
    shutil.copytree(run / "data", run / "moved")
    assert trained(run, "--data.path", str(run / "moved"), "--train.steps", "3") == 0  # the same, in another place


def test_a_config_that_fits_no_checkpoint_is_not_read(run):
    """Of a run whose config.yaml was changed by hand, or by an older plait."""
    path = run / "run/config.yaml"
    path.write_text(path.read_text().replace("rope_theta: 10000.0", "rope_theta: 500.0"))
    with pytest.raises(ConfigError, match=r"^model\.rope_theta: 500\.0 differs from 10000\.0"):
        run_config(run / "run")
    assert main(["evaluate", str(run / "run")]) == main(["report", str(run / "run")]) == 2


@pytest.mark.parametrize(
    "option", [["--model.width", "20"], ["--prepare.source", "gone.jsonl"], ["--train.device", "x"]]
)
def test_a_refused_quickstart_removes_nothing(run, tmp_path, option):
    before = files(run)
    command = ["quickstart", "--config", str(run / "run.yaml"), "--restart", *option]
    if option[0] == "--model.width":  # a folder that is none of a run is not plait's to remove
        (tmp_path / "home").mkdir()
        (tmp_path / "home/letter.txt").write_text("dear")
        assert main([*command[:4], "--out", str(tmp_path / "home")]) != 0
        assert (tmp_path / "home/letter.txt").read_text() == "dear"
    else:
        assert main(command) != 0
    assert files(run) == before


HOLDER = """
import sys, time
from contextlib import ExitStack
from plait.common.locks import one_writer
with ExitStack() as stack:
    for folder in sys.argv[1:]:
        stack.enter_context(one_writer(folder, "run"))
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def held(*folders: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, *map(str, folders)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_a_second_writer_gets_one_sentence_and_changes_nothing(run, capsys):
    runs, data, out = run / "run", run / "data", run / "made"
    out.mkdir()
    with held(runs, data, out) as process:
        before = files(run)
        for command, what in (
            (["train", str(run / "run.yaml"), "--train.steps", "4"], runs),
            (["evaluate", str(runs)], runs),
            (["quickstart", "--config", str(run / "run.yaml"), "--restart"], runs),
            (["prepare", str(run / "run.yaml"), "--out", str(run / "other")], data),
        ):
            assert main(command) == 1, command
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and f"{str(what)!r} is being written by another process" in said, said
            assert f"process {process}" in said and "wait for it to finish" in said
            assert files(run) == before, command
    assert trained(run, "--train.steps", "3") == 0  # the holder was killed


def test_readers_need_no_lock(run, capsys):
    """A report of a run that trains shows what is there, and changes nothing of it."""
    runs = run / "run"
    before = files(runs)
    with held(runs) as process:
        assert main(["report", str(runs)]) == 0
        assert f"process {process}" in capsys.readouterr().err
        assert main(["export", str(runs), "--weights-only", "--out", str(run / "exported")]) == 0
        after = files(runs)
    assert b"<svg" in after.pop("report.html") and after.pop(".lock")
    assert after == before


def test_training_on_data_that_are_being_prepared_says_so(run, capsys):
    (run / "data/index.json").unlink()
    with held(run / "data"):
        assert trained(run, "--train.steps", "4") == 3
    assert "is still being prepared by another process (process" in capsys.readouterr().err


def test_steps_of_one_process_do_not_keep_each_other_out(run):
    config = run_config(run / "run")
    config.train.steps = 3
    with one_writer(config.out, "run"), one_writer(config.data.path, "data.path"):
        Trainer(config).run()
    assert not list(run.rglob(".lock"))


def test_a_damaged_checkpoint_is_set_aside_when_the_run_goes_on(run, capsys):
    newest = checkpoint.find(run / "run/checkpoints")[-1]
    (newest / "model.safetensors").write_bytes(b"")
    assert trained(run, "--train.steps", "4", "--train.keep_checkpoints", "1") == 0
    assert sorted(p.name for p in (run / "run/checkpoints").iterdir()) == ["damaged-step-00000002", "step-00000004"]
    said = capsys.readouterr().err
    assert "falling back to the previous checkpoint" in said and "kept as 'damaged-step-00000002'" in said


def test_a_run_of_damaged_checkpoints_alone_does_not_begin_again(run, capsys):
    """Not by itself: its weights and its log would be lost."""
    for path in checkpoint.find(run / "run/checkpoints"):
        (path / "model.safetensors").write_bytes(b"")
    before = files(run)
    for command in (["train", str(run / "run.yaml"), "--train.steps", "4"],
                    ["prepare", str(run / "run.yaml"), "--train.learning_rate", "1"],
                    ["evaluate", str(run / "run")], ["export", str(run / "run")]):  # fmt: skip
        assert main(command) == 4, command
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "no other complete checkpoint" in said and "or start from step 0: move" in said
        assert files(run) == before, command
    (run / "run/checkpoints").rename(run / "run/lost")
    assert trained(run, "--train.steps", "1") == 0


def test_a_modality_without_targets_is_refused_before_anything_is_written(run, capsys):
    before = files(run)
    assert trained(run, "--data.tasks", "{}", "--data.max_document_tokens", "60", "--train.steps", "4") == 2  # begun
    new = ["--out", str(run / "new"), "--data.max_document_tokens", "60", "--train.steps", "4"]
    assert trained(run, *new) == 3
    assert "no part 'image' fits in a batch" in capsys.readouterr().err
    assert files(run) == before


def test_a_run_given_by_its_folder_goes_on_there(run, capsys):
    moved = run / "moved é"
    (run / "run").rename(moved)
    assert main(["train", str(moved), "--train.steps", "3"]) == 0
    assert not (run / "run").exists() and checkpoint.latest(moved / "checkpoints").name == "step-00000003"


@pytest.mark.parametrize("text", ["[]", '{"train": []}', "{"])
def test_damaged_figures_are_said_before_the_work(run, capsys, text):
    (run / "run/timings.json").write_text(text)
    before = files(run)
    assert trained(run, "--train.steps", "4") == 4
    said = capsys.readouterr().err
    assert said.startswith("plait: timings: ") and said.count("\n") == 1 and files(run) == before
