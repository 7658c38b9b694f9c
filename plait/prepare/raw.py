"""Raw documents, before encoding: what every source yields to `plait prepare`, and what it knows to be true of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from plait.codecs.base import Codec, Media
from plait.common.errors import ConfigError, DataError
from plait.common.progress import Progress
from plait.config.run import EvaluateConfig

FIELDS = ("parts", "meta")
"""What a row has."""

_NAMES = {
    "text": ("txt", "text", "caption"),
    "image": ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "ico"),
    "audio": ("wav", "flac", "ogg", "oga", "mp3", "opus", "aif", "aiff"),
    "scene3d": ("glb", "ply", "stl"),
}
KEY_OF = {name: key for key, names in _NAMES.items() for name in names}
"""The manifest key of a file by its suffix, and of a column that is called so; other names may be keys themselves."""


@dataclass
class RawDocument:
    """Media in order: pairs of a manifest key (text, image, audio) and the raw item."""

    parts: list[tuple[str, Media]]
    meta: dict[str, Any] = field(default_factory=dict)
    """What is known of it, in plain JSON types."""
    without_loss: frozenset[int] = frozenset()
    """Places of the parts that are no targets (``loss: false`` in a manifest)."""
    remarks: list[str] = field(default_factory=list)
    """What was left out of its items by a rule, such as an image's other frames."""
    also: dict[tuple[int, str], Media] = field(default_factory=dict)
    """Items as the codec of another modality reads them, by place and modality, where that differs."""


@dataclass
class BrokenRow:
    """A row that could not be read: where, and why."""

    line: int
    reason: str
    file: str = ""
    """Name of its file, where there are several."""


@dataclass
class Blob:
    """A media file's bytes, as they lie in a tar or in a Parquet column."""

    name: str
    data: bytes


class BadRow(ValueError):
    """The reason why a row cannot be read."""


class RawSource(Protocol):
    """Documents by split and index; reading is deterministic, whatever was read before."""

    def splits(self) -> dict[str, int]:
        """Return the number of rows of each split; "train" is one of them."""

    def read(self, split: str, start: int, stop: int) -> Iterator[RawDocument | BrokenRow]:
        """Read rows [start, stop) of a split."""

    @property
    def credit(self) -> str:
        """The line that a page which shows its documents has to carry; "" for none."""

    @property
    def truths(self) -> "Truths | None":
        """What the source knows to be true of its documents; None where it knows nothing."""

    @property
    def trials(self) -> "Trials | None":
        """What a model that acts is tried in; None where nothing acts."""


Act = Callable[[Sequence[Sequence[Mapping[str, Any]]]], Sequence[np.ndarray]]
"""A model that acts: observations, each after those of the steps before it as far as they are seen, and each its parts
by their keys, to chunks of actions [steps, dimensions]."""


class Trials(Protocol):
    """Environments in which a model acts, such as a robot's: what becomes of its actions."""

    def figures(
        self, act: Act, evaluate: EvaluateConfig, *, seed: int, folder: Path | None, progress: Progress
    ) -> dict[str, float]:
        """Return figures of `evaluate.trials` episodes by name, such as "success".

        Some episodes are shown in ``folder``: files, and `TRIALS`, one record {"title", "said", "file", "success"} to a
        line; and `TABLES`, a list of `TrialTable`, says how a page shows the figures. What no model changes is kept
        there too.
        """

    def watch(
        self, act: Act, *, tasks: Sequence[str], episodes: int, seed: int, videos: Path | None,
        show: Callable[[np.ndarray, str], None] | None,
    ) -> Iterator[tuple[str, bool, str]]:  # fmt: skip
        """Act in ``episodes`` unseen starts of each task, all of them if none is named: yield task, success and a line.

        ``show`` gets an image of every step, with a line of text; ``videos`` is a folder for a file of each episode.
        """


TRIALS, TABLES = "trials.jsonl", "tables.json"


@dataclass(frozen=True)
class TrialRow:
    """A row of such a table: who acted, the figure of how often it happened, and a second figure of the same episodes,
    "" for none."""

    who: str
    figure: str
    second: str = ""


