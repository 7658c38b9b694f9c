"""A tower that starts from a saved model takes all it computes with, or is refused; nothing stays random unsaid."""

import pytest
import torch
from helpers.models import model_config
from helpers.weights import triples

from plait.common.errors import CheckpointError
from plait.config.model import ModalityConfig, ModelConfig, TowerConfig
from plait.model.init_from import start_model, start_towers
from plait.model.mot import MixtureOfTransformers
from plait.model.pretrained import save_pretrained

DENSE = {"text": "all", "image": "all", "speech": "all"}


def saved(folder, seed=3, **settings) -> MixtureOfTransformers:
    model = MixtureOfTransformers(model_config(**{"towers": DENSE} | settings), seed=seed)
    save_pretrained(model, folder)
    return model


def of(names: dict[str, int], *, tower="", **settings) -> ModelConfig:
    """A model of some modalities and their numbers of ids, in that order; 0 ids are latents."""
    records = {
        name: ModalityConfig(vocab_size=size, tower=tower)
        if size
        else ModalityConfig(objective="diffusion", attention="bidirectional", latent_channels=3, tower=tower)
        for name, size in names.items()
    }
    return ModelConfig(records, **{"width": 16, "num_layers": 2, "num_heads": 2, "ffn_width": 24} | settings)


@pytest.mark.parametrize("source", [{}, {"untied": ["ffn"]}], ids=["dense", "one ffn each"])
@pytest.mark.parametrize("untied", [["qkv", "o", "ffn", "norm"], ["ffn"], []], ids=["all", "ffn", "none"])
@pytest.mark.parametrize("tied", [False, True])
def test_all_that_a_tower_computes_with_is_filled(tmp_path, source, untied, tied):
    """With one ffn each, attention, embedding and head are the saved ones too; other towers' own weights stay."""
    towers = {} if source else {"towers": DENSE}
    dense = MixtureOfTransformers(model_config(tie_embeddings=tied, **towers, **source), seed=3)
    save_pretrained(dense, tmp_path)
    theirs = {part.place: p for part, p in dense.weights() if part.tower in ("all", "image", None)}
    model, fresh = (MixtureOfTransformers(model_config(untied=untied)) for _ in range(2))
    (line,) = start_towers(model, {"image": str(tmp_path)})
    for (part, p), before in zip(model.weights(), fresh.parameters(), strict=True):
        if part.tower in ("image", None):
            tied_head = tied and part.place.component == "head"
            assert torch.equal(
                p, dense.head_weights()[next(iter(dense.embed))].weight if tied_head else theirs[part.place]
            ), part.name
        else:
            assert torch.equal(p, before), part.name
    assert "left out" not in line and "from scratch" not in line


