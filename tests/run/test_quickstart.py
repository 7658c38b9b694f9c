"""The whole path, tiny: scenes, codecs, training, evaluation, samples, report; stopped and taken up again."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import yaml
from helpers import ROOT
from helpers.hub import local_hub
from helpers.iconify import write_package
from helpers.pages import blocks
from PIL import Image

from plait.cli import main
from plait.common.errors import ConfigError
from plait.run.leaderboard import paired
from plait.run.load import run_config
from plait.run.next_steps import next_steps

TINY = ["--prepare.documents", "192", "--prepare.validation_documents", "64",
        "--prepare.codec_documents", "128",
        "--prepare.codec_minutes", "0.05", "--prepare.shard_documents", "64", "--model.width", "32",
        "--model.num_layers", "2", "--model.ffn_width", "64", "--model.num_heads", "2", "--data.batch_tokens", "1024",
        "--train.minutes", "0", "--train.steps", "12", "--train.log_every", "2", "--train.validate_every", "6",
        "--train.checkpoint_every", "4", "--train.sample_every", "12",
        "--train.evaluate_every", "12", "--evaluate.captions", "8", "--evaluate.choices", "2", "--train.device", "cpu",
        "--evaluate.batches", "1", "--evaluate.images", "4", "--evaluate.clips",
        "4", "--evaluate.round_trips", "2", "--evaluate.free", "8"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A whole tiny quickstart, killed by Ctrl-C while it trains and then started again."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    command = [sys.executable, "-m", "plait", "quickstart", "--out", str(out), *TINY]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while time.monotonic() < until and first.poll() is None and not list((out / "checkpoints").glob("step-*")):
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGINT)
    _, errors = first.communicate(timeout=120)
    if first.returncode != 0:  # else it was done before the signal came
        assert first.returncode == 130, errors
        assert "rerun the same command" in errors and "Traceback" not in errors
    second = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert second.returncode == 0, second.stderr
    return out


def test_summary(run):
    summary = json.loads((run / "summary.json").read_text())
    for name in ("seconds_total", "peak_memory_gb", "val_loss/text", "val_loss/image", "val_loss/speech",
                 "caption_object_accuracy", "caption_object_chance", "image_codec_psnr", "packing_efficiency",
                 "speech_codec_recognised",
                 "tokens_per_second", "steps", "parameters"):  # fmt: skip
        assert isinstance(summary[name], int | float), name
    assert summary["steps"] == 12 and summary["packing_efficiency"] > 0.9
    assert {"commit", "seed", "torch", "python"} <= set(summary)
    assert all(not isinstance(v, dict | list) for v in summary.values())


def test_metrics_hold_each_step_once(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [r["step"] for r in rows if "tokens_per_second" in r]
    assert steps == sorted(set(steps)) and steps[-1] == 12
    assert [r["step"] for r in rows if "val_loss/seen/text" in r] == [6, 12]


def test_samples_are_real_files(run):
    records = [json.loads(line) for line in (run / "samples" / "samples.jsonl").read_text().splitlines()]
    tasks = {r["task"] for r in records}
    assert {"text>image", "image>text", "text>speech", "speech>text", "free"} <= tasks
    for record in records:
        for part in record["prompt"] + record["output"]:
            if part.get("file", "").endswith(".png"):
                assert Image.open(run / "samples" / part["file"]).size == (64, 64)
            elif part.get("file", "").endswith(".wav"):
                assert soundfile.info(run / "samples" / part["file"]).frames > 0
            else:
                assert part["text"] is not None


def test_samples_while_training(run):
    lines = (run / "progress" / "step-00000012" / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 4 * 2 + 2


def test_report_is_one_page(run):
    page = (run / "report.html").read_text()
    assert "OpenMoji" in page and "data:image/png;base64" in page and "data:audio" in page
    assert 'src="http' not in page


def test_generate_from_the_command_line(run, tmp_path, capsys):
    arguments = ["generate", str(run), "--text", "a fox on a blue background", "--count", "2", "--seed", "3"]
    for output, out in (("image", "a"), ("image", "b"), ("speech", "c")):
        assert main([*arguments, "--output", output, "--out", str(tmp_path / out), "--device", "cpu"]) == 0
    a, b = ([p.read_bytes() for p in sorted((tmp_path / n / "image").glob("*output*"))] for n in "ab")
    assert len(a) == 2 and a == b  # the same seed, the same images
    records = [json.loads(line) for line in (tmp_path / "c" / "samples.jsonl").read_text().splitlines()]
    assert [r["task"] for r in records] == ["text>speech"] * 2
    image = str(next((tmp_path / "a" / "image").glob("*output*")))
    assert main(["generate", str(run), "--image", image, "--output", "text", "--out", str(tmp_path / "d")]) == 0
    assert main(["generate", str(run), "--out", str(tmp_path / "e"), "--max-tokens", "8"]) == 0
    capsys.readouterr()
    assert main(["generate", str(run), "--image", "none.png", "--output", "text"]) == 3
    assert main(["generate", str(run), "--output", "smell"]) == 2
    assert "none.png" in capsys.readouterr().err


def test_a_run_may_be_moved(run, tmp_path):
    shutil.copytree(run, tmp_path / "moved")
    config = run_config(tmp_path / "moved")
    assert config.out == str(tmp_path / "moved") and config.data.path == str(tmp_path / "moved" / "data")


def test_inspect(run, tmp_path, capsys):
    assert main(["inspect", str(run), "--mask", str(tmp_path / "mask.png")]) == 0
    shown = capsys.readouterr().out
    assert "packed batch" in shown and "background" in shown
    assert Image.open(tmp_path / "mask.png").size[0] > 100


def test_evaluate_and_report_again(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    assert "report.html" in capsys.readouterr().out


def test_what_is_printed_at_the_end_works(run, tmp_path, monkeypatch):
    """Each of the six lines, as a shell runs it; the last one trains, so that it is given less to do."""
    monkeypatch.setenv("BROWSER", "true")
    steps = next_steps(run_config(run), run / "report.html", "quickstart")
    assert len(steps) == 6
    for line in steps:
        words = shlex.split(line[line.index("  ", 3) :])
        if "--prepare.source" in words:
            options = dict(zip(TINY[::2], TINY[1::2], strict=True))
            options |= {"--prepare.codec_documents": "32"}
            words[words.index("runs/mine")] = str(tmp_path / "mine")
            words += [word for option in options.items() for word in option]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (words, done.stderr)
    assert json.loads((tmp_path / "mine" / "summary.json").read_text())["documents_train"] > 32


def test_the_readmes_python_runs(run, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(run)
    shutil.copy(run / "samples" / "image" / "0000-truth0.png", tmp_path / "teapot.png")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(blocks("python")[0], scope)
    assert [scope[name].output[0][0] for name in ("image", "speech", "caption")] == ["image", "speech", "text"]


def test_the_pipeline_in_python(run):
    import plait

    pipeline = plait.load(run, device="cpu")
    sample = pipeline.generate("a red apple on a white background", output="image")[0]
    ((modality, image),) = sample.output
    assert modality == "image" and image.shape == (64, 64, 3)
    again = pipeline.generate(["a dog", "a cat"], output="speech", seed=1)
    assert [s.task for s in again] == ["text>speech"] * 2


def test_what_training_measures_is_what_the_command_measures(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (made,) = [{n: v for n, v in row.items() if n.startswith("made/")} for row in rows if "made/caption_bleu" in row]
    kept = json.loads((run / "evaluation.json").read_text())["figures"]
    assert len(made) > 50 and {"made/caption_cider", "made/speech_recognised"} <= made.keys()
    assert made == {f"made/{name}": kept[name] for name in (full.removeprefix("made/") for full in made)}
    assert "What it makes of held-out documents" in (run / "report.html").read_text()


def test_runs_beside_one_another(run, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    kept = json.loads((other / "evaluation.json").read_text())
    assert kept["items"]["caption_exact"]["documents"] and kept["figures"]["caption_cider_count"] == 8
    kept["items"]["caption_exact"]["parts"] = [1.0] * 8
    kept["items"]["caption_exact"]["parts"][:4] = [0.0] * 4
    (other / "evaluation.json").write_text(json.dumps(kept))
    assert main(["evaluate", str(run), str(other), "--paired"]) == 0
    said = capsys.readouterr().out
    assert "scores on held-out documents" in said and "CIDEr-D" in said and "weights (checksum)" in said
    assert re.search(r"image → text +text is the document’s own, letter by letter +50.0% +12.5% to 87.5% +8 +yes", said)
    assert re.search(r"image → text +ROUGE-L +0.0% +0.0% to 0.0% +8", said)
    assert main(["evaluate", str(run), "--paired"]) == 2
    assert "--paired: True is not allowed, it must be left out with one run" in capsys.readouterr().err
    kept["key"]["data"] = "of others"
    (other / "evaluation.json").write_text(json.dumps(kept))
    with pytest.raises(ConfigError, match="was evaluated on other data than"):
        paired(str(run), str(other), ["text", "image", "speech"])


def test_the_page_on_lora(run, tmp_path, monkeypatch, capsys):
    """docs/lora.md, its commands and its Python: with as little training as here, and drawings made for the test."""
    page = (ROOT / "docs" / "lora.md").read_text()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(run)
    write_package(tmp_path / "twemoji")
    monkeypatch.chdir(tmp_path)
    (commands,) = blocks("bash", page)
    done = []
    for line in commands.splitlines():
        program, *words = shlex.split(line)
        if program == "plait":
            assert main([*words, *(TINY if words[0] in ("prepare", "train") else [])]) == 0, capsys.readouterr().err
            done.append(words[0])
    assert done == ["export", "prepare", "train", "export", "generate"]
    images = (run / "generated" / "image").glob("*output*")
    assert Image.open(max(images, key=lambda path: path.stat().st_mtime)).size == (64, 64)
    for code in blocks("python", page):
        if "peft" not in code or importlib.util.find_spec("peft"):
            exec(code, {})
    (settings,) = blocks("yaml", page)
    chosen = yaml.safe_load(settings)
    whole = yaml.safe_load((ROOT / "configs" / "style_lora.yaml").read_text())
    assert chosen["model"]["towers"] == whole["model"]["towers"]
    assert chosen["train"]["init_from"] == whole["train"]["init_from"]
    assert chosen["data"]["sources"] == whole["data"]["sources"]


def test_the_page_on_the_hub(run, tmp_path):
    """docs/hub.md, its commands and its Python, against a Hub on this machine."""
    page = (ROOT / "docs" / "hub.md").read_text()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(run)
    (commands,) = blocks("bash", page)
    lines = [line for line in commands.splitlines() if line.startswith("plait")]
    assert [shlex.split(line)[1] for line in lines] == ["export", "generate"]
    script = "\n".join(line.replace("plait", f"{sys.executable} -m plait", 1) for line in lines)
    with local_hub("you") as hub:
        environment = hub.environment(tmp_path / "hf")
        for program in (["bash", "-ec", script], [sys.executable, "-c", "\n".join(blocks("python", page))]):
            done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
        assert set(hub.repos) == {"you/teapot", "you/weights", "you/copy"} and hub.repos["you/weights"].private
        card = hub.repos["you/teapot"].files("main")[1]["README.md"].decode()
    assert 'plait.load("you/teapot")' in card and "names the right thing" in card
    assert list((tmp_path / "generated" / "image").glob("*output*")) and (tmp_path / "tuned" / "checkpoint-20").is_dir()


def test_an_export_reads_and_makes_media_without_the_data(run, tmp_path):
    import plait

    assert main(["export", str(run), "--ema", "--out", str(tmp_path / "model")]) == 0
    names = {"README.md", "codecs", "config.json", "generation.json", "model.safetensors", "modeling_plait.py"}
    assert {p.name for p in (tmp_path / "model").iterdir()} == names
    own, saved = plait.load(run, device="cpu"), plait.load(tmp_path / "model", device="cpu")
    assert saved.config == own.config and saved.diffusion == own.diffusion
    for output in ("image", "speech", "text"):
        a, b = (p.generate("a red apple on a white background", output, seed=3)[0].output for p in (own, saved))
        assert [name for name, _ in a] == [name for name, _ in b]
        assert all(x == y if isinstance(x, str) else (x == y).all() for (_, x), (_, y) in zip(a, b, strict=True))
    assert not saved.makes_edits  # as its tasks say
    card = (tmp_path / "model" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "plait" and head["pipeline_tag"] == "any-to-any" and "speech" in head["tags"]
    assert 'plait.load("model")' in card and "names the right thing" in card and "OpenMoji" in card
    assert main(["export", str(run), "--step", "8", "--out", str(tmp_path / "older")]) == 0
    assert "Nothing was measured of these weights" in (tmp_path / "older" / "README.md").read_text()
