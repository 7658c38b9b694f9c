"""Keep memory that was freed, as training asks for as much again in the next step.

glibc gives large blocks back to the system as soon as they are free, and the system hands out pages anew at their first
use, which costs a good part of a training step on a CPU (docs/experiments.md). GPUs have torch's own caching allocator.
"""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt(3)


def keep_freed_memory() -> bool:
    """Have this process keep freed blocks for later ones; returns whether the C library can (glibc).

    Holds for the whole process, which then keeps the most memory that it ever used.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_MMAP_MAX, 0))
