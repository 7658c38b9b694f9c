"""One writer for each folder: a lock that the system lets go of when its process ends, however it does."""

import contextlib
import os
import shlex
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from plait.common.errors import Held, printable
from plait.common.files import clear_disk_errors, make_folder

LOCK = ".lock"
"""The file that is locked in a folder while it is written; it goes when the writer ends well."""

_mine: dict[str, list[int]] = {}
"""Folders that this process holds: its id (a fork holds nothing), the thread that does, and how often it does."""
_guard = threading.Lock()


@contextlib.contextmanager
def one_writer(folder: str | Path, what: str, *, replaced: bool = False) -> Iterator[None]:
    """Be the one who writes a folder while the block runs; ``what`` says whose it is (run, data.path, --out).

    A thread that holds a folder may take it again, so that steps which lock can be made of others that do. Raises
    `Held`, which is one sentence, where somebody else writes it, and changes nothing there then. The folder is made,
    and removed again where nothing was written into it. A file system without locks keeps nobody out. The lock of a
    folder that is ``replaced`` as a whole stands beside it.
    """
    folder = Path(folder)
    path = folder.with_name(f".{folder.name}{LOCK}") if replaced else folder / LOCK
    name, me = os.path.realpath(path), [os.getpid(), threading.get_ident()]
    with _guard:
        held = _mine.get(name)
        again = held if held is not None and held[:2] == me else None
        if again is not None:
            again[2] += 1
        elif held is not None and held[0] == me[0]:
            raise _held(folder, what, "another thread of this process")
    if again is not None:
        try:
            yield
        finally:
            again[2] -= 1
        return
    made = [parent for parent in path.parents if not parent.exists()]
    make_folder(path.parent)
    with clear_disk_errors(folder):
        lock = _locked(path, folder, what)
    _mine[name] = [*me, 1]
    try:
        yield
    finally:
        _mine.pop(name, None)
        with contextlib.suppress(OSError):
            os.unlink(path)  # before it is released, so that nobody locks a file that has no name
        lock.release()
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()  # refused unless it is empty


def writer_of(folder: str | Path) -> str:
    """Say which other process writes a folder; "" where none does."""
    path = Path(folder) / LOCK
    if os.path.realpath(path) in _mine or not path.exists():
        return ""
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return _read(path)
    except (OSError, NotImplementedError):
        return ""
    lock.release()
    return ""


def _lock(path: Path) -> FileLock:
    return FileLock(path, thread_local=False)


def _locked(path: Path, folder: Path, what: str) -> FileLock:
    """Return the lock of a folder, acquired, with its holder's name in the file."""
    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise _held(folder, what, _read(path)) from None
    except NotImplementedError:  # a file system without locks keeps nobody out
        return lock
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    path.write_text(f"process {os.getpid()} on {socket.gethostname()}, {command}", encoding="utf-8")
    return lock


def _read(path: Path) -> str:
    """Return what the holder of a lock wrote into it about itself."""
    try:
        who = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        who = ""
    return f"another process ({printable(who)})" if who else f"another process, which holds {str(path)!r}"


def _held(folder: Path, what: str, who: str) -> Held:
    return Held(
        f"{what}: {str(folder)!r} is being written by {who}; wait for it to finish or stop it, then rerun the same "
        "command"
    )
