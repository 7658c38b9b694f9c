"""Files that are never half written: everything is made under a temporary name and renamed."""

import contextlib
import errno
import glob
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from plait.errors import CheckpointError, ResourceError


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes its place when the block ends well, else it is removed."""
    path = Path(path)
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with clear_disk_errors(path):
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; it takes its place when the block ends well, else it is removed."""
    path = Path(path)
    _make_folder(path.parent)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with clear_disk_errors(path):
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
            replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def held(path: str | Path) -> Iterator[None]:
    """Hold a lock file while the block runs; the system lets go of it when the process ends, however it does.

    Raises `Held` where another process has it. A file system without locks keeps nobody out.
    """
    path = Path(path)
    _make_folder(path.parent)
    lock = FileLock(path)
    with clear_disk_errors(path), contextlib.suppress(NotImplementedError):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise Held(str(path)) from None
    try:
        yield
    finally:
        lock.release()


class Held(Exception):
    """Another process holds a lock."""


def replace_folder(temporary: Path, path: Path) -> None:
    """Give a folder whose files are flushed its name, in place of what has it, and flush the names too."""
    _flush(temporary)
    if path.exists():
        shutil.rmtree(path)
    os.replace(temporary, path)
    _flush(path.parent)


@contextlib.contextmanager
def clear_disk_errors(path: str | Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error):  # safetensors' own error says it in words alone
            raise ResourceError(
                f"disk: no space is left to write {str(path)!r}; what was written before is whole"
            ) from None
        if getattr(error, "errno", None) in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise ResourceError(f"disk: {str(path)!r} may not be written ({os.strerror(error.errno)})") from None
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write plain values as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """Read JSON; a missing or broken file is a CheckpointError that says ``what`` it should have been."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{what}: there is no file {str(path)!r}") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise CheckpointError(f"{what}: {str(path)!r} is not valid JSON") from None


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"disk: the folder {str(path)!r} cannot be made ({error.strerror})") from None


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary folders of processes that were killed while they wrote ``path`` on this machine."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        process = leftover.name.removesuffix(".tmp").rpartition(".")[2]
        if process.isdigit() and not _is_alive(int(process)):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
