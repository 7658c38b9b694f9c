"""One writer for each folder: a lock that the system lets go of when its process ends, however it does."""

import contextlib
import errno
import os
import shlex
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from plait.errors import Held, printable
from plait.files import clear_disk_errors, make_folder

try:
    import fcntl
except ImportError:  # no POSIX system: nobody is kept out
    fcntl = None

LOCK = ".lock"
"""The file that is locked in a folder while it is written; it goes when the writer ends well."""

_WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}
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
        again = held is not None and held[:2] == me
        if again:
            held[2] += 1
        elif held is not None and held[0] == me[0]:
            raise _held(folder, what, "another thread of this process")
    if again:
        try:
            yield
        finally:
            held[2] -= 1
        return
    made = [parent for parent in path.parents if not parent.exists()]
    make_folder(path.parent)
    with clear_disk_errors(folder):
        descriptor = _locked(path, folder, what)
    _mine[name] = [*me, 1]
    try:
        yield
    finally:
        _mine.pop(name, None)
        with contextlib.suppress(OSError):
            os.unlink(path)  # before it is let go, so that nobody locks a file that has no name
        os.close(descriptor)
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()  # refused unless it is empty


def writer_of(folder: str | Path) -> str:
    """Say which other process writes a folder, as part of a sentence; "" where none does."""
    path = Path(folder) / LOCK
    if fcntl is None or os.path.realpath(path) in _mine:
        return ""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(path)
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return ""


def _locked(path: Path, folder: Path, what: str) -> int:
    """Return the descriptor of a folder's lock file, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise _held(folder, what, _read(path)) from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                os.close(descriptor)
                raise
        if _is_file_of(descriptor, path):
            break
        os.close(descriptor)  # the one before removed its name in between
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, {command}".encode())
    return descriptor


def _is_file_of(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _read(path: Path) -> str:
    """Return what the holder of a lock wrote into it about itself."""
    try:
        who = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        who = ""
    return f"another process ({printable(who)})" if who else f"another process, which holds {str(path)!r}"


def _held(folder: Path, what: str, who: str) -> Held:
    return Held(
        f"{what}: {str(folder)!r} is being written by {who}; wait until that has ended, or stop it, and give the same "
        "command again"
    )
