"""WebDataset tars: files that share a name up to its first dot are one sample, such as 0001.jpg with 0001.txt.

Nothing is ever extracted: tarfile decodes the headers, and nothing else. First all headers are read, and members are
grouped by name over the whole tar, wherever they lie: 24 bytes are held for each stretch of members of one sample. Then
samples are read at their places, one at a time. Samples with links, devices, sparse files, names that leave the folder,
or absurd sizes are broken rows.
"""

import array
import hashlib
import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from plait.common.errors import DataError
from plait.prepare.raw import BadRow, Blob
from plait.prepare.remote import MAX_ITEM_BYTES

_BLOCK = 512
_MAX_NAME = 1 << 16  # bytes of a header that says more of the next one
_MAX_MEMBERS = 10_000  # of one sample
_MAX_ZEROS = 1 << 20  # between two tars in one file
_SAMPLE = re.compile(r"(?:\./)*((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_SCATTERED = 1
"""Bit of a sample's place, which is a multiple of 512 else: its members lie in several stretches."""


@dataclass
class _Member:
    name: str
    start: int
    size: int
    after: int
    """Where the next header stands."""
    wrong: str = ""
    """Why it is refused."""
    key: str = ""
    """Its sample's; "" where it is left out."""
    suffix: str = ""
    """Its name from its first dot on, in small letters."""
    left_out: str = ""
    """By which rule it is part of no sample."""


@dataclass
class Sample:
    """Members by suffix (the name from its first dot on, without the dot, in small letters)."""

    key: str
    members: dict[str, Blob] = field(default_factory=dict)
    wrong: str = ""
    """Why the sample is broken."""
    size: int = 0
    """Members of this name, broken ones too."""


class _Samples:
    """Where the samples of a tar are: for each stretch of members of one sample its first header."""

    def __init__(self, places: array.array, keys: bytearray):
        places_ = np.frombuffer(places, np.int64) if len(places) else np.zeros(0, np.int64)
        hashes = np.frombuffer(keys, np.uint64).reshape(-1, 2) if len(keys) else np.zeros((0, 2), np.uint64)
        order = np.lexsort((places_, hashes[:, 1], hashes[:, 0]))
        hashes = hashes[order]
        begins = np.ones(len(order), bool)
        begins[1:] = (hashes[1:] != hashes[:-1]).any(axis=1)
        starts = np.flatnonzero(begins)
        self._stretches = places_[order]
        by_place = np.argsort(self._stretches[starts])
        self._starts = starts[by_place]
        self._stops = np.append(starts[1:], len(order))[by_place]
        self.firsts = self._stretches[self._starts]
        """Where each sample's first member is, in order."""
        self.scattered = self._stops - self._starts > 1

    def stretches(self, first: int) -> list[int]:
        """Return where the members of the sample are whose first one is at a place."""
        k = int(np.searchsorted(self.firsts, first))
        if k == len(self.firsts) or self.firsts[k] != first:
            return [first]
        return self._stretches[self._starts[k] : self._stops[k]].tolist()


class TarFile:
    """The samples of one tar, by the byte at which each begins."""

    def __init__(self, file: BinaryIO, place: str):
        self._file = file
        self._samples: _Samples | None = None
        self._damage: int | None = None
        self.left_out: Counter[str] = Counter()
        """Members that are part of no sample, by the rule that leaves them out; known once samples were listed."""
        magic = self._read(0, 2)
        if magic in _COMPRESSED:
            kind = _COMPRESSED[magic]
            raise DataError(
                f"prepare.source: {place!r} is compressed ({kind}), so that no sample can be read at its place; "
                "unpack it to a plain .tar (media in it are compressed already)"
            )

    def samples(self) -> Iterator[tuple[int, Sample]]:
        """Yield the place of every sample, and the sample, in the order of their first members."""
        index = self._index()
        for first, scattered in zip(index.firsts.tolist(), index.scattered.tolist(), strict=True):
            place = first | _SCATTERED if scattered else first
            yield place, self.sample(place)
        if self._damage is not None:
            yield self._damage, self.sample(self._damage)  # what is behind it is lost

    def sample(self, place: int) -> Sample:
        """Return the sample at a place that `samples` gave."""
        at = place & ~_SCATTERED
        sample = Sample("")
        for stretch in self._index().stretches(at) if place & _SCATTERED else [at]:
            self._read_stretch(sample, stretch)
        if not sample.size and not sample.wrong:
            sample.wrong = "the tar ends before this sample"
        return sample

    def _read_stretch(self, sample: Sample, at: int) -> None:
        """Add the members that stand one after the other from a header on and are of the sample."""
        while True:
            try:
                member = self._member(at)
            except BadRow as error:
                if not sample.size:
                    sample.wrong = str(error)  # else the damage is its own row
                return
            if member is None or (member.key and sample.size and member.key != sample.key):
                return
            at = member.after
            if not member.key:
                continue
            sample.key = member.key
            self._add(sample, member)

    def _add(self, sample: Sample, member: _Member) -> None:
        sample.size += 1
        total = member.size + sum(len(blob.data) for blob in sample.members.values())
        if total > MAX_ITEM_BYTES:
            member.wrong = member.wrong or f"member {member.name!r} brings it above {MAX_ITEM_BYTES:,} bytes"
        elif member.suffix in sample.members or len(sample.members) == _MAX_MEMBERS:
            member.wrong = member.wrong or f"member {member.name!r} comes twice"
        sample.wrong = sample.wrong or member.wrong
        if not sample.wrong:
            data = self._read(member.start, member.size)
            if len(data) < member.size:
                sample.wrong = f"the tar is cut short within {member.name!r}"
            sample.members[member.suffix] = Blob(member.name, data)

    def _index(self) -> _Samples:
        """Read all headers, once."""
        if self._samples is not None:
            return self._samples
        places, keys, last, at = array.array("q"), bytearray(), "", 0
        self.left_out.clear()
        size, ends = self._file.seek(0, io.SEEK_END), 0
        while True:
            try:
                member = self._member(at)
            except BadRow:
                if ends <= size:  # else the sample that the tar ends in says it
                    self._damage = at
                break
            if member is None:
                break
            if not member.key:
                self.left_out[member.left_out] += 1
            elif member.key != last:
                places.append(at)
                keys += hashlib.blake2b(member.key.encode("utf-8", "surrogateescape"), digest_size=16).digest()
                last = member.key
            at, ends = member.after, member.start + member.size if member.key else 0
        self._samples = _Samples(places, keys)
        return self._samples

    def _member(self, at: int) -> _Member | None:
        """Return the member whose header stands at a byte; None at the end. Raises BadRow."""
        while not (block := self._read(at, _BLOCK)).strip(b"\0") and len(block) == _BLOCK:
            at = self._after_zeros(at)
            if at < 0:
                return None
        if len(block) < _BLOCK:
            raise BadRow(f"the tar ends at byte {at:,} without its end mark: what followed is lost")
        self._file.seek(at)
        headers = _Headers(self._file)
        try:
            info = tarfile.TarInfo.fromtarfile(headers)  # type: ignore[arg-type]  # it reads these fields alone
        except (tarfile.TarError, ValueError, RecursionError) as error:
            raise BadRow(f"the tar is corrupt at byte {at:,} ({error})") from None
        if info.size < 0 or headers.offset <= at:
            raise BadRow(f"the tar is corrupt at byte {at:,} (a negative size)")
        return _checked(info, headers.offset)

    def _after_zeros(self, at: int) -> int:
        """Return where the next header stands after a tar's end mark, where several tars were joined; -1: nowhere."""
        block = self._read(at, _MAX_ZEROS)
        zeros = len(block) - len(block.lstrip(b"\0"))
        return -1 if zeros == len(block) else at + zeros // _BLOCK * _BLOCK

    def _read(self, at: int, count: int) -> bytes:
        try:
            self._file.seek(at)
        except (OverflowError, ValueError):  # an absurd size led there
            return b""
        return self._file.read(count)


class _Headers:
    """What `tarfile.TarInfo.fromtarfile` reads a header from and writes the next one's place to; no list is kept."""

    encoding, errors = "utf-8", "surrogateescape"

    def __init__(self, file: BinaryIO):
        self._file, self.offset = file, 0
        self.pax_headers: dict[str, str] = {}
        self.tell = file.tell

    @property
    def fileobj(self) -> "_Headers":
        """Itself: it reads no more than a header may have."""
        return self

    def read(self, count: int) -> bytes:
        """Read some bytes of a header. Raises BadRow where it wants absurdly many."""
        if not 0 <= count <= _MAX_NAME:
            raise BadRow(f"the tar has a header of {count:,} bytes")
        return self._file.read(count)


def _checked(info: tarfile.TarInfo, after: int) -> _Member:
    """Return a member as one of a sample, or left out by a rule, or wrong."""
    name, size = info.name, info.size
    if info.isdir():
        return _Member(name, info.offset_data, 0, after, left_out="folders")
    member = _Member(name, info.offset_data, size if info.isreg() else 0, after)
    if info.issparse() or not info.isreg():
        kind = "sparse" if info.issparse() else "a link" if info.issym() or info.islnk() else "a device"
        member.wrong = f"member {name!r} is {kind}, only plain files are allowed"
    elif name.startswith("/") or ".." in name.split("/") or "\0" in name:
        member.wrong = f"member {name!r} points outside of the tar"
    elif size > MAX_ITEM_BYTES:
        member.wrong = f"member {name!r} has {size:,} bytes, at most {MAX_ITEM_BYTES:,} are allowed"
    member.key, member.suffix, left_out = sample_of(name)
    if left_out and member.wrong:
        member.key = name or "?"
    elif left_out:
        member.left_out = left_out
    return member


def sample_of(name: str) -> tuple[str, str, str]:
    """Return the sample that a file is of and its suffix, or "" twice and the rule that leaves it out."""
    match = _SAMPLE.fullmatch(name)
    if match:
        return match[1], match[2].lower(), ""
    hidden = name.rsplit("/", 1)[-1].startswith(".")
    return "", "", "hidden files" if hidden else "files without a suffix"
