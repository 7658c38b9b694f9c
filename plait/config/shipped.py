"""The configs that come with plait, and the list of all settings."""

import dataclasses
import inspect
import itertools
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plait.common.errors import ConfigError, require, unknown
from plait.config.bounds import MAPPINGS
from plait.config.generation import SamplingConfig
from plait.config.model import ModelConfig
from plait.config.run import RunConfig
from plait.config.run_records import RECORDS
from plait.config.settings import KINDS

_PACKAGE = Path(__file__).parent.parent

FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
"""Where shipped configs lie: in an installed package, and in a checkout."""

STUDIES = tuple(folder.parent / "studies" for folder in FOLDERS)
"""Where shipped studies lie."""

QUICKSTARTS = {
    "mixed": "quickstart",
    "chameleon-speech": "quickstart_chameleon_speech",
    "transfusion": "quickstart_transfusion",
    "worlds": "quickstart_worlds",
    "robot": "quickstart_robot",
}
"""The config of each setting's quickstart; the first is the default."""


def config_path(name: str) -> Path:
    """Return the file of a config given as a path, as a run's folder, or as a shipped config's name.

    A folder of a shipped config's name that is no run's, such as an exported model's, does not stand in its way.
    """
    kept = Path(name) / "config.yaml"
    is_run = kept.is_file() or (Path(name).is_dir() and not any((f / f"{name}.yaml").is_file() for f in FOLDERS))
    return _shipped("config", str(kept) if is_run else name, FOLDERS)


def study_path(name: str) -> Path:
    """Return the file of a study given as a path, or as a shipped study's name."""
    return _shipped("study", name, STUDIES)


def _shipped(kind: str, name: str, folders: tuple[Path, ...]) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    shipped = {p.stem: p for folder in folders for p in folder.glob("*.yaml")}
    if path.suffix in (".yaml", ".yml"):
        raise ConfigError(f"{kind}: there is no file {name!r}")
    if name not in shipped:
        raise ConfigError(unknown(kind, name, shipped))
    return shipped[name]


def quickstart_config(setting: str) -> str:
    """Return the shipped config of a setting's quickstart."""
    if setting not in QUICKSTARTS:
        raise ConfigError(unknown("setting", setting, QUICKSTARTS))
    return QUICKSTARTS[setting]


SAMPLING = ("temperature", "top_k", "top_p", "guidance", "media_guidance", "steps", "sampler")
"""Settings of sampling that a command or a request may name for all modalities together."""


def sampling_from(
    base: dict[str, SamplingConfig],
    model: ModelConfig,
    options: Mapping[str, Any],
    called: Callable[[str], str] = "--{}".format,
) -> dict[str, SamplingConfig]:
    """Lay options over a run's sampling, for every modality; one that changes nothing is refused.

    ``options`` are those of `SAMPLING` that are not None; ``called`` says how the user knows one.
    """
    objectives = {m.objective for m in model.modalities.values()}
    needs = dict.fromkeys(("temperature", "top_k", "top_p"), "next_token")
    needs |= dict.fromkeys(("steps", "sampler"), "diffusion")
    for name, value in options.items():
        require(needs.get(name) in (None, *objectives), called(name), value,
                f"left out, as no modality of this model is made by {needs.get(name)}")  # fmt: skip
    return {m: dataclasses.replace(base.get(m, SamplingConfig()), **options) for m in model.modalities}


def grids_from(text: str | None, output: str | None, model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Read an extent such as ``8x12`` for the modality that is asked for; none without a text."""
    if text is None:
        return {}
    sizes = text.lower().split("x")
    require(all(n.isdecimal() and int(n) > 0 for n in sizes), "--grid", text, "numbers of tokens such as 8x12")
    continuous = [n for n, m in model.modalities.items() if m.objective == "diffusion"]
    allowed = f"left out unless --output is one of {', '.join(continuous)}" if continuous else "left out"
    require(output in continuous, "--grid", text, f"{allowed}: it is the extent of what is made by diffusion")
    return {output: tuple(map(int, sizes))}


def describe_settings() -> str:
    """Return every setting with its default, its meaning and what it decides, one a paragraph."""
    lines = []
    for each in described_settings():
        decides = f" [{', '.join(each.decides)}]" if each.decides else ""
        lines.append(f"{each.name}{f' = {each.default}' if each.default else ''}\n    {each.text}{decides}")
    return "\n".join(lines)


class Described(NamedTuple):
    """What a setting is."""

    name: str
    default: str
    """As Python writes it; empty for a section, and where there is none."""
    text: str
    decides: Sequence[str]
    """What it decides (`plait.config.settings`)."""


def described_settings() -> list[Described]:
    """Return what every setting is, in the order of the config."""
    return _describe(RunConfig, "")


def _describe(cls: type, prefix: str) -> list[Described]:
    lines, hints, texts = [], typing.get_type_hints(cls), _field_texts(cls)
    for f in dataclasses.fields(cls):
        if cls is RunConfig and f.name in RECORDS:
            continue  # in YAML they stand in the records of the model
        kind = hints[f.name]
        name = f"{prefix}{f.name}"
        inner = next((a for a in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(a)), None)
        text = texts.get(f.name, (inner.__doc__ or "").strip() if inner else "")
        decides = KINDS.get(name.replace("<name>", "*"), ())
        lines.append(Described(name, _default(f), text, decides))
        if inner:
            inside = f"{name}.<name>." if typing.get_origin(kind) in MAPPINGS else f"{name}."
            lines += _describe(RECORDS[f.name], inside) if cls is ModelConfig and f.name in RECORDS else []
            lines += _describe(inner, inside)
    return lines


def _default(f: dataclasses.Field) -> str:
    if f.default is not dataclasses.MISSING:
        return f"{list(f.default) if isinstance(f.default, tuple) else f.default!r}"
    value = f.default_factory() if f.default_factory is not dataclasses.MISSING else None
    return f"{value!r}" if isinstance(value, list | dict) else ""


def _field_texts(cls: type) -> dict[str, str]:
    """Return the string below each field of a dataclass, read from its source."""
    import ast
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    texts = {}
    for statement, after in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            texts[statement.target.id] = " ".join(str(after.value.value).split())
    return texts
