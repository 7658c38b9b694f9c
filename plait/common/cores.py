"""The cores that this process may use."""

import os


def num_cores() -> int:
    """Return how many there are, where the system says so; all of the machine's else."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
