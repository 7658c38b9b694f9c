"""Where raw data lie: local files, globs, and anything that fsspec knows (s3://, gs://, https://, memory://, ...)."""

import functools
import glob
import hashlib
import importlib
import os
from collections.abc import Sequence
from typing import Any, BinaryIO

from plait.common.errors import DataError, ResourceError
from plait.prepare.foreign import about_folder, is_media_folder

MAX_ITEM_BYTES = 1 << 28
"""Bytes that a row of a manifest, a sample of a tar, or one media file may have (256 MiB)."""

_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp",
    "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub", "sftp": "paramiko", "hdfs": "pyarrow",
}  # fmt: skip
_WHOLE = 1 << 26  # files of up to so many bytes in all are told apart by all of them, more by both ends of each
_END = 1 << 16


def is_remote(place: str) -> bool:
    """Say whether a place is an address, rather than a local path."""
    return "://" in place


def expand(sources: Sequence[str]) -> list[str]:
    """Return the files that paths, addresses and globs stand for, in the order given, each glob's sorted.

    A folder of media and texts counts as a file. Local ones become absolute, as worker processes may start elsewhere.
    Raises DataError where there is none.
    """
    all_files: list[str] = []
    for source in sources:
        magic = glob.has_magic(source)
        if is_remote(source):
            files = _remote_glob(source) if magic else [source]
        elif magic and not os.path.exists(source):
            files = sorted(glob.glob(source, recursive=True))
        else:
            files = [source]
        if not files:
            raise DataError(f"prepare.source: {source!r} matches no file")
        for file in files:
            if not is_remote(file) and not os.path.isfile(file) and not is_media_folder(file):
                raise DataError(f"prepare.source: {_why_no_file(file)}")
        all_files += [file if is_remote(file) else os.path.abspath(file) for file in files]
    return all_files


def listed(folder: str) -> list[str]:
    """Return the names of all files below a folder, relative to it, in alphabetical order; links are not followed."""
    names = []
    for path, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(path, name))]
        names += [os.path.relpath(os.path.join(path, name), folder).replace(os.sep, "/") for name in (*files, *links)]
    return sorted(names)


def _why_no_file(path: str) -> str:
    if os.path.isdir(path):
        return f"this is no file, but a folder: {path!r}{about_folder(path)}"
    if os.path.islink(path):
        return f"{path!r} is a link to nothing, or to itself"
    return f"this is no file, but a device: {path!r}" if os.path.exists(path) else f"there is no manifest {path!r}"


def open_place(place: str, what: str = "prepare.source: manifest") -> BinaryIO:
    """Open a file for reading at any position. Raises DataError, or ResourceError for a missing package."""
    try:
        if not is_remote(place):
            return open(place, "rb")
        system, path = filesystem(place)
        return _RemoteFile(system.open(path, "rb"), place)
    except FileNotFoundError:
        raise DataError(f"prepare.source: there is no manifest {place!r}") from None
    except (DataError, ResourceError):
        raise
    except Exception as error:  # of the many libraries behind fsspec
        raise DataError(f"{what} {place!r} cannot be read ({reason_of(error)})") from None


class _RemoteFile:
    """A file of fsspec's whose errors, which are of many libraries, are sentences."""

    def __init__(self, file: Any, place: str):
        self._file, self._place = file, place

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_RemoteFile":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def read(self, *arguments) -> bytes:
        """Read bytes. Raises DataError."""
        return self._call("read", *arguments)

    def readline(self, *arguments) -> bytes:
        """Read a line. Raises DataError."""
        return self._call("readline", *arguments)

    def seek(self, *arguments) -> int:
        """Go to a place. Raises DataError, as of a server that sends whole files only."""
        return self._call("seek", *arguments)

    def _call(self, name: str, *arguments) -> Any:
        try:
            return getattr(self._file, name)(*arguments)
        except Exception as error:
            raise DataError(f"{self._place!r} cannot be read ({reason_of(error)})") from None


def fetch(place: str) -> bytes:
    """Return the contents of a media file at an address. Raises DataError."""
    with open_place(place, "file") as file:
        data = file.read(MAX_ITEM_BYTES + 1)
    if len(data) > MAX_ITEM_BYTES:
        raise DataError(f"{place!r} has more than {MAX_ITEM_BYTES:,} bytes")
    return data


def fingerprint(places: Sequence[str]) -> str:
    """Return what tells files apart. Local ones: names (within a folder, with its subfolders), sizes and bytes (above
    64 MiB in all, both ends of each), so that they may move. Remote ones: what their file system says of this version
    of them."""
    digest = hashlib.sha256()
    files = [file for path in places for file in _files_of(path)]
    sizes = {path: os.path.getsize(path) for path, _ in files if not is_remote(path)}
    whole = sum(sizes.values()) <= _WHOLE
    for path, name in files:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
        digest.update(str(sizes[path] if path in sizes else _version(path)).encode())
        if path in sizes:
            size = sizes[path]
            with open_place(path) as file:
                for start, stop in [(0, size)] if whole else [(0, _END), (max(size - _END, 0), size)]:
                    file.seek(start)
                    while start < stop and (block := file.read(min(1 << 20, stop - start))):
                        digest.update(block)
                        start += len(block)
    return digest.hexdigest()[:16]


def _files_of(path: str) -> list[tuple[str, str]]:
    """Return the files of a folder, or the one file that a place is: where each is, and its name."""
    if is_remote(path) or not os.path.isdir(path):
        return [(path, path.rsplit("/", 1)[-1])]
    files = [(os.path.join(path, name), name) for name in listed(path)]
    return [(file, name) for file, name in files if os.path.isfile(file)]


def _version(address: str) -> str:
    system, path = filesystem(address)
    try:
        return str(system.checksum(path))
    except FileNotFoundError:
        raise DataError(f"prepare.source: there is no manifest {address!r}") from None
    except Exception as error:
        raise DataError(f"prepare.source: manifest {address!r} cannot be read ({reason_of(error)})") from None


@functools.lru_cache(maxsize=64)
def _filesystem(protocol: str) -> Any:
    import fsspec

    return fsspec.filesystem(protocol)


def filesystem(place: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the path in it. Raises ResourceError for a missing package."""
    protocol = place.split("://", 1)[0]
    try:
        importlib.import_module("fsspec")
    except ImportError:
        message = f"prepare.source: {place!r} needs package 'fsspec', install it: pip install 'plait[remote]'"
        raise ResourceError(message) from None
    try:
        system = _filesystem(protocol)
    except ImportError:
        package = _PACKAGES.get(protocol, protocol)
        message = f"prepare.source: {place!r} needs package {package!r}, install it: pip install {package}"
        raise ResourceError(message) from None
    except ValueError:
        raise DataError(f"prepare.source: {place!r} has an unknown protocol {protocol!r}") from None
    return system, system._strip_protocol(place)


def _remote_glob(source: str) -> list[str]:
    system, path = filesystem(source)
    try:
        return sorted(system.unstrip_protocol(name) for name in system.glob(path))
    except Exception as error:
        raise DataError(f"prepare.source: {source!r} cannot be listed ({reason_of(error)})") from None


def reason_of(error: BaseException) -> str:
    """Return an error's first line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
