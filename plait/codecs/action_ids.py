"""Discrete actions as ids, an action a token: turn left, turn right, go forward.

Media are int32 [T]: the places of T choices in the list of `ActionIdsOptions.choices`, from 0. There is nothing to fit.
"""

import html
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from plait.codecs import saved
from plait.codecs.actions import read_values
from plait.codecs.base import Codec, Encoded, ids_of
from plait.common.errors import DataError, nearest, require, shown

_FILES = (".json", ".npy")
_MOST = 1 << 20  # choices
_LISTED = 12
"""Names that an error lists."""


@dataclass
class ActionIdsOptions:
    """Settings of `ActionIdsCodec`."""

    choices: list[str] | int = field(default_factory=list)
    """Names of the actions that there are, such as [left, right, forward], or how many there are; at least 2."""
    steps: int = 0
    """Actions of an item; 0: any number."""

    def __post_init__(self):
        where, many = "codec_options", self.choices if isinstance(self.choices, int) else len(self.choices)
        require(2 <= many <= _MOST, f"{where}.choices", self.choices,
                f"names such as [left, right], or how many there are, 2 to {_MOST:,}")  # fmt: skip
        names = self.names
        require(len({*names}) == len(names), f"{where}.choices", self.choices, "names that are all different")
        for name in names:
            is_name = bool(name.strip()) and Path(name).suffix not in _FILES
            require(is_name, f"{where}.choices", name, "a name, and not that of a file")
        require(self.steps >= 0, f"{where}.steps", self.steps, "0 or more")

    @property
    def names(self) -> list[str]:
        """Names of the actions; their numbers where they have none."""
        return self.choices if isinstance(self.choices, list) else [str(i) for i in range(self.choices)]


class ActionIdsCodec(Codec):
    """Choices among a few actions: their places are the ids."""

    name: ClassVar[str] = "action_ids"
    kind: ClassVar[str] = "actions"
    suffix: ClassVar[str] = ".json"
    reads_values: ClassVar[bool] = True
    options_class: ClassVar[type] = ActionIdsOptions

    def __init__(self, options: ActionIdsOptions):
        super().__init__(options)
        self.names = options.names
        self.vocab_size = len(self.names)

    @property
    def default_grid(self) -> tuple[int, ...]:
        return (self.options.steps,) if self.options.steps else ()

    def encode(self, media: Sequence[np.ndarray]) -> list[Encoded]:
        """Encode choices: ids [T]. Raises DataError for what is no choice."""
        return [Encoded(ids=self._checked(item), grid=self.default_grid) for item in media]

    def decode(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        return [self._checked(ids_of(item)) for item in encoded]

    def _checked(self, item: Any) -> np.ndarray:
        """Return places, or lists of places and names, as int32 [T]; raises DataError with the reason."""
        if isinstance(item, np.ndarray):
            if item.dtype.kind not in "iu" or item.ndim != 1:
                what = f"an array of {item.dtype} {list(item.shape)}"
                raise DataError(f"{self.key}: {what} is not allowed, it must be whole numbers [steps]")
            item = item.tolist()
        choices = item if isinstance(item, list | tuple) else [item]
        places = np.array([self._place(choice) for choice in choices], np.int32)
        if self.options.steps not in (0, len(places)) or not len(places):
            wanted = self.options.steps or "at least 1"
            raise DataError(f"{self.key}: the number of steps is {len(places)}, it must be {wanted}")
        return places

    def _place(self, choice: Any) -> int:
        if isinstance(choice, str) and choice in self.names:
            return self.names.index(choice)
        is_number = isinstance(choice, int | np.integer) and not isinstance(choice, bool)
        if is_number and 0 <= choice < len(self.names):
            return int(choice)
        listed = ", ".join(self.names[:_LISTED]) + (", ..." if len(self.names) > _LISTED else "")
        hint = nearest(choice, self.names) if isinstance(choice, str) else ""
        raise DataError(
            f"{self.key}: {shown(choice)} is not allowed, it must be one of {listed}, or a whole number from 0 to "
            f"{len(self.names) - 1}{hint}"
        )

    def read(self, value: Any, base: Path) -> np.ndarray:
        """Read a list of names or numbers, as it is or as JSON, one alone, or the path of such a .json or .npy file."""
        is_name = not isinstance(value, str) or value in self.names
        is_file = not is_name and (Path(value).suffix in _FILES or os.path.isfile(Path(base) / value))
        if not is_file and (is_name or not value.startswith("[")):
            return self._checked(value)
        values = read_values(value, base, self.key)
        try:
            return self._checked(values)
        except DataError as error:
            raise DataError(f"{error}, in {value!r}") from None

    def write(self, media: np.ndarray, path: Path) -> None:
        """Write the names as a list of JSON."""
        path.write_text(json.dumps(self._said(media), ensure_ascii=False) + "\n", encoding="utf-8")

    def _said(self, media: np.ndarray) -> list[str]:
        return [self.names[place] for place in self._checked(media)]

    def to_html(self, media: np.ndarray) -> str:
        """Return the names in their order."""
        style = "display:inline-block;margin:0 4px 4px 0;padding:0 7px;border:1px solid #888;border-radius:9px"
        names = "".join(f'<span style="{style}">{html.escape(name)}</span>' for name in self._said(media))
        return f'<div style="font-size:12px;line-height:1.5">{names}</div>'

    def save_pretrained(self, folder: Path) -> None:
        saved.write_description(self, folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "ActionIdsCodec":
        return saved.read_description(cls, folder)[0]
