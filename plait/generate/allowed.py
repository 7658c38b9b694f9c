"""Which ids may follow, by what is open.

host     ids of the host modality, <eos>, and the opening of another span where the request is free; the first id is
         none that ends texts
fixed    ids of a modality whose items have a fixed number of tokens (images), then its closing delimiter
open     ids of a modality whose items end by themselves (speech), or its closing delimiter

Spans of latents draw no ids.
"""

import numpy as np
import torch

from plait.generate.rows import Row
from plait.model.mot import MixtureOfTransformers


class AllowedIds:
    """A table [states, V] that is 0 for ids that may follow and -inf for others, and the state of each row."""

    def __init__(self, model: MixtureOfTransformers, grids: dict[str, tuple[int, ...]], default_max_tokens: int):
        layout, config = model.config.layout, model.config
        self.host, self.grids, self.default_max_tokens = layout.host, grids, default_max_tokens
        others = [n for n in layout.names if n != layout.host and config.modalities[n].objective != "input"]
        discrete = [n for n in others if config.modalities[n].objective == "next_token"]
        host, end = np.array(layout.ids(layout.host)), np.array([layout.eos])
        first = host[~np.isin(host, list(layout.stops))]
        openings = np.array([layout.opening[n] for n in others if n in discrete or n in grids], np.int64)
        states = {"host": np.append(host, end), "host first": first, "end": end,
                  "free": np.concatenate([host, end, openings]), "free first": np.append(first, openings)}  # fmt: skip
        for name in discrete:
            ids, closing = np.array(layout.ids(name)), np.array([layout.closing[name]])
            if name in grids:
                states[f"fixed {name}"] = ids
            else:
                states |= {f"open {name}": np.append(ids, closing), f"open {name} first": ids, f"close {name}": closing}
        self.index = {name: i for i, name in enumerate(states)}
        self.ranges = [(int(ids.min()), int(ids.max()) + 1) for ids in states.values()]
        """For each state the least range that holds its ids: nothing outside of it has to be scored."""
        table = torch.full((len(states), layout.size), float("-inf"))
        for i, ids in enumerate(states.values()):
            table[i, torch.from_numpy(ids)] = 0.0
        self.table = table.to(model.device, torch.promote_types(model.dtype, torch.float32))

    def state_of(self, row: Row) -> int:
        """Return which ids may follow in a row: the row of the table."""
        if row.span is None:
            free = row.request.output is None
            room = row.num_spans < row.request.max_spans
            if row.host_tokens >= self.longest(row, self.host):
                return self.index["end"]
            empty = not row.host_tokens and not row.num_spans
            return self.index[("free" if free and room else "host") + (" first" if empty else "")]
        if row.span in self.grids:
            return self.index[f"fixed {row.span}"]
        if len(row.tokens) >= self.longest(row, row.span):
            return self.index[f"close {row.span}"]
        return self.index[f"open {row.span}" + ("" if row.tokens else " first")]

    def longest(self, row: Row, modality: str) -> int:
        """Return the most tokens that a span of a row may have."""
        return row.request.max_tokens.get(modality, self.default_max_tokens)
