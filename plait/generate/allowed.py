"""Which ids may follow, by what is open.

host     ids of the host modality, <eos>, and the opening of another span where the request is free
fixed    ids of a modality whose items have a fixed number of tokens (images), then its closing delimiter
open     ids of a modality whose items end by themselves (speech), or its closing delimiter

Spans of latents draw no ids.
"""

import torch

from plait.model.mot import MixtureOfTransformers


class AllowedIds:
    """A table [states, V] of which ids may follow, and the row of each state."""

    def __init__(self, model: MixtureOfTransformers, grids: dict[str, tuple[int, ...]]):
        layout, config = model.config.layout, model.config
        others = [n for n in layout.names if n != layout.host]
        discrete = [n for n in others if config.modalities[n].objective == "next_token"]
        host = list(layout.ids(layout.host))
        openings = [layout.opening[n] for n in others if n in discrete or n in grids]
        states = {"host": [*host, layout.eos], "host first": host, "end": [layout.eos],
                  "free": [*host, layout.eos, *openings], "free first": [*host, *openings]}  # fmt: skip
        for name in discrete:
            ids, closing = list(layout.ids(name)), [layout.closing[name]]
            if name in grids:
                states[f"fixed {name}"] = ids
            else:
                states |= {f"open {name}": ids + closing, f"open {name} first": ids, f"close {name}": closing}
        self.state = {name: i for i, name in enumerate(states)}
        table = torch.zeros(len(states), layout.size, dtype=torch.bool)
        for i, ids in enumerate(states.values()):
            table[i, torch.tensor(ids)] = True
        self.table = table.to(model.device)
