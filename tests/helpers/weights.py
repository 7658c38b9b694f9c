"""Names that towers may have, strange ones."""

import numpy as np

STRANGE = ("normals", "gate", "o", "weight", "shared_x", "head", "norm", "bias", "embed", "down", "qkv", "blocks",
           "last", "up", "latent_out", "final_norm", "router", "expert_bias", "keys", "items", "values", "pop", "clear",
           "update", "forward", "training", "total", "text", "parts")  # fmt: skip


def triples() -> list[tuple[str, str, str]]:
    """Names of three towers: each strange one in each place at least once."""
    order = np.random.default_rng(0).permutation(len(STRANGE))
    return [tuple(STRANGE[order[(i + j) % len(order)]] for j in range(3)) for i in range(len(order))]
