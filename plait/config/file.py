"""The one way from a YAML file and dotted overrides to a `RunConfig`.

Overrides (``train.steps=100``) are laid over the file's mapping before anything is built, so that a setting has
one place and one check. A wrong field is refused with one sentence that names it, its value and what is allowed.
Written here rather than taken from a library because the sentences are the point, and because the training core
must import with torch, numpy, safetensors and small pure packages alone.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml

from plait.common.errors import ConfigError, is_storable, printable, require, shown, unknown
from plait.config.bounds import ANY, MAPPINGS, Bounds, as_number
from plait.config.model import ModelConfig
from plait.config.run import RunConfig
from plait.config.run_records import RECORDS

Settings = dict[str, Any]
Config = TypeVar("Config")

Override = str | tuple[str, Any]
"""``"train.steps=100"``, whose value is read as the setting's type asks, or ``("train.steps", 100)`` as it is."""


def load(path: str | Path, overrides: Iterable[Override] = ()) -> RunConfig:
    """Read a run's YAML file, lay dotted overrides (``train.steps=100``) over it, check it, and build it."""
    values = read_yaml(path, "config")
    for override in overrides:
        _lay_over(values, override)
    return from_dict(RunConfig, values)


def load_kept(run: str | Path, overrides: Iterable[Override] = ()) -> RunConfig:
    """Read the config that a run keeps in its folder, which may have been moved; its own data moves with it."""
    path = Path(run) / "config.yaml"
    made = load(path)
    moved: list[Override] = [("out", str(run))]
    if made.data.path == f"{made.out}/data":
        moved.append(("data.path", f"{run}/data"))
    return load(path, [*moved, *overrides])


