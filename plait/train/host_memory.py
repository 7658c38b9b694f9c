"""Peak host memory of a process and its descendants.

The measure is the sum of PSS (proportional set size, from ``/proc/<pid>/smaps_rollup``) over the process tree. A page
that n processes share counts as 1/n in each of them, so a forked child's inherited memory is counted once. The sum is
sampled by a thread every 0.2 s, and at most a fiftieth of the time is spent on it; a peak that is shorter than this
can be missed. The maximum is kept, so memory that is freed later still counts.

Where the kernel has no smaps_rollup (macOS), the peak is the largest resident memory (RSS) of the main process since
it started, without children. `MEASURE` says which of the two a machine has.
"""

import contextlib
import os
import resource
import sys
import threading
import time
from pathlib import Path

PROC = Path("/proc")
SECONDS_BETWEEN_SAMPLES = 0.2
LARGEST_SHARE = 1 / 50
"""Share of one core's time that sampling may take: the pause is stretched where a sample is slow."""
GB = 1e9


def proportional_bytes(process: int) -> int | None:
    """Return a process's PSS in bytes; None where it has ended or the kernel does not tell."""
    try:
        for line in (PROC / str(process) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def process_tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    processes = [root]
    for process in processes:  # grows while it is read
        with contextlib.suppress(OSError):  # it has ended
            for thread in (PROC / str(process) / "task").iterdir():
                processes += map(int, (thread / "children").read_text().split())
    return processes


def tree_bytes() -> int:
    """Return the sum of PSS over this process and its descendants now, in bytes."""
    return sum(proportional_bytes(process) or 0 for process in process_tree(os.getpid()))


def resident_bytes() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


HAS_PSS = proportional_bytes(os.getpid()) is not None
MEASURE = "PSS of the process tree, sampled" if HAS_PSS else "RSS of the main process, without children"
"""What `MemoryWatch` measures on this machine."""


class MemoryWatch(contextlib.AbstractContextManager["MemoryWatch"]):
    """Measures the peak host memory while its context is entered; all watches share one sampling thread."""

    _active: list["MemoryWatch"] = []
    _lock = threading.Lock()
    _thread: threading.Thread | None = None

    def __init__(self) -> None:
        self._peak = 0

    @property
    def peak_gb(self) -> float:
        """The largest sample so far, in GB (1e9 bytes)."""
        return self._peak / GB

    def __enter__(self) -> "MemoryWatch":
        with MemoryWatch._lock:
            MemoryWatch._active.append(self)
            _sample()
            if MemoryWatch._thread is None or not MemoryWatch._thread.is_alive():
                MemoryWatch._thread = threading.Thread(target=_keep_sampling, name="host memory", daemon=True)
                MemoryWatch._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with MemoryWatch._lock:
            _sample()
            MemoryWatch._active.remove(self)


def _sample() -> None:
    """Take one sample for all watches; the caller holds the lock."""
    now = tree_bytes() if HAS_PSS else resident_bytes()
    for watch in MemoryWatch._active:
        watch._peak = max(watch._peak, now)


def _keep_sampling() -> None:
    """Sample until no watch is active."""
    while True:
        with MemoryWatch._lock:
            if not MemoryWatch._active:
                MemoryWatch._thread = None
                return
            started = time.perf_counter()
            _sample()
            taken = time.perf_counter() - started
        time.sleep(max(SECONDS_BETWEEN_SAMPLES, taken / LARGEST_SHARE))


def _forget_the_parent() -> None:
    """A forked child has no sampling thread, and perhaps a lock that its parent held."""
    MemoryWatch._active, MemoryWatch._lock, MemoryWatch._thread = [], threading.Lock(), None


os.register_at_fork(after_in_child=_forget_the_parent)
