"""A narrower tower from a wider one: which channels of the stream and which hidden units are kept.

Those of the largest weights are (magnitude pruning, arXiv 2407.14679, section 2.2): of the stream, the channels whose
weights have the largest sum of squares in all that reads or writes them; of a feed-forward network, the units with the
largest product of the norms of their gate, up and down weights. Heads are the model's, so all of them stay.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from plait.model.pretrained import SavedWeights
from plait.model.traits import Place

STREAM, HIDDEN = "stream", "hidden"
_AXES: dict[tuple[str, str], tuple[str, ...]] = {
    ("embed", "weight"): ("", STREAM),
    ("head", "weight"): ("", STREAM),
    ("final_norm", "weight"): (STREAM,),
    ("attention_norm", "weight"): (STREAM,),
    ("ffn_norm", "weight"): (STREAM,),
    ("qkv", "weight"): ("", STREAM),
    ("o", "weight"): (STREAM, ""),
    ("ffn", "gate.weight"): (HIDDEN, STREAM),
    ("ffn", "up.weight"): (HIDDEN, STREAM),
    ("ffn", "down.weight"): (STREAM, HIDDEN),
}
"""What the axes of a weight stand for; those of all others stay whole."""


@dataclass(frozen=True)
class Kept:
    """The channels [D'] and, for each layer, the hidden units [F'] that are kept."""

    stream: Tensor
    hidden: list[Tensor]

    def of(self, tensor: Tensor, place: Place) -> Tensor:
        """Return what is kept of the weight of a place."""
        for axis, meaning in enumerate(_AXES.get((place.component, place.inner), ())):
            if meaning:
                kept = self.stream if meaning == STREAM else self.hidden[place.layer or 0]
                tensor = tensor.index_select(axis, kept.to(tensor.device))
        return tensor


def choose(saved: SavedWeights, tower: str, width: int, ffn_width: int) -> Kept:
    """Return what a tower of a saved model keeps in so many channels and hidden units; weights are read one by one."""
    names = {part.place: part.name for part in saved.model().parts.values() if part.tower in (tower, None)}

    def squares(component: str, inner: str, layer: int) -> Tensor:
        return saved.read(names[Place(component, inner, layer)]).double().square()

    stream, hidden = torch.zeros(saved.config.towers[tower].width, dtype=torch.float64), []
    for layer in range(saved.config.num_layers):
        norm, ffn_norm = (squares(name, "weight", layer) for name in ("attention_norm", "ffn_norm"))
        gate, up, down = (squares("ffn", f"{name}.weight", layer) for name in ("gate", "up", "down"))
        stream += squares("qkv", "weight", layer).sum(0) * norm + squares("o", "weight", layer).sum(1)
        stream += (gate.sum(0) + up.sum(0)) * ffn_norm + down.sum(1)
        hidden.append(_largest(gate.sum(1) * up.sum(1) * down.sum(0), ffn_width))
    return Kept(_largest(stream, width), hidden)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Return the places of the largest scores, in order."""
    return scores.topk(count).indices.sort().values
