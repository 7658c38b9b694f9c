"""The one way from a YAML file and dotted overrides to a `RunConfig`.

Overrides (``train.steps=100``) are laid over the file's mapping before anything is built, so that a setting has
one place and one check. A wrong field is refused with one sentence that names it, its value and what is allowed.
Written here rather than taken from a library because the sentences are the point, and because the training core
must import with torch, numpy, safetensors and small pure packages alone.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from plait.config import RunConfig
from plait.errors import ConfigError, require, unknown
from plait.model_config import ModelConfig
from plait.run_records import RECORDS


def load(path: str | Path, overrides: list[str] = ()) -> RunConfig:
    """Read a run's YAML file, lay dotted overrides (``train.steps=100``) over it, check it, and build it."""
    values = read_yaml(path, "config")
    for override in overrides:
        _lay_over(values, override)
    return from_dict(RunConfig, values)


def read_yaml(path: str | Path, what: str) -> dict:
    """Read a YAML file's mapping of settings; ``what`` it should have been is said in a ConfigError."""
    try:
        values = _Loader(Path(path).read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        raise ConfigError(f"{what}: there is no file {str(path)!r}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise ConfigError(f"{what}: {str(path)!r} is not a YAML file ({str(error).splitlines()[0]})") from None
    require(isinstance(values, dict), what, values, "a mapping of settings")
    return values


class _Loader(yaml.SafeLoader):
    """Refuses a name that stands twice in one mapping, of which YAML would keep the last."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"{key.value!r} stands twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


def _lay_over(values: dict, override: str) -> None:
    key, separator, text = override.partition("=")
    require(bool(separator), "override", override, "of the form key.of.the.setting=value")
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        require(isinstance(values, dict), key, text, f"laid over a mapping, which {parent!r} is not")
    values[last] = yaml.safe_load(text) if text else ""


def from_dict(cls: type, values: dict, where: str = "") -> Any:
    """Build a config dataclass from plain values, checking names and types (raises ConfigError)."""
    return _run_config(values) if cls is RunConfig else _convert(values, cls, where)


def to_dict(config: Any) -> dict:
    """Return a config dataclass as plain values that `from_dict` reads back."""
    values = _plain(config)
    if isinstance(config, RunConfig):
        for section in RECORDS:
            added, records = values.pop(section), values["model"][section]
            values["model"][section] = {name: added[name] | record for name, record in records.items()}
    return values


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _run_config(values: Any) -> RunConfig:
    """Sort a file's records of modalities and towers: what the weights are, and what the run says of them."""
    require(isinstance(values, dict), "config", values, "a mapping of settings")
    found = {}
    for section, added in RECORDS.items():
        if section in values:
            raise ConfigError(unknown(section, section, _names(RunConfig)))
        values, mine = _sorted(values, section, added)
        found[section] = {str(name): _convert(v, added, f"model.{section}.{name}") for name, v in mine.items()}
    return RunConfig(**_converted(values, RunConfig, ""), **found)


def _names(kind: type) -> list[str]:
    """Return the names that a file's record of a kind may have."""
    return [f.name for f in dataclasses.fields(kind) if kind is not RunConfig or f.name not in RECORDS]


def _sorted(values: dict, section: str, added: type) -> tuple[dict, dict]:
    """Return a file's values without what belongs to the run's own records of a section, and those records."""
    model = values.get("model")
    records = model.get(section) if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(records, dict):
        return values, {}
    names = _names(added)
    known = [*names, *_names(typing.get_args(typing.get_type_hints(ModelConfig)[section])[1])]
    mine: dict[str, dict] = {}
    rest: dict[str, Any] = {}
    for name, record in records.items():
        record = {} if record is None else record
        rest[name] = record
        if isinstance(record, dict):
            for key in record:
                if key not in known:
                    raise ConfigError(unknown(f"model.{section}.{name}.{key}", key, known))
            rest[name] = {k: v for k, v in record.items() if k not in names}
            mine[name] = {k: v for k, v in record.items() if k in names}
    return values | {"model": model | {section: rest}}, mine


def dotted(values: dict, prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one flat map of dotted names, such as ``train.steps``; lists stay as they are."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _convert(value: Any, kind: Any, where: str) -> Any:
    """Return ``value`` as the annotated type ``kind``, or raise a ConfigError that names the field."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(value, kind, where)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(unknown(where, value, map(str, arguments)))
        return value
    if origin in (list, tuple):
        require(isinstance(value, list), where, value, "a list")
        return origin(_convert(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
    if origin in (dict, Mapping):
        require(isinstance(value, dict), where, value, "a mapping")
        return {str(k): _convert({} if v is None and dataclasses.is_dataclass(arguments[1]) else v, arguments[1],
                                 f"{where}.{k}") for k, v in value.items()}  # fmt: skip
    return _convert_scalar(value, kind, where)


def _convert_dataclass(value: Any, kind: type, where: str) -> Any:
    return kind(**_converted(value, kind, where))


def _converted(value: Any, kind: type, where: str) -> dict[str, Any]:
    """Return the arguments of a dataclass."""
    value = {} if value is None else value
    require(isinstance(value, dict), where or "config", value, "a mapping of settings")
    hints = typing.get_type_hints(kind)
    names = _names(kind)
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in names:
            raise ConfigError(unknown(f"{prefix}{key}", key, names))
    for f in dataclasses.fields(kind):
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if needed and f.name not in value:
            raise ConfigError(f"{prefix}{f.name}: this setting is missing, and it has no default")
    return {k: _convert(v, hints[k], f"{prefix}{k}") for k, v in value.items()}


def _convert_union(value: Any, kinds: tuple, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = [k for k in kinds if k is not type(None)]
    matching = [
        k for k in kinds
        if isinstance(value, dict if dataclasses.is_dataclass(k) else typing.get_origin(k) or k)
    ]  # fmt: skip
    return _convert(value, (matching or kinds)[0], where)


def _convert_scalar(value: Any, kind: type, where: str) -> Any:
    if isinstance(value, bool) and kind is not bool:
        raise ConfigError(f"{where}: {value!r} is not allowed, it must be {_TYPE_NAMES[kind]}")
    if kind is float and isinstance(value, int | str):
        try:
            return float(value)  # YAML reads 1e-3 as a string
        except ValueError:
            pass
    if not isinstance(value, kind):
        raise ConfigError(f"{where}: {value!r} is not allowed, it must be {_TYPE_NAMES[kind]}")
    return value


_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
