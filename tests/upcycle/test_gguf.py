"""GGUF files: names, quantised tensors, rows in the order of llama.cpp's rotation, and Llama 3's factors."""

import types

import numpy as np
import pytest
import torch

from plait.common.errors import CheckpointError
from plait.config.model import Llama3Rope, ModalityConfig, ModelConfig
from plait.model.rope import frequencies
from plait.upcycle.files import gguf_name, open_tensors
from plait.upcycle.language_model import _rope_of_gguf

gguf = pytest.importorskip("gguf")
CONFIG = types.SimpleNamespace(num_attention_heads=4, num_key_value_heads=2)


def write(path, tensors: dict[str, np.ndarray], quantised: dict[str, str] | None = None, architecture: str = "llama"):
    """Write a GGUF file as llama.cpp's converter does; ``quantised`` names the types of some tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, values in tensors.items():
        kind = (quantised or {}).get(name)
        if kind is None:
            writer.add_tensor(name, values)
        else:
            as_type = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quantize(values, as_type), raw_dtype=as_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return rows [heads, 2 halves, d / 2] as pairs, the order of llama.cpp's rotation."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_tensors_are_those_of_the_model(architecture, tmp_path, rng):
    rows = {"attn_q": 64, "attn_k": 32, "attn_v": 32, "attn_output": 64}
    theirs = {name: rng.standard_normal((n, 64)).astype(np.float32) for name, n in rows.items()}
    bias = rng.standard_normal(32).astype(np.float32)
    order = permuted if architecture == "llama" else lambda weight, heads: weight
    tensors = {f"blk.1.{name}.weight": values for name, values in theirs.items()}
    tensors |= {"blk.1.attn_q.weight": order(theirs["attn_q"], 4), "blk.1.attn_k.weight": order(theirs["attn_k"], 2),
                "blk.1.attn_k.bias": order(bias, 2), "token_embd.weight": theirs["attn_v"]}  # fmt: skip
    write(tmp_path / "a.gguf", tensors, {"blk.1.attn_output.weight": "Q8_0"}, architecture)
    with open_tensors(tmp_path / "a.gguf", "a", CONFIG, "--from") as opened:
        prefix = "model.layers.1.self_attn."
        assert opened.shapes["model.embed_tokens.weight"] == (32, 64) and opened.shapes[f"{prefix}k_proj.bias"] == (32,)
        for name, short in (("attn_q", "q"), ("attn_k", "k"), ("attn_v", "v")):
            assert torch.equal(opened.read(f"{prefix}{short}_proj.weight"), torch.from_numpy(theirs[name]))
        assert torch.equal(opened.read(f"{prefix}k_proj.bias"), torch.from_numpy(bias))
        out = opened.read(f"{prefix}o_proj.weight")
        torch.testing.assert_close(out, torch.from_numpy(theirs["attn_output"]), rtol=0, atol=0.05)


def test_a_quantisation_that_cannot_be_read_is_named(tmp_path, rng, monkeypatch):
    write(tmp_path / "a.gguf", {"output.weight": rng.standard_normal((32, 64)).astype(np.float32)},
          {"output.weight": "Q8_0"})  # fmt: skip

    def refuse(data, kind):
        raise NotImplementedError(f"Dequantization for {kind.name} is not yet implemented")

    monkeypatch.setattr(gguf, "dequantize", refuse)
    with (
        open_tensors(tmp_path / "a.gguf", "a", CONFIG, "--from") as opened,
        pytest.raises(
            CheckpointError, match=r"^--from: output.weight of 'a' is quantised as Q8_0, which cannot be read"
        ),
    ):
        opened.read("lm_head.weight")


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_factors_of_llama_3_are_recognised(factor, tmp_path):
    model = ModelConfig({"text": ModalityConfig(vocab_size=9)}, width=64, num_heads=1, rope_theta=5e5)
    scaling = Llama3Rope(factor=factor)
    factors = (frequencies(64, 5e5) / frequencies(64, 5e5, scaling)).float().numpy()
    for wrong, name in ((False, "a.gguf"), (True, "b.gguf")):
        write(tmp_path / name, {"rope_freqs.weight": factors * np.linspace(1, 1.5, 32, dtype=np.float32) ** wrong})
        with open_tensors(tmp_path / name, name, CONFIG, "--from") as opened:
            if wrong:
                with pytest.raises(CheckpointError, match=r"rotary factors \(rope_freqs.weight\) other than Llama 3"):
                    _rope_of_gguf(opened, model, name, "--from")
            else:
                assert _rope_of_gguf(opened, model, name, "--from") == (scaling, ["rope_freqs.weight"])


def test_names_that_are_not_known_stay_and_so_are_refused():
    assert gguf_name("blk.0.ffn_gate_inp.weight") == "blk.0.ffn_gate_inp.weight"
    assert gguf_name("blk.12.ffn_norm.weight") == "model.layers.12.post_attention_layernorm.weight"
    assert gguf_name("output.weight") == "lm_head.weight"
