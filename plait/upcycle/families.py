"""Which dense language models plait's blocks compute exactly, and what their config and weights are called here.

A family is a ``model_type`` of transformers. What a config asks for beyond these blocks is refused by name. Weights
have the same names in all families: those of Llama.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from plait.common.errors import CheckpointError
from plait.config.model import Llama3Rope
from plait.model.traits import Place

FAMILIES = {"llama": "Llama 1 to 3.3, SmolLM, SmolLM2", "mistral": "Mistral", "qwen2": "Qwen2, Qwen2.5",
            "qwen3": "Qwen3", "smollm3": "SmolLM3"}  # fmt: skip
"""Model types, and who has them."""

_LACKING = {
    "gemma": "its gate is a tanh GELU and its embedding is scaled",
    "gemma2": "it has norms before and after both parts of a block, soft caps and windows",
    "gemma3_text": "it has norms before and after both parts of a block, and windows with a theta of their own",
    "gemma3": "it has norms before and after both parts of a block, and windows with a theta of their own",
    "gemma3n": "per-layer input embeddings are not supported",
    "gemma4": "per-layer input embeddings are not supported",
    "olmo2": "its norms of queries and keys go over the whole projection",
    "olmo3": "its norms of queries and keys go over the whole projection",
    "phi3": "its projections are fused",
    "qwen3_moe": "layers of experts with softmax gates are not supported",
    "mixtral": "layers of experts with softmax gates are not supported",
    "gpt2": "learned positions and LayerNorm are not supported",
}
"""Why known families cannot be towers yet."""

_OUTER = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}
_INNER = {("o", "weight"): "self_attn.o_proj.weight",
          ("attention_norm", "weight"): "input_layernorm.weight",
          ("ffn_norm", "weight"): "post_attention_layernorm.weight",
          ("ffn", "gate.weight"): "mlp.gate_proj.weight", ("ffn", "up.weight"): "mlp.up_proj.weight",
          ("ffn", "down.weight"): "mlp.down_proj.weight",
          ("qkv", "query_norm.weight"): "self_attn.q_norm.weight",
          ("qkv", "key_norm.weight"): "self_attn.k_norm.weight"}  # fmt: skip
"""Weights that are copied as they are, outside of blocks and in them, by their place here."""


def model_settings(config: Any, name: str, where: str) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that follow from a transformers config; raises CheckpointError, which names
    what cannot be computed."""

    def refuse(field: str, allowed: str) -> CheckpointError:
        return CheckpointError(f"{where}: {name!r} has {field} {getattr(config, field)!r}, plait needs {allowed}")

    kind = config.model_type
    if kind not in FAMILIES:
        why = f": {_LACKING[kind]}" if kind in _LACKING else ""
        names = ", ".join(f"{family} ({who})" for family, who in FAMILIES.items())
        raise CheckpointError(
            f"{where}: {name!r} is of family {kind!r}, which is not supported{why}; supported: {names}"
        )
    for field, wanted in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False),
                          ("use_sliding_window", False), ("partial_rotary_factor", 1.0)):  # fmt: skip
        if getattr(config, field, None) not in (None, wanted):
            raise refuse(field, repr(wanted))
    window = getattr(config, "sliding_window", None)
    if kind == "mistral" and window is not None and window < config.max_position_embeddings:
        raise refuse("sliding_window", f"none, or at least max_position_embeddings ({config.max_position_embeddings})")
    heads = config.num_attention_heads
    theta, scaling = _rope(config, name, where)
    rotated = getattr(config, "no_rope_layers", None) if kind == "smollm3" else None
    return {
        "width": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": heads,
        "num_kv_heads": config.num_key_value_heads or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "ffn_width": config.intermediate_size,
        "norm_eps": _shortest(config.rms_norm_eps),
        "qk_norm": kind == "qwen3",
        "qkv_bias": kind == "qwen2",
        "rope_theta": theta,
        "rope_scaling": scaling,
        "unrotated_layers": tuple(i for i, is_rotated in enumerate(rotated or ()) if not is_rotated),
        "tie_embeddings": bool(config.tie_word_embeddings),
        "max_positions": config.max_position_embeddings,
    }


def _rope(config: Any, name: str, where: str) -> tuple[float, float | Llama3Rope]:
    """Return theta and scaling of the rotary frequencies."""
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    scaling: float | Llama3Rope = 1.0
    if kind == "linear":
        scaling = float(rope["factor"])
    elif kind == "llama3":
        scaling = Llama3Rope(rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"],
                             rope["original_max_position_embeddings"])  # fmt: skip
    elif kind != "default":
        raise CheckpointError(f"{where}: {name!r} has rope_type {kind!r}, it must be default, linear or llama3")
    return _shortest(rope["rope_theta"]), scaling


def _shortest(number: float) -> float:
    """Return a number as it was meant: a GGUF file keeps 1e-5 in float32, which is 9.99999974e-06."""
    short = np.float32(number)
    return float(str(short)) if float(short) == number else float(number)


def sources(place: Place) -> list[str]:
    """Return the tensors of a language model that make up the weight of a place, in order.

    One tensor is copied; those of queries, keys and values are put together by `qkv_rows`.
    """
    if place.layer is None:
        return [_OUTER[place.component]]
    prefix = f"model.layers.{place.layer}."
    if (place.component, place.inner) in _INNER:
        return [prefix + _INNER[place.component, place.inner]]
    return [f"{prefix}self_attn.{side}_proj.{place.inner}" for side in "qkv"]


def left_out(names: list[str], is_tied: bool) -> Iterator[tuple[str, str]]:
    """Yield those of a language model's tensors that are left out by rule, with the rule."""
    for name in names:
        if name.endswith(".rotary_emb.inv_freq"):
            yield name, "rotary frequencies, which are computed"
        elif name == "lm_head.weight" and is_tied:
            yield name, "copies of the embedding (tie_word_embeddings)"