@dataclass(frozen=True)
class TrialTable:
    """How a page shows figures of trials: a share of episodes in which something happens, by who acted."""

    note: str
    """The sentence above it."""
    rows: tuple[TrialRow, ...]
    """Those whose figure there is are shown."""
    who: str = "Who acts"
    """What stands above the rows, above the shares, above the numbers of episodes, and above the second figures."""
    share: str = "Succeeds"
    count: str = "Episodes"
    second: str = ""
    unit: str = ""
    """Of the second figures."""
    parts: str = ""
    """A figure that is there for each task too, as FIGURE/TASK; "" for none."""


class Truths(Protocol):
    """What a source knows to be true of its documents: what evaluation holds a model's captions, images and speech
    against. ``meta`` is what the source wrote beside a document (`RawDocument.meta`)."""

    def caption(self, meta: dict[str, Any]) -> str:
        """Return the sentence that says what a document shows, which its speech speaks; "" where there is none."""

    def scores(self, said: Sequence[str], metas: Sequence[dict[str, Any]]) -> dict[str, list[bool | None]]:
        """Return for each caption whether it is right in "object" (the first thing shown), and in what else is; None
        where its document has no such thing."""

    @property
    def chances(self) -> dict[str, float]:
        """What a guess gets right in each score of captions and images, by its name."""

    def thing(self, meta: dict[str, Any]) -> str:
        """Return the one thing that a document shows; "" where it shows several, or none."""

    def things(self) -> list[str]:
        """Return all things that there are."""

    def reference(self, kind: str, thing: str, size: int) -> Media:
        """Return an item of a kind that shows a thing alone: an image uint8 [size, size, 3], or what else there is."""

    def item_scores(
        self, kind: str, items: Sequence[Media], metas: Sequence[dict[str, Any]]
    ) -> dict[str, list[bool | None]]:
        """Return for each item of a kind, such as "image", whether it is right in what needs no judge, such as
        "ground"; None where its document has no such thing."""

    def nearest(self, metas: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> list[int]:
        """Return for each document the place, among ``others``, of the one that shows most of the same."""

    def openings(self, metas: Sequence[dict[str, Any]], count: int, seed: int) -> tuple[list[str], np.ndarray]:
        """Return how captions begin that name ``count`` things, and which is true of each document of one thing."""


def check_keys(codecs: Mapping[str, Codec], keys: Sequence[str], whose: str) -> None:
    """Raise a ConfigError where a codec reads parts that documents have not; ``whose`` says what has the ``keys``."""
    for name, codec in codecs.items():
        if codec.key not in keys:
            raise ConfigError(
                f"model.modalities.{name}.codec: {codec.name!r} reads the parts {codec.key!r}, "
                f"{whose} {', '.join(keys)}"
            )


ROWS_AT_ONCE = 64
"""Rows that are read together."""


def raw_documents(
    source: RawSource, split: str, numbers: Sequence[int], *, scattered: bool = False
) -> list[RawDocument]:
    """Return documents of a split, given by number in any order. Raises DataError where one is broken.

    ``scattered``: each is read by itself, not with those between; slower where a source reads many together.
    """
    rows: dict[int, RawDocument | BrokenRow] = {}
    size = 1 if scattered else ROWS_AT_ONCE
    for first in sorted({n - n % size for n in numbers}):
        last = max(n for n in numbers if n < first + size) + 1
        rows |= dict(enumerate(source.read(split, first, last), start=first))
    documents = []
    for row in (rows[n] for n in numbers):
        if isinstance(row, BrokenRow):
            raise DataError(f"data: row {row.line} of {split} is broken ({row.reason}), prepare the data again")
        documents.append(row)
    return documents


def raw_items(source: RawSource, split: str, key: str) -> Iterator[Media]:
    """Return a split's raw items of one key in order, whichever documents have them."""
    for row in source.read(split, 0, source.splits()[split]):
        if isinstance(row, RawDocument):
            yield from (item for k, item in row.parts if k == key)
