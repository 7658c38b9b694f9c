"""The table of what each setting decides: every setting stands in it, and a changed one is treated as it says."""

import copy
import dataclasses
import typing

import pytest
import yaml

from plait.common.errors import ConfigError
from plait.config import settings
from plait.config.file import from_dict, to_dict
from plait.config.model import ModelConfig
from plait.config.run import RunConfig
from plait.config.run_records import RECORDS
from plait.config.settings import (
    BEGUN,
    FIXED,
    FREE,
    KINDS,
    MEASURED,
    RESULTS,
    STREAM,
    TRAINED,
    check_same,
    identity,
    kinds_of,
)

BASE = {
    "name": "base",
    "model": {
        "width": 32,
        "num_heads": 2,
        "modalities": {"text": {}, "image": {"objective": "diffusion", "attention": "bidirectional"}},
    },
    "data": {"tasks": {"text,image": 1.0, "image,text": 2.0}},
}


def fields(kind: type = RunConfig, prefix: str = "") -> set[str]:
    """Return the dotted name of every setting, from the dataclasses; ``*`` stands for a name that users give."""
    found, hints = set(), typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], f"{prefix}{field.name}"
        if kind is RunConfig and name in RECORDS:
            continue  # they stand in the model's section
        inner = next((a for a in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(a)), None)
        if kind is ModelConfig and field.name in RECORDS:
            found |= {name} | fields(inner, f"{name}.*.") | fields(RECORDS[field.name], f"{name}.*.")
        elif inner is hint:
            found |= fields(inner, f"{name}.")
        else:
            found.add(name)
    return found


def test_every_setting_is_in_the_table_and_no_other():
    """A new setting fails here until somebody has said what it decides."""
    read = settings.flat(from_dict(RunConfig, copy.deepcopy(BASE)))
    assert {name.replace(".text.", ".*.").replace(".image.", ".*.") for name in read} == fields() == set(KINDS)


def test_free_kinds_exclude_what_is_kept():
    free = {TRAINED, MEASURED, FREE}
    for name, kinds in KINDS.items():
        assert not (free & set(kinds) and set(BEGUN) & set(kinds)), name


OTHER = {
    "model.modalities": None,  # changed below, as names are
    "model.towers": None,
    "schema_version": None,  # only one is read
    "data.sources": {"a": 1.0, "b": 2.0},
    "data.tasks": {"image,text": 2.0, "text,image": 1.0},
    "prepare.source": "rows.jsonl",
    "model.untied": ["ffn"],
    "train.betas": [0.5, 0.9],
}


def changed(value):
    """Return another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, "more"]
    if isinstance(value, dict):
        return {**value, "more": 1}
    return f"{value}x"


def changes() -> list[str]:
    return [name for name in settings.flat(from_dict(RunConfig, copy.deepcopy(BASE))) if name != "schema_version"]


def laid_over(name: str) -> tuple[dict, object, object]:
    """Return the values of BASE with one setting changed, and the setting before and after."""
    values = to_dict(from_dict(RunConfig, copy.deepcopy(BASE)))
    *parents, last = name.split(".")
    at = values
    for parent in parents:
        at = at[parent]
    before = at[last]
    if name in ("model.modalities", "model.towers"):
        at[last] = {**before, "more": before["image"]}
    else:
        at[last] = OTHER.get(name, changed(before))
    return values, before, at[last]


@pytest.mark.parametrize("name", changes())
def test_a_changed_setting_is_refused_or_free_as_the_table_says(name):
    """By comparison alone: nothing is trained."""
    values, before, after = laid_over(name)
    base, kinds = from_dict(RunConfig, copy.deepcopy(BASE)), kinds_of(name)
    unused = kinds == (settings.MANIFESTS,)  # the data of BASE are scenes
    for kept in (BEGUN, settings.PREPARED, (STREAM,), (FIXED,), RESULTS, (MEASURED,)):
        old, new = identity(base, kept), identity(values, kept)
        if set(kinds) & set(kept) and not unused:
            assert old != new
            if name.endswith(("vocab_size", "latent_channels", "patch_size")):
                old, new = new, old  # a size of 0 is the codec's own, whichever that is
                check_same(old, new, "'run'", "take the old setting")
                continue
            with pytest.raises(ConfigError) as error:
                check_same(old, new, "'run'", "take the old setting")
            said = str(error.value)
            assert said.startswith(f"{name}: ") and said.endswith("take the old setting") and "\n" not in said
            assert "was made with" in said
            if isinstance(before, str | int | float):
                shown = ("scenes", "manifests") if name == "prepare.source" else (before, after)
                assert f"{shown[1]!r} differs from {shown[0]!r}" in said or name == "data.max_document_tokens"
        else:
            check_same(old, new, "'run'", "take the old setting")


def test_an_order_that_decides_something_is_kept():
    values = to_dict(from_dict(RunConfig, copy.deepcopy(BASE)))
    for section, key in (("model", "modalities"), ("data", "tasks")):
        other = copy.deepcopy(values)
        other[section][key] = dict(reversed(values[section][key].items()))
        with pytest.raises(ConfigError, match=rf"^{section}\.{key}: .* \(their order counts\)"):
            check_same(identity(values, BEGUN), identity(other, BEGUN), "'run'", "cure")


def test_what_is_equal_is_not_refused():
    """Places may move, 0 is what follows from other settings, and YAML's own form is one of the same config."""
    base = from_dict(RunConfig, copy.deepcopy(BASE))
    values = yaml.safe_load(yaml.safe_dump(to_dict(base), sort_keys=False))
    values["data"]["max_document_tokens"] = base.data.batch_tokens
    values["data"]["sources"] = {"elsewhere": {"weight": 1.0, "when_exhausted": "repeat"}}
    values["model"]["towers"] = dict(reversed(values["model"]["towers"].items()))
    check_same(identity(base, BEGUN), identity(values, BEGUN), "'run'", "cure")
    assert identity(base, BEGUN) == identity(values, BEGUN)
