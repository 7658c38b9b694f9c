"""A codec that needs nothing beside plait: texts as their bytes. Tests copy this file to where they run plait."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from plait.codecs import saved
from plait.codecs.base import Codec, Encoded, ids_of
from plait.common.errors import DataError


@dataclass
class ByteOptions:
    """There are none."""


class ByteText(Codec):
    """UTF-8."""

    name: ClassVar[str] = "byte_text:ByteText"
    kind: ClassVar[str] = "text"
    suffix: ClassVar[str] = ".txt"
    names_files: ClassVar[bool] = False
    options_class: ClassVar[type] = ByteOptions
    vocab_size = 256

    def encode(self, media: Sequence[str]) -> list[Encoded]:
        return [Encoded(np.frombuffer(text.encode(), np.uint8).astype(np.int32)) for text in media]

    def decode(self, encoded: Sequence[Encoded]) -> list[str]:
        return [bytes(ids_of(item).tolist()).decode(errors="replace") for item in encoded]

    def read(self, value: Any, base: Path) -> str:
        if not isinstance(value, str):
            raise DataError(f"text: {value!r} is not allowed, it must be text")
        return value

    def write(self, media: str, path: Path) -> None:
        path.write_text(media, encoding="utf-8")

    def to_html(self, media: str) -> str:
        return html.escape(media)

    def save_pretrained(self, folder: Path) -> None:
        saved.write_description(self, folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "ByteText":
        return saved.read_description(cls, folder)[0]
