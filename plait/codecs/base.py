"""What every codec is: the kind of its media, reading, writing and showing them, encoding and decoding."""

import contextlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from plait.codecs.signatures import HEAD, kind_of
from plait.common.errors import DataError
from plait.config.file import from_dict

Media = Any
"""Raw media as its codec knows it: str; image uint8 [H, W, 3]; audio float32 [samples] at the codec's rate."""

_remarks: ContextVar[list[str] | None] = ContextVar("remarks", default=None)


def remark(text: str) -> None:
    """Say that a rule left something of the item being read out, such as an image's other frames: it is counted."""
    said = _remarks.get()
    if said is not None:
        said.append(text)


@contextlib.contextmanager
def remarks() -> Iterator[list[str]]:
    """Collect the remarks of the items that are read within."""
    said: list[str] = []
    token = _remarks.set(said)
    try:
        yield said
    finally:
        _remarks.reset(token)


Progress = Callable[[float, str], None]
"""Called with the share done (0 to 1) and a short text, such as the current loss."""


@dataclass
class Encoded:
    """One encoded item: local ids [n] (int32) or latents [n, C] (float32), and its extent in space."""

    ids: np.ndarray | None = None
    latents: np.ndarray | None = None
    grid: tuple[int, ...] = ()


def read_only(item: Encoded) -> str:
    """Return what a page shows of an item that cannot be decoded."""
    values = item.latents if item.ids is None else item.ids
    size = item.grid or (() if values is None else (len(values),))
    return f"read only: {' × '.join(map(str, size))} features"


def ids_of(item: Encoded) -> np.ndarray:
    """Return the ids [n] of an item for a codec of ids; raises DataError where it has none."""
    if item.ids is None:
        raise DataError("codec: an item without ids is not allowed, this codec decodes ids")
    return item.ids


def alike(keys: Sequence[Any], most: int) -> Iterator[tuple[Any, list[int]]]:
    """Yield a key and the places of up to ``most`` items that have it, until all were named: items of one size can
    go through a network together."""
    by_key: dict[Any, list[int]] = {}
    for i, key in enumerate(keys):
        by_key.setdefault(key, []).append(i)
    for key, places in by_key.items():
        for start in range(0, len(places), most):
            yield key, places[start : start + most]


