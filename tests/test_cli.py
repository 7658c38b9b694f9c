"""The command line: one sentence and an exit code for what a user can get wrong, help that teaches."""

import subprocess
import sys

import pytest

from plait.cli import main


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["train", "none.yaml"], 2, "there is no file 'none.yaml'"),
        (["train", "quickstrat"], 2, "did you mean 'quickstart'?"),
        (["train", "quickstart", "--train.step", "5"], 2, "did you mean 'steps'?"),
        (["train", "quickstart", "--train.steps"], 2, "'--train.steps' has no value"),
        (["train", "quickstart", "rubbish"], 2, "unrecognized arguments: rubbish"),
        (["train", "quickstart", "--out", "{tmp}", "--train.device", "cuda:77"], 5, "'cuda:77' is absent"),
        (["train", "quickstart", "--out", "{tmp}"], 3, "make it with plait prepare"),
        (["generate", "{tmp}", "--text", "a fox"], 4, "holds no config.yaml"),
        (["generate", "{tmp}", "--txt", "a fox"], 2, "did you mean '--text'?"),
        (["report", "{tmp}"], 4, "holds no config.yaml"),
        (["evaluate", "{tmp}/none"], 4, "holds no config.yaml"),
        (["prepare", "quickstart", "--out", "{tmp}", "--prepare.source", "{tmp}/none.jsonl"], 3, "none.jsonl"),
    ],
)
def test_mistakes_get_one_sentence(arguments, code, sentence, tmp_path, capsys):
    assert main([a.format(tmp=tmp_path) for a in arguments]) == code
    message = capsys.readouterr().err
    assert message.startswith("plait: ") and message.count("\n") == 1
    assert sentence in message


@pytest.mark.parametrize("command", ["quickstart", "prepare", "train", "evaluate", "generate", "report", "inspect"])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: plait" in capsys.readouterr().out


def test_no_command_prints_the_help(capsys):
    assert main([]) == 0
    assert "exit codes" in capsys.readouterr().out
    assert main(["settings"]) == 0
    assert "train.learning_rate" in capsys.readouterr().out


def test_python_m_plait():
    run = subprocess.run([sys.executable, "-m", "plait", "train", "none.yaml"], capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.startswith("plait: config: there is no file")


def test_help_is_quick_to_import():
    """The help needs no torch."""
    code = "import sys, plait.cli; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
