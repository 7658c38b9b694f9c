"""Counter-based random draws, keyed by what is drawn and for whom.

A draw depends on (seed, document or request, epoch, position, purpose) alone, never on ranks, packing, batching or
on what was drawn before. So nothing has to be saved to resume, and re-cutting the work changes no number.
"""

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *, item: int = 0, epoch: int = 0, position: int = 0) -> np.random.Generator:
    """Return the generator for one purpose and one item (a document, a request), epoch and position."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    counter = np.array([0, position, epoch, item], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