class Codec(ABC):
    """Base of all codecs. A new modality subclasses it (docs/add_a_modality.md)."""

    name: ClassVar[str]
    """Name in configs and saved codecs: a registered one, or package.module:Class of one's own."""
    kind: ClassVar[str]
    """What its media are: text, image, audio, or a word of your own."""
    suffix: ClassVar[str]
    """Suffix of the files that `write` makes, such as ".png"."""
    formats: ClassVar[tuple[str, ...]] = ()
    """Suffixes that `write` can make beside `suffix`."""
    reads_only: ClassVar[bool] = False
    """Whether it cannot decode, as an encoder alone: what it made is read, and `decode` returns it as it is."""
    reads: str = ""
    """Modality of the model whose parts it reads too, beside that one's own codec (`ModalityConfig.reads`)."""
    judge: ClassVar[str] = ""
    """Class that measures items which a model made, as package.module:Class (`plait.evaluate.judge.Judge`); "": by
    their kind (text, image, audio), and items of any other kind are not measured."""
    names_files: ClassVar[bool] = True
    """Whether text in a manifest is the path of a file (an image's, a recording's), rather than the item itself."""
    reads_values: ClassVar[bool] = False
    """Whether lists of numbers and arrays are items of its, beside files."""
    options_class: ClassVar[type]
    """Dataclass of the codec's settings (`codec_options` in a config)."""
    vocab_size: int = 0
    """Number of ids (discrete)."""
    latent_channels: int = 0
    """Numbers per token (continuous)."""
    patch_size: int = 1
    """Latents along each side that one token holds (continuous): a token is patch_size^axes latents, row by row, each
    with all its channels together."""
    bos: int | Literal["added", "none"] = "added"
    """Id that opens a document where this is the first modality's codec (`bos` of the model's config)."""
    eos: int | Literal["added"] = "added"
    """Id that ends a document."""
    stops: tuple[int, ...] = ()
    """More ids that end a text in generation."""
    sample_rate: int = 16_000
    """Samples per second of its media, where they are sound (kind "audio")."""

    def __init__(self, options: Any):
        self.options = options
        self.key = self.kind
        """Key of its parts in a manifest: {"text": ...}, {"image": "path"}. Its kind, or `key` of the modality."""

    @classmethod
    def from_options(cls, values: dict[str, Any], where: str = "codec_options") -> Self:
        """Build an unfitted codec from plain settings, checking names and types."""
        return cls(from_dict(cls.options_class, values, where))

    @property
    def ends(self) -> dict[str, Any]:
        """`bos`, `eos` and `stops` as plain values, as the index of prepared data has them."""
        return {"bos": self.bos, "eos": self.eos, "stops": list(self.stops)}

    @property
    def is_fitted(self) -> bool:
        """Whether it can encode. A pretrained codec of ids can from the start, one of latents once measured."""
        return True

    def fit(  # noqa: B027  (a codec that needs no training inherits this)
        self, media: Sequence[Media], *, minutes: float, seed: int, folder: Path, progress: Progress
    ) -> None:
        """Train on raw media for about ``minutes``; state saved in ``folder`` lets an interrupted call go on."""

    @abstractmethod
    def encode(self, media: Sequence[Media]) -> list[Encoded]:
        """Encode a batch of items of any sizes."""

    @abstractmethod
    def decode(self, encoded: Sequence[Encoded]) -> list[Media]:
        """Decode a batch of items. Any ids of the vocabulary are accepted."""

    @property
    def default_grid(self) -> tuple[int, ...]:
        """Extent of one generated item where it is fixed, else ()."""
        return ()

    @abstractmethod
    def read(self, value: Any, base: Path) -> Media:
        """Read a manifest value (text, or a path relative to ``base``); raises DataError with the reason."""

    def read_bytes(self, data: bytes, name: str = "") -> Media:
        """Read an item from a file's bytes; ``name`` is what the file was called. Raises DataError with the reason."""
        if not self.names_files:
            try:
                return self.read(data.decode("utf-8-sig"), Path())
            except UnicodeDecodeError as error:
                kind = kind_of(data[:HEAD])
                what = f"it is {kind.name}" if kind else f"at byte {error.start + 1}"
                raise DataError(f"{name!r} is not UTF-8 ({what})") from None
        with tempfile.TemporaryDirectory(prefix="plait-") as folder:
            file = "item" + "".join(c for c in Path(name).suffix[:8] if c == "." or c.isalnum())
            (Path(folder) / file).write_bytes(data)
            try:
                return self.read(file, Path(folder))
            except DataError as error:
                raise DataError(str(error).replace(str(Path(folder) / file), name or "its bytes")) from None

    @abstractmethod
    def write(self, media: Media, path: Path) -> None:
        """Write one item to a file."""

    def write_among(self, media: Media, path: Path, others: Sequence[tuple[str, Media]]) -> None:
        """Write an item among the other parts of its document, each its kind and the item."""
        self.write(media, path)

    def taken_from(self, media: Media, other: "Codec") -> Media:
        """Return an item as this codec reads it, given as another codec of its kind did."""
        return media

    @abstractmethod
    def to_html(self, media: Media) -> str:
        """Return self-contained HTML that shows or plays one item."""

    def to_html_among(self, media: Media, others: Sequence[tuple[str, Media]]) -> str:
        """Return HTML of an item among the other parts of its document, each its kind and the item."""
        return self.to_html(media)

    @classmethod
    def page_scripts(cls) -> Sequence[str]:
        """Return JavaScript sources that a page with such items runs once, where `to_html` alone does not do.

        They look after the items that are there, and after those that come later.
        """
        return ()

    def quality(self, media: Sequence[Media]) -> dict[str, float]:
        """Return figures of the round trip on held-out media, name to number."""
        return {}

    @abstractmethod
    def save_pretrained(self, folder: Path) -> None:
        """Write codec.json ({"codec": name, "options": ..., "vocab_size": ...}) and the weights (safetensors)."""

    @classmethod
    @abstractmethod
    def from_pretrained(cls, folder: Path) -> "Codec":
        """Read what `save_pretrained` wrote."""
