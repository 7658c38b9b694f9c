"""Every number of every setting, argument and option is taken rightly or refused in one sentence that names it."""

import dataclasses
import math
import re
import typing
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.models import model_config, random_documents

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.cli import _parser, main
from plait.common.errors import ConfigError, PlaitError
from plait.compare.study import StudyConfig
from plait.config.bounds import MAPPINGS, Bounds, _holds_numbers, as_number
from plait.config.file import from_dict, load, to_dict
from plait.config.generation import DiffusionConfig, SamplingConfig
from plait.config.model import ModalityConfig, ModelConfig
from plait.config.run import RunConfig
from plait.config.run_records import RECORDS
from plait.config.shipped import _field_texts
from plait.generate.request import Request, check_request
from plait.model.mot import MixtureOfTransformers
from plait.plan.estimate import Machines
from plait.run.arguments import Parser
from plait.train.export import export

NOT_FINITE = [math.nan, math.inf, -math.inf]
NO_NUMBER = ["text", "", True, [1], 10**5000]
WRONG = {int: [*NOT_FINITE, *NO_NUMBER, 1.5, "1", 10**400], float: [*NOT_FINITE, *NO_NUMBER, 10**400]}
"""What is never a number of this kind, in Python."""
EDGE = [-1, 0, 1, 2**63 - 1, np.int64(3)]
"""What a bound decides on: it is taken as it is, or refused."""


def classes(kind: Any, found: dict[type, None] | None = None) -> list[type]:
    """Return every dataclass within a config's type."""
    found = {} if found is None else found
    if dataclasses.is_dataclass(kind) and kind not in found:
        found[kind] = None
        for inner in typing.get_type_hints(kind).values():
            classes(inner, found)
    for inner in typing.get_args(kind):
        classes(inner, found)
    return list(found)