def read_yaml(path: str | Path, what: str) -> Settings:
    """Read a YAML file's mapping of settings; ``what`` it should have been is said in a ConfigError."""
    try:
        values: Settings = _Loader(Path(path).read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        raise ConfigError(f"{what}: there is no file {str(path)!r}") from None
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:  # dates and long numbers: ValueError
        raise ConfigError(f"{what}: {str(path)!r} is not a YAML file ({_reason(error)})") from None
    require(isinstance(values, dict), what, values, "a mapping of settings")
    return values


_PLAIN = {
    "tag:yaml.org,2002:bool": re.compile(r"(true|True|TRUE|false|False|FALSE)$"),
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
}
"""What truth values and numbers look like, in place of YAML 1.1's own patterns."""
_TRUTHS = dict.fromkeys(("yes", "on"), True) | dict.fromkeys(("no", "off"), False)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML says no types
    """Reads names as they are written, and numbers as they look.

    YAML 1.1 reads the names `no` and `on` as truth values, `010` as 8, `1:30` as 90, and dates; here all of them stay
    texts. A name that stands twice in one mapping, of which YAML would keep the last, is refused.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, _PLAIN.get(tag, pattern)) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {line} has a list or a mapping where a name must stand")
            if key.value in seen:
                raise yaml.YAMLError(f"{key.value!r} stands twice, again in line {line}")
            seen.add(key.value)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Settings:
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


def _lay_over(values: Settings, override: Override) -> None:
    if isinstance(override, str):
        key, separator, text = override.partition("=")
        require(bool(separator), "override", override, "of the form key.of.the.setting=value")
        value = parsed(text, kind_of(RunConfig, key.split(".")), key)
    else:
        key, value = override
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        require(isinstance(values, dict), key, value, f"laid over a mapping, which {parent!r} is not")
    values[last] = value


def kind_of(kind: Any, path: list[str]) -> Any:
    """Return the annotated type of a setting within a config's type; Any where there is none of that name."""
    record = RECORDS.get(path[1]) if kind is RunConfig and path[0] == "model" and len(path) > 3 else None
    if record and path[3] in _names(record):
        return kind_of(record, path[3:])
    for name in path:
        options = [kind, *typing.get_args(kind)] if _is_union(kind) else [kind]
        inner = next((k for k in options if dataclasses.is_dataclass(k) or typing.get_origin(k) in MAPPINGS), None)
        if dataclasses.is_dataclass(inner):
            kind = typing.get_type_hints(inner).get(name, Any)
        else:
            kind = typing.get_args(inner)[1] if inner else Any
    return kind


def parsed(text: str, kind: Any, where: str) -> Any:
    """Return the value that a text of the command line stands for.

    A text setting takes it as it is, so that ``0123``, ``on`` and ``null`` stay texts. Where a text or a list may
    stand, only ``[a, b]`` is a list. Everything else is YAML; in lists and mappings of texts all values are texts.
    """
    if _is_text(kind):
        return text
    options = typing.get_args(kind) if _is_union(kind) else (kind,)
    if str in options and not text.startswith("["):
        return text
    texts_alone = all(map(_holds_texts_alone, options))
    try:
        value = (yaml.BaseLoader if texts_alone else _Loader)(text).get_single_data() if text else ""
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if str in options:
            return text
        raise ConfigError(f"{where}: {shown(text)} is not allowed, it must be YAML ({_reason(error)})") from None
    return value


def _reason(error: Exception) -> str:
    """Return in one line what YAML's reader found wrong, and where."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"{problem} in line {mark.line + 1}" if mark and problem else str(error).splitlines()[0]


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _is_text(kind: Any) -> bool:
    return kind is str or (
        typing.get_origin(kind) is Literal and all(isinstance(a, str) for a in typing.get_args(kind))
    )


def _holds_texts_alone(kind: Any) -> bool:
    """Return whether a type is text, or lists and mappings of nothing else."""
    inner = [k for k in typing.get_args(kind) if k is not ...]
    if _is_text(kind):
        return True
    return typing.get_origin(kind) in (list, tuple, *MAPPINGS) and all(map(_holds_texts_alone, inner))


def from_dict(cls: type[Config], values: Settings, where: str = "") -> Config:
    """Build a config dataclass from plain values, checking names and types (raises ConfigError)."""
    config: Config = _run_config(values) if cls is RunConfig else _convert(values, cls, where)
    return config


def to_dict(config: Any) -> Settings:
    """Return a config dataclass as plain values that `from_dict` reads back."""
    values: Settings = _plain(config)
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


def _run_config(values: Any) -> Any:
    """Sort a file's records of modalities and towers: what the weights are, and what the run says of them."""
    require(isinstance(values, dict), "config", values, "a mapping of settings")
    sections: dict[str, Any] = {}
    for section, added in RECORDS.items():
        if section in values:
            raise ConfigError(unknown(section, section, _names(RunConfig)))
        values, records = _sorted(values, section, added)
        sections[section] = {str(name): _convert(v, added, f"model.{section}.{name}") for name, v in records.items()}
    return RunConfig(**_converted(values, RunConfig, ""), **sections)


def _names(kind: Any) -> list[str]:
    """Return the names that a file's record of a kind may have."""
    return [f.name for f in dataclasses.fields(kind) if kind is not RunConfig or f.name not in RECORDS]


def _sorted(values: Settings, section: str, added: type) -> tuple[Settings, dict[str, Settings]]:
    """Return a file's values without what belongs to the run's own records of a section, and those records."""
    model = values.get("model")
    records = model.get(section) if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(records, dict):
        return values, {}
    names = _names(added)
    known = [*names, *_names(typing.get_args(typing.get_type_hints(ModelConfig)[section])[1])]
    run_records: dict[str, Settings] = {}
    rest: dict[str, Any] = {}
    for name, record in records.items():
        record = {} if record is None else record
        rest[name] = record
        if isinstance(record, dict):
            for key in record:
                if key not in known:
                    raise ConfigError(unknown(f"model.{section}.{name}.{key}", key, known))
            rest[name] = {k: v for k, v in record.items() if k not in names}
            run_records[name] = {k: v for k, v in record.items() if k in names}
    return values | {"model": model | {section: rest}}, run_records


def dotted(values: Settings, prefix: str = "") -> Settings:
    """Return nested settings as one flat map of dotted names, such as ``train.steps``; lists stay as they are."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _convert(value: Any, kind: Any, where: str, bounds: Bounds = ANY) -> Any:
    """Return ``value`` as the annotated type ``kind``, or raise a ConfigError that names the field."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(value, kind, where)
    if _is_union(kind):
        return _convert_union(value, arguments, where, bounds)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(unknown(where, value, map(str, arguments)))
        return value
    if origin in (list, tuple):
        require(isinstance(value, list), where, value, "a list")
        return origin(_convert(v, arguments[0], f"{where}[{i}]", bounds) for i, v in enumerate(value))
    if origin in MAPPINGS:
        require(isinstance(value, dict), where, value, "a mapping")
        for name in value:
            require(isinstance(name, str), where, name, "a mapping of texts; put the name into quotes")
        return {k: _convert({} if v is None and dataclasses.is_dataclass(arguments[1]) else v, arguments[1],
                                 f"{where}.{k}", bounds) for k, v in value.items()}  # fmt: skip
    if kind is bool and isinstance(value, str):
        value = _TRUTHS.get(value.lower(), value)
    if kind in (int, float):
        return as_number(_from_text(value) if kind is float else value, kind, where, bounds)
    require(isinstance(value, kind), where, value, _TYPE_NAMES[kind])
    if kind is str:
        require(is_storable(value), where, value, "a text that UTF-8 holds, without NUL")
    return value


def _from_text(value: Any) -> Any:
    """Return the number that a text stands for: YAML reads 1e-3 as a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


RENAMED = {"evaluate.pictures": "evaluate.images"}
"""Settings of earlier files that have another name now."""


def _convert_dataclass(value: Any, kind: Any, where: str) -> Any:
    return kind(**_converted(value, kind, where))


def _converted(value: Any, kind: Any, where: str) -> dict[str, Any]:
    """Return the arguments of a dataclass."""
    value = {} if value is None else value
    require(isinstance(value, dict), where or "config", value, "a mapping of settings")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in _names(kind):
            name = f"{prefix}{printable(key)}"
            if name in RENAMED:
                raise ConfigError(f"{name}: this setting is now {RENAMED[name]}, rename it in the file")
            raise ConfigError(unknown(name, key, _names(kind)))
    for f in fields.values():
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if needed and f.name not in value:
            raise ConfigError(f"{prefix}{f.name}: this setting is missing, and it has no default")
    return {k: _convert(v, hints[k], f"{prefix}{k}", fields[k].metadata.get("bounds", ANY)) for k, v in value.items()}


def _convert_union(value: Any, kinds: tuple[Any, ...], where: str, bounds: Bounds) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(k for k in kinds if k is not type(None))
    words = [word for k in kinds if typing.get_origin(k) is Literal for word in typing.get_args(k)]
    if isinstance(value, str) and words:
        require(value in words, where, value, f"a number or {' or '.join(words)}")
        return value
    kinds = tuple(k for k in kinds if typing.get_origin(k) is not Literal)
    matching = [
        k for k in kinds if isinstance(value, dict if dataclasses.is_dataclass(k) else typing.get_origin(k) or k)
    ]
    return _convert(value, (matching or kinds)[0], where, bounds)


_TYPE_NAMES = {bool: "true or false", str: "text"}
