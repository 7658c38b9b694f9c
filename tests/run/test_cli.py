"""The command line: one sentence and an exit code for what a user can get wrong, help that teaches."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from plait.cli import _parser, main
from plait.common.errors import ConfigError
from plait.config.file import load
from plait.config.model import ModalityConfig, ModelConfig
from plait.config.shipped import config_path, grids_from, sampling_from
from plait.run import commands
from plait.run.load import run_config
from plait.train.acceptance import keep_config


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["train", "none.yaml"], 2, "there is no file 'none.yaml'"),
        (["train", "quickstrat"], 2, "did you mean 'quickstart'?"),
        (["train", "quickstart", "--train.step", "5"], 2, "did you mean 'steps'?"),
        (["train", "quickstart", "--train.steps"], 2, "'--train.steps' has no value"),
        (["train", "quickstart", "rubbish"], 2, "unrecognized arguments: rubbish"),
        (["train", "quickstart", "--out", "{tmp}", "--train.device", "cuda:77"], 5, "'cuda:77' is absent"),
        (["train", "quickstart", "--out", "{tmp}"], 3, "run `plait prepare`"),
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


@pytest.mark.parametrize("command", list(_parser().commands))
def test_help_is_that_of_the_command(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown == _parser().commands[command].format_help() and shown.startswith(f"usage: plait {command} ")
    assert ("Any setting of the config" in shown) == _parser().commands[command].takes_settings


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


def told(arguments: list[str], monkeypatch) -> tuple:
    """Return what a command line asks of `plait train` or `plait generate`: its parsed arguments."""
    seen = []
    for name in ("train", "generate", "compare"):
        monkeypatch.setattr(commands, name, seen.append)
    assert main(arguments) == 0
    return seen[0]


@pytest.mark.parametrize(
    "words",
    [
        ["--train.steps", "500", "--seed", "-1", "quickstart"],
        ["quickstart", "--train.steps", "500", "--seed", "-1"],
        ["--train.steps=500", "quickstart", "--seed=-1"],
        ["--train.steps", "500", "quickstart", "--seed", "-1"],
    ],
)
def test_settings_may_stand_anywhere(words, monkeypatch):
    chosen = told(["train", *words], monkeypatch)
    assert chosen.config == "quickstart" and chosen.overrides == ["train.steps=500", "seed=-1"]


def test_values_of_settings_and_options_may_begin_with_a_dash_and_hold_equals_signs(monkeypatch):
    chosen = told(["train", "--out", "a=b=c", "x.yaml", "--data.path=-1=x"], monkeypatch)
    assert chosen.overrides == ["out=a=b=c", "data.path=-1=x"]
    chosen = told(["generate", "--text", "-5 degrees", "run", "--seed", "-3", "--text=--bold"], monkeypatch)
    assert chosen.prompt == [{"text": "-5 degrees"}, {"text": "--bold"}] and chosen.seed == -3
    chosen = told(["compare", "--from-logs", "a", "b", "--warmup", "3"], monkeypatch)
    assert chosen.from_logs == ["a", "b"] and chosen.warmup == 3 and chosen.overrides == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--restart", "quickstart"], "plait train knows no '--restart'"),
        (["prepare", "--restrat", "quickstart"], "plait prepare knows no '--restrat'; did you mean '--restart'?"),
        (["train", "quickstart", "--tran.steps", "5"], "plait train knows no '--tran.steps'; did you mean '--train'?"),
        (["train", "--train.steps", "--seed", "1", "quickstart"], "'--train.steps' has no value, give --train.steps V"),
        (["generate", "run", "--count", "many"], "argument --count: 'many' is not allowed, it must be a whole number"),
        (["trian"], "argument command: invalid choice: 'trian'"),
        (["train"], "the following arguments are required: config; see plait train --help"),
        (["compare", "--seed", "0", "chameleon"], None),
    ],
)
def test_unknown_options_are_named(arguments, sentence, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("plait: ") and said.count("\n") == 1
    if sentence:
        assert said.startswith(f"plait: command line: {sentence}")


TEXTS = ["0123", "on", "no", "null", "~", "1e3", "~/x", "2020-01-01", "[a", "'quoted'", "a: b", "", " x ", "=", "-"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_settings_take_the_text_as_it_is(text):
    config = load(
        config_path("quickstart"), [f"name={text}", "out=x", f"data.path={text or 'x'}", f"train.device={text}"]
    )
    assert config.name == text and config.train.device == text and config.data.path == (text or "x")
    source = load(config_path("quickstart"), [f"prepare.source={text}"]).prepare.source
    assert source == text


def test_other_settings_are_read_as_yaml_by_their_type():
    settings = ["prepare.source=[a.parquet, on, 012]", "train.trackers=[wandb]", "train.learning_rate=1e-3",
                "train.compile=on", "model.num_kv_heads=null", "model.untied={0-1: [ffn], 2: [qkv, o]}",
                "prepare.columns={on: image, 1: text}", "train.schedule=linear",
                "generate.max_tokens={text: 7}"]  # fmt: skip
    config = load(config_path("quickstart"), settings)
    assert config.prepare.source == ["a.parquet", "on", "012"] and config.train.learning_rate == 1e-3
    assert config.train.compile is True and config.model.num_kv_heads == config.model.num_heads
    assert config.model.untied_at(0) == {"ffn"} and config.model.untied_at(2) == {"qkv", "o"}
    assert config.prepare.columns == {"on": "image", "1": "text"} and config.generate.max_tokens == {"text": 7}
    assert load(config_path("quickstart"), [("name", "on"), ("train.steps", 3)]).train.steps == 3
    with pytest.raises(ConfigError, match=r"^train\.steps: '\[' is not allowed, it must be YAML"):
        load(config_path("quickstart"), ["train.steps=["])


def test_the_folder_of_a_run_may_have_any_name(tmp_path):
    for name in ("0123", "on", "a'b", "1e3", "null"):
        config = load(config_path("quickstart"), [("out", str(tmp_path / name)), ("name", name)])
        keep_config(config)
        assert run_config(tmp_path / name, [f"out={name}"]).out == name
        assert run_config(tmp_path / name).out == str(tmp_path / name) and run_config(tmp_path / name).name == name


MODEL = "model: {modalities: {text: {}}, width: 16, num_heads: 2, num_layers: 1}\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("? [1, 2]\n: 3\n", "line 1 has a list or a mapping where a name must stand"),
        ("train:\n  ? {a: 1}\n  : 3\n", "line 2 has a list or a mapping where a name must stand"),
        ("train:\n\tsteps: 3\n", "found character '\\t' that cannot start any token in line 2"),
        ("a: [1, 2\n", "in line 2"),
        (MODEL + 'out: "a\\0b"\n', "out: "),
        (MODEL + 'name: "\\ud800"\n', "name: "),
        (MODEL + "name: ''\n", "name: '' is not allowed, it must be not empty where out is"),
    ],
)
def test_what_yaml_may_hold_and_no_setting_can_be(tmp_path, text, sentence):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "x.yaml")
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_setting_that_is_given_two_values_is_refused(capsys):
    assert main(["train", "quickstart", "--train.steps", "3", "--train.steps=4"]) == 2
    assert "--train.steps stands twice ('3' and '4'), leave one out" in capsys.readouterr().err


def test_options_of_generate_that_would_change_nothing_are_refused():
    model = ModelConfig({"text": ModalityConfig()}, width=16, num_heads=2, num_layers=1)
    for option in ("temperature", "steps"):
        chosen = _parser().parse_args(["generate", "x", f"--{option}=3"])
        options = {option: getattr(chosen, option)}
        if option == "temperature":
            assert sampling_from({}, model, options)["text"].temperature == 3
        else:
            with pytest.raises(ConfigError, match="--steps: 3 is not allowed, it must be left out, as no modality"):
                sampling_from({}, model, options)
    with pytest.raises(ConfigError, match="--grid: '8x8' is not allowed, it must be left out: it is the extent"):
        grids_from("8x8", "text", model)


@pytest.mark.parametrize("how", ["torch", "numpy", "python"])
def test_too_little_memory_is_one_sentence(how, monkeypatch, capsys):
    """Sizes that no machine has, asked of the real allocators."""

    def ask(chosen):
        if how == "python":
            bytearray(1 << 61)
        np.ones(1 << 58) if how == "numpy" else torch.ones(1 << 58)

    monkeypatch.setattr("plait.run.commands.report", ask)
    assert main(["report", "x"]) == 5
    said = capsys.readouterr().err
    assert said.startswith("plait: memory: this needs more memory than") and said.count("\n") == 1


def test_other_errors_are_not_taken_for_memory(monkeypatch):
    def fail(chosen):
        raise RuntimeError("something else")

    monkeypatch.setattr("plait.run.commands.report", fail)
    with pytest.raises(RuntimeError, match="something else"):
        main(["report", "x"])