@pytest.mark.parametrize(("settings", "message"), [
    ({"num_layers": 3}, "has 3 layers and this model has 2.*set model.num_layers to 3"),
    ({"num_layers": 1}, "has 1 layers"),
    ({"num_heads": 4, "num_kv_heads": 4, "head_dim": 4}, "num_heads 4 and this model has 2, set model.num_heads to 4"),
    ({"norm_order": "post"}, "norm_order 'post'"),
    ({"qkv_bias": True}, r"has 'blocks.0.qkv.all.bias', which tower 'image' of this model has no place for"),
    ({"qk_norm": False}, r"has nothing for 'blocks.0.qkv.image.query_norm.weight'"),
    ({"ffn_width": 32}, r"'blocks.0.ffn.all.gate.weight' of shape \[32, 16\]"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_and_nothing_is_changed(tmp_path, settings, message):
    saved(tmp_path, **settings)
    model, fresh = (MixtureOfTransformers(model_config()) for _ in range(2))
    with pytest.raises(CheckpointError, match=rf"^model\.towers\.image\.init_from: .*{message}"):
        start_towers(model, {"image": str(tmp_path)})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_a_head_that_would_be_lost(tmp_path):
    saved(tmp_path)
    with pytest.raises(CheckpointError, match=r"set model\.tie_embeddings to false"):
        start_towers(MixtureOfTransformers(model_config(tie_embeddings=True)), {"image": str(tmp_path)})


def test_ids_go_by_modality(tmp_path):
    """Ids in another order, a modality more and one less: rows follow their modality, the rest is said."""
    dense = MixtureOfTransformers(of({"text": 20, "speech": 9, "image": 12}, tower="all"), seed=3)
    save_pretrained(dense, tmp_path)
    model = MixtureOfTransformers(of({"text": 20, "image": 12, "smell": 5}))
    (line,) = start_towers(model, {"image": str(tmp_path)})
    assert "left out: 1 of speech ids (head)" in line and "from scratch: 1 of smell ids (embed)" in line
    layout, other = model.config.layout, dense.config.layout
    for mine, theirs in ((model.embed, dense.embed), (model.head, dense.head)):
        mine, theirs = mine["shared"].weight.detach(), theirs["all"].weight
        for name in ("text", "image"):
            assert torch.equal(mine[list(layout.ids(name))], theirs[list(other.ids(name))])
        assert torch.equal(mine[layout.closing["image"]], theirs[other.closing["image"]])
        assert torch.equal(mine[layout.bos], theirs[other.bos]) and torch.equal(mine[layout.eos], theirs[other.eos])
        known = [
            *layout.ids("text"),
            *layout.ids("image"),
            *layout.added,
            layout.opening["image"],
            layout.closing["image"],
        ]
        new = [i for i in range(layout.size) if i not in known]
        assert len(new) == 7, "ids that the saved model lacks begin at the mean of those that it has"
        torch.testing.assert_close(mine[new], mine[known].mean(0).expand(7, -1))


def test_latents_go_by_modality(tmp_path):
    """Those of a modality that the saved model lacks train from scratch, those of another tower's are left out."""
    save_pretrained(MixtureOfTransformers(of({"text": 20, "mel": 0}, tower="all"), seed=3), tmp_path)
    model = MixtureOfTransformers(of({"text": 20, "mel": 0, "depth": 0}))
    (text,) = start_towers(model, {"text": str(tmp_path)})
    assert "left out: 8 of mel latents, which tower 'text' does not carry" in text
    start_towers(model, {"mel": str(tmp_path)})
    (depth,) = start_towers(model, {"depth": str(tmp_path)})
    assert "from scratch: 8 of depth latents, which it does not have" in depth


def test_another_number_of_ids_is_refused(tmp_path):
    save_pretrained(MixtureOfTransformers(of({"text": 21, "image": 12}, tower="all")), tmp_path)
    with pytest.raises(CheckpointError, match=r"21 ids of text and this model has 20.*text\.vocab_size to 21"):
        start_towers(MixtureOfTransformers(of({"text": 20, "image": 12})), {"image": str(tmp_path)})


def test_two_sources_of_what_towers_share_are_refused(tmp_path):
    for name, seed in (("a", 3), ("b", 4)):
        saved(tmp_path / name, seed=seed)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"image\.init_from: .*shared.*text\.init_from.*start both from one"):
        start_towers(MixtureOfTransformers(model_config(untied=["ffn"])), {"text": a, "image": b})
    start_towers(MixtureOfTransformers(model_config(untied=["ffn"])), {"text": a, "image": a})
    # of two modalities each one's rows, no conflict
    save_pretrained(MixtureOfTransformers(of({"text": 20}), seed=3), tmp_path / "text")
    save_pretrained(MixtureOfTransformers(of({"image": 12}), seed=4), tmp_path / "image")
    model = MixtureOfTransformers(of({"text": 20, "image": 12}))
    with pytest.raises(CheckpointError, match="which towers share"):
        start_towers(
            MixtureOfTransformers(of({"text": 20, "image": 12}, untied=["ffn"])),
            {n: str(tmp_path / n) for n in ("text", "image")},
        )
    start_towers(model, {n: str(tmp_path / n) for n in ("text", "image")})


def test_a_tower_of_several_by_name(tmp_path):
    """Other towers of the saved model are left out; a saved model without such a tower is refused."""
    save_pretrained(MixtureOfTransformers(model_config(), seed=3), tmp_path)
    names = ("normals", "gate", "o")
    model = MixtureOfTransformers(of(dict.fromkeys(names, 7)))
    with pytest.raises(CheckpointError, match="has the towers text, image, speech, it must have one tower, or one"):
        start_towers(model, {"gate": str(tmp_path)})


@pytest.mark.parametrize("untied", [["qkv", "o", "ffn", "norm"], ["ffn"]], ids=["all", "ffn"])
def test_names_of_towers_do_not_matter(tmp_path, untied):
    """A tower `gate` beside `text` takes its own weights and the shared ones only, whatever the weights are called."""
    for number, names in enumerate([("text", "gate", "o"), *triples()[::5]]):
        dense = MixtureOfTransformers(of(dict.fromkeys(names, 7), tower=names[2]), seed=3)
        save_pretrained(dense, tmp_path / str(number))
        model, fresh = (MixtureOfTransformers(of(dict.fromkeys(names, 7), untied=untied)) for _ in range(2))
        start_towers(model, {names[1]: str(tmp_path / str(number))})
        for (part, p), before in zip(model.weights(), fresh.parameters(), strict=True):
            same = part.trait.start == "ones" or part.tower in (names[0], names[2])
            assert torch.equal(p, before) == same, (names, part.name)


def test_a_whole_model_is_one_of_the_same_ids_and_heads(tmp_path):
    """Of the same shapes, yet not the same model: refused rather than read as something else."""
    save_pretrained(MixtureOfTransformers(of({"text": 20, "image": 12, "speech": 9})), tmp_path)
    for config, message in (
        (
            of({"text": 20, "image": 9, "speech": 12}),
            "20 of text, 12 of image, 9 of speech, this model has 20",
        ),
        (of({"text": 20, "image": 12, "speech": 9}, num_heads=4, head_dim=4), "num_heads 2, this model has 4"),
        (of({"text": 20, "image": 12, "speech": 9}, norm_order="post"), "norm_order"),
        (of({"text": 20, "image": 12, "speech": 9}, towers={"image": TowerConfig(ffn_width=32)}), "has shape"),
    ):
        with pytest.raises(CheckpointError, match=rf"^train\.init_from: .*{message}"):
            start_model(MixtureOfTransformers(config), tmp_path)


LATENTS = {"objective": "diffusion", "latent_channels": 8, "attention": "bidirectional"}


def of_kinds(tower=None, latents=None, **settings) -> ModelConfig:
    """A tower of experts and a modality of latents."""
    records = {"text": ModalityConfig(vocab_size=9), "mel": ModalityConfig(**LATENTS | (latents or {}))}
    towers = {"text": TowerConfig(ffn="moe", num_experts=3, ffn_width=24, **(tower or {})), "mel": TowerConfig()}
    return ModelConfig(records, towers, **{"width": 16, "num_layers": 1, "num_heads": 2} | settings)


@pytest.mark.parametrize(("settings", "name"), [
    ({"tower": {"moe_routing": "expert_choice"}}, "model.towers.text.moe_routing 'expert_choice'"),
    ({"latents": {"place_embedding": True}}, "model.modalities.mel.place_embedding True"),
    ({"latents": {"patch_size": 2}}, "model.modalities.mel.patch_size 2"),
])  # fmt: skip
def test_what_would_be_read_otherwise_is_refused(tmp_path, settings, name):
    """Of the same places and shapes: experts chosen another way, latents laid out another way."""
    save_pretrained(MixtureOfTransformers(of_kinds(**settings)), tmp_path)
    model = MixtureOfTransformers(of_kinds())
    tower = "mel" if "latents" in settings else "text"
    with pytest.raises(CheckpointError, match=rf"^model\.towers\.{tower}\.init_from: .*has {name} and this model has"):
        start_towers(model, {tower: str(tmp_path)})
    with pytest.raises(CheckpointError, match=rf"^train\.init_from: .*has {name}, this model has"):
        start_model(model, tmp_path)


def test_settings_that_may_differ_are_said(tmp_path):
    """For longer documents it is meant, else a mistake."""
    save_pretrained(MixtureOfTransformers(of_kinds(rope_theta=1e6, tower={"top_k": 2})), tmp_path)
    model = MixtureOfTransformers(of_kinds())
    for line in (*start_towers(model, {"text": str(tmp_path)}), *start_model(model, tmp_path)):
        assert line.endswith("; model.rope_theta is 10000.0, it was 1000000.0; model.towers.text.top_k is 1, it was 2")
    save_pretrained(model, tmp_path / "same")
    assert start_model(model, tmp_path / "same") == []
