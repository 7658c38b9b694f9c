"""The dense transformer with the weights of one tower."""

import re

import torch

from helpers.dense_reference import Dense
from plait.model.mot import MixtureOfTransformers


def in_sequence(hidden, batch):
    return torch.cat(hidden).index_select(0, batch.routing.to_sequence)


def copy_to_dense(model: MixtureOfTransformers, tower: str) -> Dense:
    c = model.config
    dense = Dense(c.layout.size, c.width, c.num_layers, c.num_heads, c.num_kv_heads, c.head_dim,
                  c.towers[tower].ffn_width, c.norm_order == "pre").double()  # fmt: skip
    state = {}
    for name, value in model.state_dict().items():
        if f".{tower}." not in name and ".shared." not in name:
            continue
        name = re.sub(rf"\.({tower}|shared)", "", name).replace(".ffn.", ".")
        if name.endswith("qkv.weight"):
            heads = value.unflatten(0, (c.num_kv_heads, -1, c.head_dim)).split((c.num_heads // c.num_kv_heads, 1, 1), 1)
            names = (name.replace("qkv", projection) for projection in ("query", "key", "value"))
            state |= zip(names, (h.flatten(0, 2) for h in heads), strict=True)
        else:
            state[name.replace(".qkv.", ".")] = value
    dense.load_state_dict(state)
    return dense
