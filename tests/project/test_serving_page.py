"""docs/serving.md: its clients in curl, Python and JavaScript run against a server; its options are the command's."""

import contextlib
import io
import json
import re
import subprocess

import pytest
from helpers import ROOT
from helpers.pages import blocks
from helpers.served import served, small_pipeline

from plait.cli import _parser

PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
THERE = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with served(small_pipeline(tmp_path_factory.mktemp("model"), chat=False)) as where:
        yield where


def test_curl(address, tmp_path):
    (commands,) = [block for block in blocks("bash", PAGE) if "curl" in block]
    said = subprocess.run(
        ["bash", "-ec", commands.replace(THERE, address)], cwd=tmp_path, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    image, heard = said.stdout.replace("}{", "}\n{").splitlines()
    assert json.loads(image)["choices"][0]["message"]["content"][0]["type"] == "image_url"
    assert set(json.loads(heard)) == {"text", "seed"}
    assert (tmp_path / "teapot.wav").read_bytes()[:4] == b"RIFF"


def test_python(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python", PAGE)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code.replace(THERE, address), {})
    assert said.getvalue() and (tmp_path / "teapot.png").read_bytes()[:4] == b"\x89PNG"


def test_javascript(address, browser):
    (code,) = blocks("javascript", PAGE)
    browser.open(address)
    lines = code.replace(THERE, address).replace("console.log(", "return (")
    assert browser.run(f"(async () => {{ {lines} }})()")


def test_options_and_endpoints():
    known = {option for action in _parser().commands["serve"]._actions for option in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE.split("## In a container")[0])) <= known | {"--output"}
    app = (ROOT / "plait" / "serve" / "app.py").read_text(encoding="utf-8")
    for path in re.findall(r"`(?:GET|POST) (/[\w/.]+)`", PAGE):
        assert f'"{path}"' in app or path in ("/docs", "/openapi.json"), path
