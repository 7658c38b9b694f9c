"""Counter-based random draws, keyed by what is drawn and for whom.

A draw depends on (seed, document or request, epoch, position, purpose) alone, never on ranks, packing, batching or
on what was drawn before. So nothing has to be saved to resume, and re-cutting the work changes no number.
"""

import hashlib
import math

import numpy as np


def generator(seed: int, purpose: str, *, item: int = 0, epoch: int = 0, position: int = 0) -> np.random.Generator:
    """Return the generator for one purpose and one item (a document, a request), epoch and position."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    counter = np.array([0, position, epoch, item], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def uniforms(seed: int, purpose: str, *, item: np.ndarray, stream: int = 0, epoch: np.ndarray | int = 0) -> np.ndarray:
    """Return a number in [0, 1) for every item (int [n]) and epoch (int or [n]): for many items at once, float64 [n].

    A hash, not a generator: SplitMix64's finaliser (Steele, Lea & Flood 2014, figure 16), once for each key.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{stream}".encode(), digest_size=16).digest()
    first, second = np.frombuffer(digest, dtype=np.uint64)
    hashed = _mixed(np.asarray(item).astype(np.uint64) ^ first)
    hashed = _mixed((hashed ^ second) + _mixed(np.atleast_1d(epoch).astype(np.uint64) ^ first))
    return (hashed >> np.uint64(11)) * 2.0**-53


def permuted(places: np.ndarray, size: int, seed: int, purpose: str, *, item: int = 0, epoch: int = 0) -> np.ndarray:
    """Return what stands at ``places`` (int [n]) of a random order of [0, size), without drawing the whole order.

    A Feistel network over pairs of numbers whose product just covers ``size`` (Black & Rogaway 2002, section 5);
    what falls outside is sent through again until it falls inside (cycle walking, section 3).
    """
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    keys = generator(seed, purpose, item=item, epoch=epoch).integers(2**64, size=_ROUNDS, dtype=np.uint64)
    shuffled = np.array(places, np.uint64)
    left = np.arange(len(shuffled))
    while len(left):
        row, column = np.divmod(shuffled[left], np.uint64(columns))
        for a, b in keys.reshape(-1, 2):
            row = (row + _mixed(column ^ a) % np.uint64(rows)) % np.uint64(rows)
            column = (column + _mixed(row ^ b) % np.uint64(columns)) % np.uint64(columns)
        shuffled[left] = row * np.uint64(columns) + column
        left = left[shuffled[left] >= size]
    return shuffled.astype(np.int64)


_ROUNDS = 8


def _mixed(x: np.ndarray) -> np.ndarray:
    """Mix the bits of uint64 [n]."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