def leaf(kind: Any) -> tuple[type, Any]:
    """Return the number within a field's type, and what puts a value in its place."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in (int, float):
        return kind, lambda value: value
    if origin in (list, tuple, *MAPPINGS):
        inner, place = leaf(arguments[1] if origin in MAPPINGS else arguments[0])
        wraps = {
            dict: lambda v: {"text": place(v)},
            list: lambda v: [place(v)] * 2,
            tuple: lambda v: (place(v), place(v)),
        }
        return inner, wraps[origin]
    return leaf(next(k for k in arguments if _holds_numbers(k)))


SETTINGS = [
    pytest.param(cls, name, *leaf(kind), id=f"{cls.__name__}.{name}")
    for cls in [*classes(RunConfig), *classes(StudyConfig), Request, Machines]
    for name, kind in typing.get_type_hints(cls).items()
    if name != "SECTION" and _holds_numbers(kind)
]


def needed(cls: type) -> dict[str, Any]:
    """Return values of the fields that have no default."""
    values = {
        "model": model_config(), "claim": "a", "value": 1.0, "base": "quickstart", "learning_rates": [1.0, 2.0, 3.0],
        "arms": {"dense": {}}, "budget": {"steps": 1}, "modalities": model_config().modalities,
    }  # fmt: skip
    values["arms"] = from_dict(StudyConfig, {"base": "", "arms": {"dense": {}}, "budget": {"steps": 1}}).arms
    values["budget"] = from_dict(StudyConfig, {"base": "", "arms": {"dense": {}}, "budget": {"steps": 1}}).budget
    names = {f.name for f in dataclasses.fields(cls)}
    return {k: v for k, v in values.items() if k in names and not (k == "value" and cls.__name__ != "PaperConfig")}


def one_sentence(error: PlaitError, name: str) -> None:
    text = str(error)
    assert "\n" not in text and len(text) < 600 and " is not allowed, it must be " in text, text
    assert name in text.partition(":")[0], text


def test_there_are_settings_and_a_field_without_bounds_is_found_too():
    ids = {p.id for p in SETTINGS}
    assert len(ids) > 90
    assert {"TrainConfig.steps", "DataConfig.tasks", "GenerateConfig.grids", "RunConfig.seed", "TowerConfig.width",
            "SourceConfig.weight", "DiffusionConfig.logit_mean", "Request.seed"} <= ids  # fmt: skip


@pytest.mark.parametrize(("cls", "name", "kind", "place"), SETTINGS)
def test_an_object_takes_a_number_or_names_the_field(cls, name, kind, place):
    for value in WRONG[kind]:
        with pytest.raises(ConfigError) as error:
            cls(**(needed(cls) | {name: place(value)}))
        one_sentence(error.value, name)
    for value in EDGE:
        try:
            made = cls(**(needed(cls) | {name: place(value)}))
        except ConfigError as error:
            assert "\n" not in str(error)
            continue
        found = leaf_of(getattr(made, name))
        assert found == kind(value) and type(found) is kind


def leaf_of(value: Any) -> Any:
    while isinstance(value, dict | list | tuple):
        value = next(iter(value.values() if isinstance(value, dict) else value))
    return value


def paths() -> list:
    """Return the numeric settings of a run with the path of each in its YAML file."""
    found = []

    def walk(cls: type, path: tuple[str, ...]) -> None:
        for name, kind in typing.get_type_hints(cls).items():
            inner = next((k for k in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(k)), None)
            if inner is not None:
                walk(inner, (*path, name) if inner is kind else (*path, name, "text"))
            elif name != "SECTION" and _holds_numbers(kind):
                key, (number, place) = ".".join((*path, name)), leaf(kind)
                found.append(pytest.param(key, number, place, id=key))

    walk(RunConfig, ())
    hidden = tuple(f"{section}." for section in RECORDS)  # in the file they stand in the model's own records
    names = [f"model.{p.id}" if p.id.startswith(hidden) else p.id for p in found]
    return [pytest.param(name, *p.values[1:], id=name) for name, p in zip(names, found, strict=True)]


@pytest.mark.parametrize(("key", "kind", "place"), paths())
def test_yaml_and_the_command_line_take_a_number_or_name_the_setting(key, kind, place, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model": {"modalities": {"text": {"vocab_size": 9}, "image": {"vocab_size": 9}}}}))
    texts = [".nan", ".inf", "-.inf", "nan", "text", "true", "1" * 400, "9" * 5000] + (["1.5", "1e3"] * (kind is int))
    for text in texts:
        value = place("@")
        written = yaml.safe_dump(value, default_flow_style=True).replace("'@'", text).removesuffix("\n...\n").strip()
        with pytest.raises(ConfigError) as error:
            load(path, [f"{key}={text if value == '@' else written}"])
        assert "\n" not in str(error.value) and key.split(".")[-1] in str(error.value)
    for text in ("-1", "0", "1"):
        written = yaml.safe_dump(place(int(text)), default_flow_style=True).removesuffix("\n...\n").strip()
        try:
            found = to_dict(load(path, [f"{key}={written}"]))
        except PlaitError as error:
            assert "\n" not in str(error)
            continue
        for name in key.split("."):
            found = found[name]
        assert leaf_of(found) == int(text) and type(leaf_of(found)) is kind


def test_a_whole_number_whose_zero_means_something_says_what():
    for cls in classes(RunConfig):
        texts = _field_texts(cls)
        for f in dataclasses.fields(cls):
            bounds = f.metadata.get("bounds")
            if f.type is int and bounds and bounds.at_least == 0:
                assert re.search(r"\b0\b", texts[f.name]), f"{cls.__name__}.{f.name}: {texts[f.name]}"


def options() -> list:
    parser: Parser = _parser()
    return [
        pytest.param(command, action.option_strings[0], id=f"{command} {action.option_strings[0]}")
        for command, its in parser.commands.items()
        for action in its._actions
        if action.option_strings
        and action.type is not None
        and action.option_strings[0] not in ("--also", "--arms", "--task", "--towers")
    ]


@pytest.mark.parametrize(("command", "option"), options())
def test_an_option_takes_a_number_or_names_itself(command, option, tmp_path, capsys):
    name = "text={}" if option == "--mix" else "{}"
    for value in ("nan", "inf", "-inf", "text", "", "9" * 400, "9" * 5000, "[1]"):
        if (option, value) == ("--seeds", ""):
            continue  # no seeds are all seeds
        assert main([command, str(tmp_path / "none"), option, name.format(value)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"plait: command line: argument {option}: ") and said.count("\n") == 1, said
    for value in ("-1", "0", "1.5"):
        code = main([command, str(tmp_path / "none.yaml"), option, name.format(value)])
        said = capsys.readouterr().err
        assert code in (2, 4) and said.count("\n") == 1 and (option in said or "none" in said), said


def test_the_options_that_the_issue_of_numbers_is_about_are_found():
    found = {p.id for p in options()}
    assert {"generate --count", "generate --seed", "generate --temperature", "generate --max-tokens", "export --step",
            "export --file-gb", "plan --gpus", "plan --memory", "plan --tokens", "plan --mix", "inspect --documents",
            "compare --warmup", "compare --seeds"} <= found  # fmt: skip


def test_arguments_of_functions(rng, tmp_path):
    config = model_config()
    documents = random_documents(rng, 2)
    calls = {
        "seed": (int, lambda v: MixtureOfTransformers(config, seed=v)),
        "pad_rows_to": (int, lambda v: pack(documents, config, pad_rows_to=v)),
        "--file-gb": (float, lambda v: export(tmp_path, file_gb=v)),
        "--step": (int, lambda v: export(tmp_path, step=v)),
    }
    for name, (kind, call) in calls.items():
        for value in WRONG[kind]:
            with pytest.raises(ConfigError) as error:
                call(value)
            one_sentence(error.value, name)
    for value in (-1, 0):
        MixtureOfTransformers(config, seed=value)
        with pytest.raises(ConfigError, match=r"^pad_rows_to: .* at least 1$"):
            pack(documents, config, pad_rows_to=value)


LATENTS = np.zeros((4, 3), np.float32)
PARTS = [
    ({"ids": np.array([1.5])}, "ids of 'text': an array of float64"),
    ({"ids": np.array([True])}, "ids of 'text': an array of bool"),
    ({"ids": "abc"}, "ids of 'text': 'abc'"),
    ({"ids": [-1, 3]}, "ids of 'text': -1"),
    ({"ids": [3, 40]}, "ids of 'text': 40"),
    ({"ids": np.zeros((2, 2), int)}, r"ids of 'text': \[2, 2\]"),
    ({}, r"values of 'text': \[\]"),
    ({"ids": [1], "latents": LATENTS}, r"values of 'text': \['ids', 'latents'\]"),
    ({"modality": "image", "ids": []}, "length of 'image': 0"),
    ({"modality": "image", "ids": [1] * 4, "grid": (3, 2)}, r"grid of 'image': \(3, 2\)"),
    ({"modality": "image", "ids": [1] * 4, "grid": (-2, -2)}, "grid of 'image': -2"),
    ({"modality": "image", "ids": [1] * 4, "loss": math.nan}, "loss of 'image': nan"),
    ({"modality": "imag", "ids": [1]}, "modality: unknown name 'imag'"),
    ({"modality": "mel", "ids": [1]}, r"values of 'mel': \['ids'\]"),
    ({"modality": "mel", "latents": LATENTS + math.inf}, "latents of 'mel': 'nan or inf'"),
    ({"modality": "mel", "latents": LATENTS[0]}, r"latents of 'mel': \[3\]"),
    ({"modality": "mel", "latents": LATENTS[:, :2]}, r"latents of 'mel': \[4, 2\]"),
    ({"modality": "mel", "latents": LATENTS[:0]}, "length of 'mel': 0"),
]
"""Parts that no model of `tiny` takes, with the name and the value that the sentence says."""


@pytest.mark.parametrize(("values", "sentence"), PARTS)
def test_parts_of_a_callers_own(values, sentence):
    """An id beyond a modality's own would be one of the next modality, without a word."""
    tiny = ModelConfig({"text": ModalityConfig(vocab_size=40), "image": ModalityConfig(vocab_size=9),
                        "mel": ModalityConfig("diffusion", latent_channels=3)}, width=8, num_heads=2)  # fmt: skip
    settings = {"grids": {}, "max_length": 20, "diffusion": DiffusionConfig()}
    part = Part(**{"modality": "text"} | values)
    with pytest.raises(ConfigError, match=f"^document 1: {sentence}"):
        pack([Document([Part("text", [39])]), Document([part])], tiny)
    with pytest.raises(ConfigError, match=f"^generate.prompt: {sentence}"):
        check_request(Request([part]), tiny, **settings)


