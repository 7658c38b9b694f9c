"""Towers that differ in their norms, biases and rotation, against formulas written out token by token."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.models import model_config, random_documents

from plait.batch.assemble import Run, assemble, pack, spell_prompt
from plait.common.errors import ConfigError
from plait.config.generation import SamplingConfig
from plait.config.model import Llama3Rope, ModelConfig, TowerConfig
from plait.generate import Request, generate
from plait.model.mot import MixtureOfTransformers
from plait.model.rope import frequencies

LLAMA3 = Llama3Rope(factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_positions=16)
CASES: dict[str, dict[str, TowerConfig]] = {
    "norms and biases": {"text": TowerConfig(qk_norm=False, qkv_bias=True), "image": TowerConfig(norm_eps=1e-2)},
    "rotation": {"text": TowerConfig(rope_theta=50.0), "image": TowerConfig(rope_theta=1e5, rope_scaling=LLAMA3)},
    "keys for others": {"text": TowerConfig(qk_norm=False, cross_key_norm=True)},
    "keys for others, twice": {"text": TowerConfig(cross_key_norm=True), "image": TowerConfig(cross_key_norm=True)},
    "all": {"text": TowerConfig(qk_norm=False, qkv_bias=True, cross_key_norm=True, norm_eps=1e-3, rope_theta=1e6),
            "image": TowerConfig(width=24, rope_scaling=4.0), "speech": TowerConfig(width=8)},
}  # fmt: skip


def mixture(case: str, **settings) -> MixtureOfTransformers:
    """Return a model with every parameter away from its start, norms and biases too."""
    towers = {name: CASES[case].get(name, TowerConfig()) for name in ("text", "image", "speech")}
    settings = {"head_dim": 8, "num_layers": 3, "unrotated_layers": (1,)} | settings
    model = MixtureOfTransformers(dataclasses.replace(model_config(**settings), towers=towers)).double()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def turned(x: torch.Tensor, position: int, ladder: torch.Tensor) -> torch.Tensor:
    """Rotate a head [..., d] by the angles of a position."""
    a, b = x.chunk(2, -1)
    cos, sin = (position * ladder).cos(), (position * ladder).sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class WrittenOut:
    """A mixture of causal tokens, one document, computed token by token from the model's weights."""

    def __init__(self, model: MixtureOfTransformers):
        self.model, self.c, self.weights = model, model.config, dict(model.named_parameters())

    def weight(self, name: str, tower: str, inner: str = "weight") -> torch.Tensor | None:
        owned = [f"{name}.{key}.{inner}" for key in (tower, "shared")]
        return next((self.weights[n] for n in owned if n in self.weights), None)

    def heads(self, layer: int, tower: str, x: torch.Tensor, position: int) -> tuple[torch.Tensor, ...]:
        """Return queries [G, r, d], keys [G, d] for the own tower and for others, and values of one token."""
        c, eps, name = self.c, self.c.of_tower(tower, "norm_eps"), f"blocks.{layer}.qkv"
        x = rms(x, self.weight(f"blocks.{layer}.attention_norm", tower), eps)
        out = F.linear(x, self.weight(name, tower), self.weight(name, tower, "bias"))
        *queries, key, value = out.unflatten(0, (c.num_kv_heads, -1, c.head_dim)).unbind(1)
        query, cross = torch.stack(queries, 1), key
        if c.of_tower(tower, "qk_norm"):
            query = rms(query, self.weight(name, tower, "query_norm.weight"), eps)
            key = cross = rms(key, self.weight(name, tower, "key_norm.weight"), eps)
        if c.towers[tower].cross_key_norm:
            raw = out.unflatten(0, (c.num_kv_heads, -1, c.head_dim))[:, -2]
            cross = rms(raw, self.weight(name, tower, "cross_key_norm.weight"), eps)
        ladder = frequencies(c.head_dim, c.of_tower(tower, "rope_theta"), c.of_tower(tower, "rope_scaling"))
        if layer in c.unrotated_layers:
            ladder = ladder * 0
        return *(turned(h, position, ladder) for h in (query, key, cross)), value

    def __call__(self, ids: list[int], towers: list[str]) -> list[torch.Tensor]:
        """Return the final hidden state of every token."""
        c = self.c
        xs = [self.weight("embed", t)[i] for i, t in zip(ids, towers, strict=True)]
        for layer in range(c.num_layers):
            heads = [self.heads(layer, t, x, p) for p, (x, t) in enumerate(zip(xs, towers, strict=True))]
            for i, tower in enumerate(towers):
                keys = [heads[j][1 if towers[j] == tower else 2] for j in range(i + 1)]
                scores = torch.einsum("grd,jgd->grj", heads[i][0], torch.stack(keys)) / c.head_dim**0.5
                seen = torch.einsum("grj,jgd->grd", scores.softmax(-1), torch.stack([h[3] for h in heads[: i + 1]]))
                x = xs[i] + F.linear(seen.flatten(), self.weight(f"blocks.{layer}.o", tower))
                name, eps = f"blocks.{layer}.ffn", c.of_tower(tower, "norm_eps")
                y = rms(x, self.weight(f"{name}_norm", tower), eps)
                gate, up, down = (self.weight(name, tower, f"{n}.weight") for n in ("gate", "up", "down"))
                xs[i] = x + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)
        return [
            rms(x, self.weight("final_norm", t), c.of_tower(t, "norm_eps")) for x, t in zip(xs, towers, strict=True)
        ]


