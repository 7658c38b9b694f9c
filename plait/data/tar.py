"""WebDataset tars: files that share a name up to its first dot are one sample, such as 0001.jpg with 0001.txt.

Nothing is ever extracted: headers are decoded block by block, members are read at their places, one sample at a time.
Samples with links, devices, sparse files, names that leave the folder, or absurd sizes are broken rows.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from plait.data.places import MAX_ITEM_BYTES
from plait.data.raw import BadRow, Blob
from plait.errors import DataError

_BLOCK = 512
_MAX_NAME = 1 << 16  # bytes of an extended header
_MAX_MEMBERS = 10_000  # of one sample
_SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclass
class _Member:
    name: str
    start: int
    size: int
    after: int
    """Where the next header stands."""
    wrong: str = ""
    """Why it is refused."""


@dataclass
class Sample:
    """Members by suffix (the name from its first dot on, without the dot)."""

    key: str
    members: dict[str, Blob] = field(default_factory=dict)
    wrong: str = ""
    """Why the sample is broken."""
    after: int | None = None
    """Where the next sample starts; None where nothing can follow."""


class TarFile:
    """The samples of one tar, by the byte at which each begins."""

    def __init__(self, file: BinaryIO, place: str):
        self._file = file
        magic = self._read(0, 2)
        if magic in _COMPRESSED:
            kind = _COMPRESSED[magic]
            raise DataError(
                f"prepare.source: {place!r} is compressed ({kind}), so that no sample can be read at its place; "
                "unpack it to a plain .tar (media in it are compressed already)"
            )

    def samples(self) -> Iterator[tuple[int, Sample]]:
        """Yield the place of every sample, and the sample."""
        at: int | None = 0
        while at is not None and (sample := self.sample(at)) is not None:
            yield at, sample
            at = sample.after

    def sample(self, at: int) -> Sample | None:
        """Return the sample that begins at a byte, or None at the end. Raises BadRow where no header is there."""
        sample: Sample | None = None
        total = 0
        while True:
            try:
                member = self._member(at)
            except BadRow as error:
                if sample is None:
                    return Sample("", wrong=str(error))
                sample.after = at  # the damage is a row of its own
                return sample
            if member is None:
                return sample
            match = _SAMPLE.fullmatch(member.name)
            key, suffix = match.groups() if match else ("", "")
            if sample is not None and match and key != sample.key:
                sample.after = at
                return sample
            at = member.after
            if not match and not member.wrong:
                continue  # folders, hidden files, files without a suffix
            sample = sample or Sample(key)
            total += member.size
            if total > MAX_ITEM_BYTES:
                member.wrong = member.wrong or f"member {member.name!r} brings it above {MAX_ITEM_BYTES:,} bytes"
            elif suffix in sample.members or len(sample.members) == _MAX_MEMBERS:
                member.wrong = member.wrong or f"member {member.name!r} comes twice"
            sample.wrong = sample.wrong or member.wrong
            if not sample.wrong:
                data = self._read(member.start, member.size)
                if len(data) < member.size:
                    return Sample(key, wrong=f"the tar is cut short within {member.name!r}")
                sample.members[suffix] = Blob(member.name, data)

    def _member(self, at: int) -> _Member | None:
        """Return the member whose header stands at a byte, folding extended headers in; None at the end."""
        name, size = None, None
        while True:
            block = self._read(at, _BLOCK)
            if not block.strip(b"\0"):
                return None
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except (tarfile.TarError, ValueError) as error:
                raise BadRow(f"the tar is damaged at byte {at:,} ({error})") from None
            start = at + _BLOCK
            if info.size < 0:
                raise BadRow(f"the tar is damaged at byte {at:,} (a negative size)")
            if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
                name, size = self._extended(info, start, name, size)
            elif info.type not in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE):
                return self._plain(info, start, name, size)
            at = start + _padded(info.size)

    def _extended(self, info: tarfile.TarInfo, start: int, name: str | None, size: int | None):
        """Return the name and the size that an extended header gives to the member after it."""
        if info.size > _MAX_NAME:
            raise BadRow(f"the tar has a header of {info.size:,} bytes")
        text = self._read(start, info.size)
        if info.type == tarfile.GNUTYPE_LONGNAME:
            return text.rstrip(b"\0").decode("utf-8", "surrogateescape"), size
        while text:
            length, _, _ = text.partition(b" ")
            if not length.isdigit() or not 0 < int(length) <= len(text):
                raise BadRow("the tar has a damaged header")
            key, _, value = text[len(length) + 1 : int(length)].rstrip(b"\n").partition(b"=")
            if key == b"path":
                name = value.decode("utf-8", "surrogateescape")
            elif key == b"size" and value.isdigit():
                size = int(value)
            elif key.startswith(b"GNU.sparse"):
                raise BadRow("the tar has a sparse file, which is not allowed")
            text = text[int(length) :]
        return name, size

    def _plain(self, info: tarfile.TarInfo, start: int, name: str | None, size: int | None) -> _Member:
        name = info.name if name is None else name
        size = info.size if size is None else size
        if info.isdir():
            return _Member("", start, 0, start)
        is_sparse = info.type == tarfile.GNUTYPE_SPARSE
        member = _Member(name, start, size if info.isreg() else 0, start + (_padded(size) if info.isreg() else 0))
        if is_sparse or not info.isreg():
            kind = "sparse" if is_sparse else "a link" if info.issym() or info.islnk() else "a device"
            member.wrong = f"member {name!r} is {kind}, only plain files are allowed"
        elif name.startswith("/") or ".." in name.split("/") or "\0" in name:
            member.wrong = f"member {name!r} points outside of the tar"
        elif size > MAX_ITEM_BYTES:
            member.wrong = f"member {name!r} has {size:,} bytes, at most {MAX_ITEM_BYTES:,} are allowed"
        return member

    def _read(self, at: int, count: int) -> bytes:
        self._file.seek(at)
        return self._file.read(count)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