def test_what_is_no_document_or_part():
    for documents in ([], "text", None, [Part("text", [1])]):
        with pytest.raises(ConfigError, match=r"^documents: .* a list of plait.Document"):
            pack(documents, model_config())
    with pytest.raises(ConfigError, match=r"^document 0: role of 'text': 'made' .* understanding or generation"):
        pack([Document([Part("text", [1], role="made")])], model_config())
    for prompt in ("text", None, [3]):
        with pytest.raises(ConfigError, match=r"^generate.prompt: .* a list of plait.Part"):
            Request(prompt)


def test_a_number_is_of_its_kind_and_within_its_bounds():
    assert as_number(np.float32(0.5), float, "a") == 0.5 and type(as_number(3, float, "a")) is float
    for bounds, text in (
        (Bounds(at_least=0), "0 or more"), (Bounds(at_least=1), "at least 1"), (Bounds(above=0), "above 0"),
        (Bounds(at_least=0, below=1), "in [0, 1)"), (Bounds(above=0, at_most=1), "in (0, 1]"), (Bounds(), ""),
    ):  # fmt: skip
        assert str(bounds) == text
    with pytest.raises(ConfigError, match=r"^generate.sampling.top_k: 1\.5 is not allowed, it must be a whole number$"):
        SamplingConfig(top_k=1.5)
