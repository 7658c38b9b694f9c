"""JSON: the reading of one value, and files of many that are no lines: arrays, and objects of several lines each."""

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from plait.prepare.raw import BadRow
from plait.prepare.remote import MAX_ITEM_BYTES, reason_of

_BLOCK = 1 << 18
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+("?)|[][{}]', re.DOTALL)
_BETWEEN = b" \t\r\n,\xef\xbb\xbf"


def parse(text: bytes, what: str = "the line") -> Any:
    """Return JSON as plain values; raises BadRow. A key that comes twice would lose what it had first."""
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise BadRow(f"{what} is not UTF-8 (byte {error.start + 1} is 0x{text[error.start]:02x})") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadRow):
            raise
        raise BadRow(f"{what} is not JSON ({reason_of(error)})") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow(f"the key {twice!r} comes twice in one mapping")
    return mapping


class JsonValues:
    """Rows as the items of a JSON array, or as JSON objects one after the other; a place is where a value begins."""

    def __init__(self, file: BinaryIO):
        self._file = file

    account = {"form": "JSON values"}

    @staticmethod
    def fits(head: bytes) -> bool:
        """Say whether a file that begins so is an array, or holds objects of several lines each."""
        first = head.removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n", 1)[0].strip()
        return first.startswith(b"[") or first == b"{"

    def rows(self) -> Iterator[tuple[int, int, Any]]:
        """Yield (place, number from 1, row or BadRow)."""
        for number, (start, stop) in enumerate(self._values(0, in_array=False), start=1):
            try:
                yield start, number, self._parsed(start, stop)
            except BadRow as error:
                yield start, number, error

    def row(self, place: int) -> Any:
        """Return the row at a place; raises BadRow."""
        span = next(self._values(place, in_array=True), None)
        if span is None:
            raise BadRow("the file ends before this value")
        return self._parsed(*span)

    def _parsed(self, start: int, stop: int) -> Any:
        if stop - start > MAX_ITEM_BYTES:
            raise BadRow(f"the value has more than {MAX_ITEM_BYTES:,} bytes")
        self._file.seek(start)
        return parse(self._file.read(stop - start), "the value")

    def _values(self, at: int, *, in_array: bool) -> Iterator[tuple[int, int]]:
        """Yield where each value begins and ends, from a byte on; what stands between values is one as well."""
        depth, begin, block, size = 0, -1, b"", _BLOCK
        after = at  # where the last token ended
        while True:
            self._file.seek(at)
            block = self._file.read(size)
            is_last, grow = len(block) < size, False
            for token in _TOKEN.finditer(block):
                start, stop, text = at + token.start(), at + token.end(), token.group()
                if text[:1] == b'"' and not token.group(1) and not is_last:
                    grow = True  # a text goes on behind the block
                    break
                if depth == 0:
                    yield from self._stray(after, block[max(after - at, 0) : token.start()])
                after = stop
                if text in (b"[", b"{"):
                    if depth == 0 and text == b"[" and not in_array:
                        in_array = True
                        continue
                    begin, depth = start if depth == 0 else begin, depth + 1
                elif text in (b"]", b"}"):
                    if depth == 0:
                        in_array = False
                        continue
                    depth -= 1
                    if depth == 0:
                        yield begin, stop
                elif depth == 0:
                    yield start, stop
            if is_last:
                break
            size = min(2 * size, MAX_ITEM_BYTES) if grow and after <= at else _BLOCK
            if grow and after <= at and len(block) >= MAX_ITEM_BYTES:
                after = at + len(block)  # a text that is longer than a row may be
            elif not grow:
                if depth == 0:  # nothing but space and strays stands behind the last token
                    yield from self._stray(after, block[max(after - at, 0) :])
                after = at + len(block)
            at = after
        if depth:
            yield begin, at + len(block)
        else:
            yield from self._stray(after, block[max(after - at, 0) :])

    @staticmethod
    def _stray(at: int, between: bytes) -> Iterator[tuple[int, int]]:
        """Yield what stands between two values, unless it is space and commas."""
        stray = between.strip(_BETWEEN)
        if stray:
            start = at + len(between) - len(between.lstrip(_BETWEEN))
            yield start, start + len(stray)
