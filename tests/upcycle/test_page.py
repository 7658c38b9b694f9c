"""docs/language_models.md, followed literally on a small random model: its commands, its YAML and its Python."""

import re
import shlex

import pytest
from helpers import ROOT
from helpers import language_models as llms

from plait.cli import main
from plait.config.file import load, read_yaml
from plait.model.pretrained import CODE
from plait.upcycle.families import FAMILIES
from plait.upcycle.write import OTHERS

PAGE = (ROOT / "docs" / "language_models.md").read_text()
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder, in which a small random model stands where the page names one on the Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    llms.save(llms.model("llama tied", num_hidden_layers=2).float(), tmp_path / MODEL)
    return tmp_path


def test_the_page_can_be_followed(here, capsys):
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 4
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "plait" and main(words) == 0, capsys.readouterr().err
        if words[0] == "upcycle":
            written = {p.name for p in (here / "smollm2").iterdir()}
            assert written == {"codecs", "config.json", "model.safetensors", CODE, "train.yaml"}
            said = capsys.readouterr()
            assert "left out: 20 of rows of ids that its tokenizer does not have" in said.out + said.err
    assert (here / "told" / "samples.jsonl").read_text().count("\n") == 1
    capsys.readouterr()
    for block in blocks("python"):
        exec(block, {})
    assert re.search(r"\[\('text', '.*'\)\]", capsys.readouterr().out, flags=re.DOTALL)


def test_other_modalities_are_the_quickstarts():
    modalities = read_yaml(ROOT / "configs" / "quickstart.yaml", "config")["model"]["modalities"]
    assert {name: record for name, record in modalities.items() if name != "text"} == OTHERS


def test_its_yaml_is_a_config(tmp_path):
    (text,) = blocks("yaml")
    (tmp_path / "a.yaml").write_text(text)
    config = load(tmp_path / "a.yaml")
    assert config.frozen_towers == ["text"] and config.model.of_tower("image", "qk_norm")


def test_it_names_every_family():
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)) == set(FAMILIES)


def test_a_second_upcycle_replaces_the_first_and_nothing_else(here, capsys):
    assert main(["upcycle", "--from", MODEL, "--out", "smollm2"]) == 0
    before = (here / "smollm2" / "config.json").read_bytes()
    assert main(["upcycle", "--from", MODEL, "--out", "smollm2", "--towers", "text,speech"]) == 0
    assert (here / "smollm2" / "config.json").read_bytes() == before
    assert "speech_tokens" in (here / "smollm2" / "train.yaml").read_text()
    (here / "smollm2" / "mine.txt").write_text("keep me")
    (here / "elsewhere").mkdir()
    for arguments, sentence in (
        (["--out", "smollm2"], "--out: 'smollm2' holds 'mine.txt' and is no earlier upcycle, name another folder"),
        (["--out", "b", "--towers", "image,text"], "--towers: 'image,text' is not allowed, it must begin with text"),
        (["--out", "b", "--towers", "text,vidoe"], "--towers: unknown name 'vidoe', allowed: image, speech, text"),
        (["--out", "b", "--from", "elsewhere"], "--from: 'elsewhere' holds no config.json"),
        (["--out", "b", "--from", "smollm2"], "--from: 'smollm2' is a model of plait's own, not a language model"),
        (["--out", "b", "--from", "no/such-model"], "--from: 'no/such-model' is no folder here, and it cannot be"),
    ):
        assert main(["upcycle", "--from", MODEL, *arguments]) not in (0, None)
        assert sentence in capsys.readouterr().err
        assert not (here / "b").exists()
    assert (here / "smollm2" / "mine.txt").read_text() == "keep me"
