"""Language models of every supported family: as a tower they compute what transformers does."""

import json

import numpy as np
import pytest
import torch
from helpers import language_models as llms
from safetensors.torch import load_file, save_file

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.common.errors import CheckpointError, ResourceError
from plait.model.mot import MixtureOfTransformers
from plait.model.pretrained import fill
from plait.upcycle.language_model import open_language_model, qkv_rows


def tower_of(folder) -> MixtureOfTransformers:
    """Return a language model as a model of one tower, in float64."""
    with open_language_model(str(folder), "--from") as saved:
        model = MixtureOfTransformers(saved.config).double()
        fill(model, model.state_dict(), saved.read)
    return model


@torch.no_grad()
def logits_of(model: MixtureOfTransformers, ids: np.ndarray) -> tuple[torch.Tensor, list[int]]:
    """Return logits [n, V] of a text, and its ids as they are fed."""
    batch = pack([Document([Part("text", np.asarray(ids))])], model.config)
    hidden = model(batch)
    return model.logits(hidden, [torch.arange(batch.num_tokens)]), batch.ids.tolist()


@pytest.mark.parametrize("family", llms.FAMILIES)
def test_logits_are_those_of_transformers(family, tmp_path):
    folder = llms.save(llms.model(family), tmp_path, shards="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    model = tower_of(folder)
    assert model.config.layout.size == 300 and model.config.layout.bos is None and model.config.layout.eos == 1
    for length in (1, 2, 37, 300, 2000):
        ours, ids = logits_of(model, llms.random_ids(length))
        assert len(ids) == length + 1 and ids[-1] == 1, "the tokenizer's own end of text ends a document"
        theirs = llms.logits(folder, ids)[:, :300]
        assert (ours - theirs).abs().max() < 1e-10


def test_a_tokenizers_own_beginning_opens_documents(tmp_path):
    folder = llms.save(llms.model("llama"), tmp_path, bos="<s>")
    model = tower_of(folder)
    ours, ids = logits_of(model, llms.random_ids(20))
    assert ids[0] == 2 and len(ids) == 22 and model.config.layout.size == 300
    assert (ours - llms.logits(folder, ids)[:, :300]).abs().max() < 1e-10


def test_rows_of_a_projection_go_by_key_head():
    query, key, value = (torch.arange(n * 10.0).view(n, 10) + 1000 * i for i, n in enumerate((12, 6, 6)))
    rows = qkv_rows(query, key, value, groups=2)
    assert rows.shape == (24, 10)
    for head in range(2):
        assert torch.equal(rows[12 * head : 12 * head + 6], query[6 * head : 6 * head + 6])
        assert torch.equal(rows[12 * head + 6 : 12 * head + 9], key[3 * head : 3 * head + 3])
        assert torch.equal(rows[12 * head + 9 : 12 * head + 12], value[3 * head : 3 * head + 3])


def altered(folder, change) -> None:
    """Change the tensors of a folder that has one file of weights."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.2.mlp.up_proj.weight"), r"lacks 'model.layers.2.mlp.up_proj.weight' \(1 "),
        (lambda t: t.update({"model.layers.0.self_attn.sinks": torch.zeros(4)}),
         r"has 'model.layers.0.self_attn.sinks', which plait has no place for \(1 such"),
        (lambda t: t.update({"model.norm.weight": torch.ones(9)}), r"'model.norm.weight' of shape \[9\], its config"),
        (lambda t: t.update({n: t[n][:200].clone() for n in ("model.embed_tokens.weight", "lm_head.weight")}),
         r"has 200 rows in 'model.embed_tokens.weight' and a tokenizer of 300 ids"),
    ],
)  # fmt: skip
def test_every_weight_is_read_and_filled(change, message, tmp_path):
    folder = llms.save(llms.model("llama"), tmp_path)
    altered(folder, change)
    with pytest.raises(CheckpointError, match=rf"^--from: '{folder}' .*{message}"):
        tower_of(folder)


def test_what_is_left_out_by_rule_is_said(tmp_path):
    folder = llms.save(llms.model("llama tied"), tmp_path)
    altered(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
                                        "lm_head.weight": t["model.embed_tokens.weight"].clone()}))  # fmt: skip
    with open_language_model(str(folder), "--from") as saved:
        assert saved.left_out == {
            "rotary frequencies, which are computed": 1,
            "copies of the embedding (tie_word_embeddings)": 1,
            "rows of ids that its tokenizer does not have": 20,
        }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gemma4"}, r"family 'gemma4', .*: per-layer input embeddings are not supported; supp"),
        ({"model_type": "gemma2"}, r"family 'gemma2', which is not supported: .*; supported: llama \(Llama 1"),
        ({"hidden_act": "gelu"}, r"has hidden_act 'gelu', plait needs 'silu'"),
        ({"attention_bias": True}, r"has attention_bias True, plait needs False"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, r"rope_type 'yarn', it must"),
        ({"model_type": "mistral", "sliding_window": 128}, r"has sliding_window 128, plait needs none, or at least"),
        ({"model_type": "no_such"}, r"the config of .* cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_tower_is_refused_by_name(values, message, tmp_path):
    folder = llms.save(llms.model("llama"), tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(CheckpointError, match=rf"^--from: .*{message}"):
        tower_of(folder)


def test_sources_that_are_no_models(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        tower_of(tmp_path)
    folder = llms.save(llms.model("llama"), tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"holds no model.safetensors, only pytorch_model.bin, a pickle"):
        tower_of(folder)
    bare = llms.save(llms.model("llama"), tmp_path / "bare")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="holds no tokenizer that can be used"):
        tower_of(bare)
    with pytest.raises(CheckpointError, match="is no name on the Hub"):
        tower_of(tmp_path / "no" / "such" / "folder")
    with pytest.raises(ResourceError, match="cannot be fetched from the Hub"):
        tower_of("nobody/no-such-model")
    (tmp_path / "a.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises((CheckpointError, ResourceError), match=r"GGUF|gguf"):
        tower_of(tmp_path / "a.gguf")
    (tmp_path / "a.bin").write_bytes(b"1")
    with pytest.raises(CheckpointError, match=r"it must be a folder, a .gguf file"):
        tower_of(tmp_path / "a.bin")
