"""The header of a safetensors file: 8 bytes of its length, then JSON with each tensor's type, shape and place.

https://github.com/huggingface/safetensors#format. A header is read with care, as it may come from anywhere: its length
is bounded, and the tensors must fill the file without gap or overlap, as the format asks.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U32": 4, "U16": 2, "U8": 1,
    "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
"""Bytes of a number, by the format's name of its type."""


class BadHeader(Exception):
    """A header that cannot be believed; the message says why."""


@dataclass(frozen=True)
class Entry:
    """A tensor as the header has it: the format's name of its type, its shape, its first byte in the file."""

    code: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.code]


def write_header(tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the beginning of a file that holds tensors of these (type, shape), one after another in this order."""
    header: dict = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (code, shape) in tensors.items():
        end = at + math.prod(shape) * SIZES[code]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_header(read: Callable[[int, int], bytes], size: int, *, longest: int) -> dict[str, Entry]:
    """Read the header of a file of ``size`` bytes, at most ``longest`` bytes of it; raises BadHeader.

    ``read(start, count)`` returns bytes of the file.
    """
    length = int.from_bytes(read(0, 8), "little") if size >= 8 else 0
    if not 2 <= length <= min(size - 8, longest):
        raise BadHeader("the length of its header is absurd")
    try:
        header = json.loads(read(8, length))
        header.pop("__metadata__", None)
        entries = {name: _entry(record, 8 + length) for name, record in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        raise BadHeader("its header is corrupt") from None
    at = 8 + length
    for entry in sorted(entries.values(), key=lambda e: (e.offset, e.num_bytes)):
        if entry.offset != at:
            raise BadHeader("its header is corrupt")
        at += entry.num_bytes
    if at != size:
        raise BadHeader(f"it has {size} bytes, not {at}")
    return entries


def _entry(record: dict, base: int) -> Entry:
    start, end = record["data_offsets"]
    entry = Entry(record["dtype"], tuple(record["shape"]), base + start)
    if not all(type(n) is int and n >= 0 for n in (*entry.shape, start, end)) or entry.num_bytes != end - start:
        raise ValueError
    return entry
