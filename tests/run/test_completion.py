"""A shell completes commands, options and settings from the script that plait prints."""

import subprocess

import pytest

from plait.cli import main

pytest.importorskip("shtab")


def completed(script, *words: str) -> list[str]:
    """Return what bash offers for the last word."""
    line = f"COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}"
    ask = line + '; _shtab_plait; echo "${COMPREPLY[@]}"'
    shell = subprocess.run(["bash", "-c", f"source {script}; {ask}"], capture_output=True, text=True, check=True)
    return shell.stdout.split()


def test_bash_completes_commands_options_and_settings(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "plait.sh"
    script.write_text(capsys.readouterr().out)
    assert completed(script, "plait", "qui") == ["quickstart"]
    assert completed(script, "plait", "train", "--train.st") == ["--train.steps"]
    assert completed(script, "plait", "serve", "--api") == ["--api-key-file"]
    assert completed(script, "plait", "serve", "--train.st") == []  # it takes no settings


def test_other_shells_and_none(capsys):
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef plait")
    assert main(["completion", "fish"]) == 2
    assert "invalid choice: 'fish'" in capsys.readouterr().err