def states_of(model: MixtureOfTransformers, documents) -> list[list[torch.Tensor]]:
    """Return the final hidden states of every token, document by document."""
    batch = pack(documents, model.config)
    hidden = [row for stream in model(batch) for row in stream]
    ordered = [hidden[i] for i in batch.routing.to_sequence.tolist()]
    edges = np.cumsum([0, *batch.lengths])
    return [ordered[a:b] for a, b in itertools.pairwise(edges)]


def towers_of_tokens(model: MixtureOfTransformers, document) -> tuple[list[int], list[str]]:
    batch = pack([document], model.config)
    return batch.ids.tolist(), [s.modality for s in batch.spans for _ in range(s.length)]


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_towers_compute_what_their_settings_say(case, rng):
    model = mixture(case)
    documents = random_documents(rng, 5)
    for document, states in zip(documents, states_of(model, documents), strict=True):
        expected = WrittenOut(model)(*towers_of_tokens(model, document))
        assert len(states) == len(expected)
        for a, b in zip(states, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
        (alone,) = states_of(model, [document])
        for a, b in zip(states, alone, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_generation_with_a_cache_is_that_without(case, rng):
    model = mixture(case)
    layout, prompts = model.config.layout, [d.parts for d in random_documents(rng, 4)]
    greedy = {"speech": SamplingConfig(temperature=0.0)}
    results = generate(model, [Request(p, "speech", greedy, {"speech": 9}, number=i) for i, p in enumerate(prompts)],
                       grids={}, max_length=200)  # fmt: skip
    for prompt, result in zip(prompts, results, strict=True):
        runs = [*spell_prompt(prompt, model.config), Run(layout.host, np.array([layout.opening["speech"]]))]
        ids: list[int] = []
        closing = layout.closing["speech"]
        while len(ids) < 9:
            batch = assemble([[*runs, Run("speech", np.array(ids, np.int64), role="generation")]], model.config)
            last = int(batch.routing.to_sequence[-1])
            rows = [torch.tensor([], dtype=torch.long) for _ in model.config.towers]
            edges = np.cumsum([0, *batch.routing.padded_sizes])
            k = int(np.searchsorted(edges, last, side="right")) - 1
            rows[k] = torch.tensor([last - edges[k]])
            scores = model.logits(model(batch), rows)[0]
            allowed = [*layout.ids("speech"), *([closing] if ids else [])]
            ids.append(allowed[int(scores[allowed].argmax())])
            if ids[-1] == closing:
                break
        expected = [i - layout.offsets["speech"] for i in ids if i != closing]
        assert result.parts[0].ids.tolist() == expected


def test_a_norm_of_keys_for_others_that_does_nothing_changes_nothing(rng):
    """Where the second norm is the first one, attention is as without it, at (1 + C) times the size of its heads."""
    documents = random_documents(rng, 4)
    plain = MixtureOfTransformers(model_config()).double()
    towers = {name: TowerConfig(cross_key_norm=name != "speech") for name in plain.config.towers}
    double = MixtureOfTransformers(dataclasses.replace(plain.config, towers=towers)).double()
    values = plain.state_dict()
    double.load_state_dict({n: values[n.replace("cross_key_norm", "key_norm")] for n in double.state_dict()})
    for a, b in zip(states_of(plain, documents), states_of(double, documents), strict=True):
        torch.testing.assert_close(torch.stack(a), torch.stack(b), rtol=0, atol=1e-12)


def test_frequencies_of_llama_3():
    """Fast ones stay, slow ones are divided, and those between fade over (transformers computes the same)."""
    scaling = Llama3Rope()
    plain, scaled = frequencies(128, 5e5), frequencies(128, 5e5, scaling)
    turns = 8192 * plain / (2 * torch.pi)
    assert torch.equal(scaled[turns > 4], plain[turns > 4])
    torch.testing.assert_close(scaled[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any() and ((plain / scaled)[between] < 8).all() and ((plain / scaled)[between] > 1).all()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"untied": ["ffn"], "towers": {"text": TowerConfig(qk_norm=False), "image": TowerConfig()}},
         r"model\.untied \(layer 0\): \['ffn'\] .*'qkv': towers with different qk_norm cannot share it"),
        ({"untied": ["qkv", "o", "ffn"], "towers": {"text": TowerConfig(norm_eps=1e-3), "image": TowerConfig()}},
         r"towers with different norm_eps cannot share it"),
        ({"untied": ["ffn"], "towers": {"text": TowerConfig(cross_key_norm=True), "image": TowerConfig()}},
         r"towers\.text\.cross_key_norm: True .*false where towers share qkv"),
        ({"unrotated_layers": (2,)}, r"model\.unrotated_layers: 2 .*0 to 1"),
        ({"bos": 20}, r"model\.bos: 20 .*0 to 19, an id of the first modality"),
        ({"stops": (3, 99)}, r"model\.stops: 99"),
    ],
)  # fmt: skip
def test_mistakes_are_named(settings, sentence):
    base = model_config()
    with pytest.raises(ConfigError, match=sentence):
        ModelConfig(**({"modalities": {n: base.modalities[n] for n in ("text", "image")}, "width": 16, "num_heads": 2,
                        "num_layers": 2} | settings))  # fmt: skip
    with pytest.raises(ConfigError, match=r"rope_scaling\.high_frequency_factor: 1\.0 .* above low_frequency_factor"):
        Llama3Rope(high_frequency_factor=1.0)
