"""Files and folders that are never half written: everything is made under a temporary name and renamed.

A folder cannot take another one's place in one step. The old one is put aside (``.<name>.old``), the new one gets the
name, and then the old one goes: whenever that is cut off, one of them is whole, and `recover` says which.
"""

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from plait.common.errors import CheckpointError, ResourceError


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes its place when the block ends well, else it is removed."""
    path = Path(path)
    make_folder(path.parent)
    _remove_leftovers(path)
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
    make_folder(path.parent)
    recover(path)
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


def replace_folder(temporary: Path, path: Path) -> None:
    """Give a folder whose files are flushed its name, in place of what has it, and flush the names too.

    Wherever this is cut off, `recover` finds the whole old folder or the whole new one.
    """
    _flush(temporary)
    recover(path)
    if path.exists():
        os.replace(path, _aside(path))
        _flush(path.parent)
    os.replace(temporary, path)
    _flush(path.parent)
    recover(path)


def recover(path: Path) -> None:
    """End what a killed `replace_folder` had begun: the old folder gets its name back, or goes."""
    old = _aside(path)
    if not old.exists():
        return
    if not path.exists():
        os.replace(old, path)
    else:
        remove_folder(old)
    _flush(path.parent)


def recover_all(folder: Path) -> None:
    """End what killed calls of `replace_folder` had begun in a folder."""
    for old in Path(folder).glob(".*.old"):
        recover(old.with_name(old.name.removeprefix(".").removesuffix(".old")))


def remove_folder(path: Path) -> None:
    """Remove a folder under another name, so that no half of it ever stands where a whole one did."""
    gone = path.with_name(f".{path.name.removeprefix('.')}.{os.getpid()}.tmp")
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


@contextlib.contextmanager
def clear_disk_errors(path: str | Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        full = number in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error):  # safetensors' own error says it in words alone
            raise ResourceError(
                f"disk: no space is left to write {str(path)!r}; what was written before is whole"
            ) from None
        if number in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise ResourceError(f"disk: {str(path)!r} may not be written ({os.strerror(number)})") from None
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How numbers are written that JSON does not have."""


def to_json(value: Any) -> Any:
    """Return plain values with texts in place of the numbers that are not finite, however deep."""
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, dict):
        return {name: to_json(v) for name, v in value.items()}
    return [to_json(v) for v in value] if isinstance(value, list | tuple) else value


def from_json(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return a flat map read from JSON with numbers in place of the texts NaN, Infinity and -Infinity."""
    return {k: NOT_FINITE.get(v, v) if isinstance(v, str) else v for k, v in figures.items()}


def write_json(path: str | Path, value: Any) -> None:
    """Write plain values as JSON, whole or not at all; numbers that are not finite as `to_json` has them."""
    write_text(path, json.dumps(to_json(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """Read JSON; a missing or broken file is a CheckpointError that says ``what`` it should have been."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{what}: there is no file {str(path)!r}") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise CheckpointError(f"{what}: {str(path)!r} is not valid JSON") from None


def make_folder(path: Path) -> None:
    """Make a folder and those above it; raises ResourceError where that cannot be."""
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
    """Remove what processes of this machine that were killed while they wrote ``path`` left under temporary names."""
    start, end = f".{path.name}.", ".tmp"
    with os.scandir(path.parent) as entries:  # a pattern would be slower in folders of many files
        names = [e.name for e in entries if e.name.startswith(start) and e.name.endswith(end)]
    for name in names:
        process = name.removesuffix(end).rpartition(".")[2]
        if not process.isdecimal() or _is_alive(int(process)):
            continue
        leftover = path.with_name(name)
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                leftover.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
