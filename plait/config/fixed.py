"""Configs that never change once they were checked: `dataclasses.replace` makes, and checks, another one."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from plait.config.bounds import Checked


class FixedDict(dict[Any, Any]):
    """A mapping that cannot be changed. Copies of it by `|` and `dict` can."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a checked config does not change: make another one with dataclasses.replace")

    __setitem__ = __delitem__ = __ior__ = pop = popitem = clear = update = setdefault = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FixedDict, (dict(self),)


def fixed(value: Any) -> Any:
    """Return a value with lists as tuples and mappings as `FixedDict`, however deep."""
    if isinstance(value, Mapping):
        return FixedDict({name: fixed(v) for name, v in value.items()})
    return tuple(fixed(v) for v in value) if isinstance(value, list | tuple) else value


class Fixed(Checked):
    """A frozen dataclass whose lists and mappings do not change either; it fills its unset fields while it is built."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fill(**{f.name: fixed(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]

    def _fill(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)
