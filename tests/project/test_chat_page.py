"""docs/chat.md, followed literally: its rows, config and commands are taken from the page, and run."""

import json
import re
import shlex

import numpy as np
import pytest
from helpers import ROOT
from helpers import language_models as llms
from helpers.pages import blocks
from PIL import Image

from plait.cli import main
from plait.train.metrics import read_metrics

PAGE = (ROOT / "docs" / "chat.md").read_text()
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's files in a new folder; a small random model stands where the page names one on the Hub."""
    folder = tmp_path_factory.mktemp("chat")
    llms.save(llms.model("llama tied", num_hidden_layers=2).float(), folder / MODEL)
    config = blocks("yaml", PAGE)[0]
    assert f"path: {MODEL}" in config and config.startswith("# file: chat.yaml")
    (folder / "chat.yaml").write_text(config)
    rows, asked = blocks("json", PAGE)
    rows = [json.loads(line) for line in rows.splitlines()]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "img").mkdir()
        Image.fromarray(np.full((40, 30, 3), 200, np.uint8)).save("img/fox.png")
        text = "".join(json.dumps(row) + "\n" for row in rows)  # no two are alike, so that some are held out
        lines = [re.sub(r"([a-z]+[.?])(?=\")", rf"\1 ({i})", text) for i in range(8)]
        (folder / "chats.jsonl").write_text("".join(lines))
        (folder / "question.json").write_text(asked)
        yield folder


def test_the_page(folder, capsys):
    commands = [line for block in blocks("bash", PAGE) for line in block.strip().splitlines()]
    assert sum("--chat" in command for command in commands) == 6
    for command in commands:
        program, *arguments = shlex.split(command)
        capsys.readouterr()
        assert program == "plait" and main(arguments) == 0, command
        said = capsys.readouterr().out
        if "--chat" in command and "--output" not in command:
            assert "<|im_end|>" not in said and "samples" not in said
    report = json.loads((folder / "runs/chat/data/report.json").read_text())
    assert report["figures"]["broken_rows"] == 0 and report["figures"]["text_codec_exact"] == 1.0
    rows = [r for r in read_metrics(folder / "runs/chat/metrics.jsonl") if "loss/text" in r]
    assert rows and all(np.isfinite(r["loss/text"]) for r in rows)
    assert list((folder / "runs/chat/generated/image").glob("*output*.png"))


def test_the_python_of_the_page(folder, capsys):
    if not (folder / "runs").exists():
        pytest.skip("the commands of the page make the run")
    scope: dict = {}
    exec(blocks("python", PAGE)[0], scope)
    assert len(scope["messages"]) == 3 and capsys.readouterr().out.count("\n") >= 2
