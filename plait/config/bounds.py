"""Numbers of settings and arguments: declared with the field, checked in one place.

    steps: int = bounded(1000, at_least=1)
    betas: list[float] = bounded(lambda: [0.9, 0.95], at_least=0, below=1)

A number field without `bounded` takes any finite number. Whole numbers are within 64 bits. The same check is used for
values from YAML and the command line (`plait.config.file`), and for objects built in Python (`Checked`). Within a list
or a mapping the bounds hold for every value.
"""

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from plait.common.errors import require

LARGEST_INT = 2**63 - 1


@dataclass(frozen=True)
class Bounds:
    """What a number may be; None is no limit."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def hold(self, value: float) -> bool:
        """Return whether a finite number is within the bounds."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        low, high = self.at_least, self.at_most
        if (low is not None or self.above is not None) and (high is not None or self.below is not None):
            left = f"[{low:g}" if low is not None else f"({self.above:g}"
            return f"in {left}, {high:g}]" if high is not None else f"in {left}, {self.below:g})"
        texts = [(low, "at least"), (self.above, "above"), (high, "at most"), (self.below, "below")]
        said = [f"{text} {limit:g}" for limit, text in texts if limit is not None]
        return "0 or more" if said == ["at least 0"] else "".join(said)


ANY = Bounds()
MAPPINGS = (dict, Mapping)
"""What the type of a mapping may be."""


def bounded(default: Any, **limits: float) -> Any:
    """Return a dataclass field whose numbers must be within limits (see `Bounds`); a callable makes the default."""
    metadata = {"bounds": Bounds(**limits)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def needed(**limits: float) -> Any:
    """Return a dataclass field without a default whose numbers must be within limits."""
    return dataclasses.field(metadata={"bounds": Bounds(**limits)})


def as_number(value: Any, kind: type, where: str, bounds: Bounds = ANY) -> Any:
    """Return ``value`` as an int or float (``kind``); raise a ConfigError that names the field ``where`` otherwise.

    NumPy's numbers are taken, truth values and text are not, nor is a fraction as a whole number.
    """
    wanted = numbers.Integral if kind is int else numbers.Real
    is_number = isinstance(value, wanted) and not isinstance(value, bool)
    require(is_number, where, value, "a whole number" if kind is int else "a number")
    try:
        result = kind(value)
    except OverflowError:  # a whole number that no float holds
        result = math.inf
    finite = math.isfinite(result) if kind is float else abs(result) <= LARGEST_INT
    limits = ", ".join(filter(None, ["a finite number" if kind is float else "within 64 bits", str(bounds)]))
    require(finite, where, value, limits)
    require(bounds.hold(result), where, value, str(bounds))
    return result


def check_sizes(least: int, **sizes: int) -> None:
    """Check whole-number arguments, by their names, that must be at least ``least``."""
    for name, size in sizes.items():
        as_number(size, int, name, Bounds(at_least=least))


def check_numbers(value: Any, kind: Any, where: str, bounds: Bounds = ANY) -> Any:
    """Return a value of an annotated type with every number in it checked; whatever holds no numbers stays as it is."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in (int, float):
        return as_number(value, kind, where, bounds)
    if origin in (typing.Union, types.UnionType):
        if (value is None and type(None) in arguments) or dataclasses.is_dataclass(value):
            return value
        if any(typing.get_origin(k) is typing.Literal and value in typing.get_args(k) for k in arguments):
            return value
        kinds = [k for k in arguments if _holds_numbers(k)]
        return check_numbers(value, kinds[0], where, bounds) if len(kinds) == 1 else value
    if origin in (list, tuple) and _holds_numbers(arguments[0]):
        require(isinstance(value, list | tuple), where, value, "a list of numbers")
        return type(value)(check_numbers(v, arguments[0], f"{where}[{i}]", bounds) for i, v in enumerate(value))
    if origin in MAPPINGS and _holds_numbers(arguments[1]):
        require(isinstance(value, Mapping), where, value, "a mapping to numbers")
        return {k: check_numbers(v, arguments[1], f"{where}.{k}", bounds) for k, v in value.items()}
    return value


def _holds_numbers(kind: Any) -> bool:
    return kind in (int, float) or any(_holds_numbers(k) for k in typing.get_args(kind))


@functools.cache
def _number_fields(cls: type) -> list[tuple[str, Any, Bounds]]:
    """Return name, type and bounds of the fields that hold numbers."""
    hints = typing.get_type_hints(cls)
    fields = [(f.name, hints[f.name], f.metadata.get("bounds", ANY)) for f in dataclasses.fields(cls)]
    return [field for field in fields if _holds_numbers(field[1])]


if TYPE_CHECKING:

    class FilledInt:
        """A dataclass field that the caller may leave at None, and that is a number once the config is built."""

        def __get__(self, owner: object, kind: Any) -> int: ...

        def __set__(self, owner: object, value: int | None) -> None: ...

else:
    FilledInt = int | None


class Checked:
    """Base of dataclasses whose numbers are checked when they are made; errors name them ``<SECTION>.<field>``.

    A subclass with a `__post_init__` of its own calls this one first.
    """

    SECTION: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, kind, bounds in _number_fields(type(self)):  # type: ignore[arg-type]  # classes are hashable
            value = check_numbers(getattr(self, name), kind, self.where(name), bounds)
            object.__setattr__(self, name, value)  # frozen ones too

    @classmethod
    def where(cls, field: str) -> str:
        """Return how errors name a field."""
        return f"{cls.SECTION}.{field}" if cls.SECTION else field
