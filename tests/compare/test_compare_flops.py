"""Operations by formula against torch's own count, and against a count by hand."""

import pytest
import torch
from helpers.models import modalities, model_config, random_documents, with_modality

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.common.errors import ConfigError
from plait.compare.equal_flops import attention_cells, counted_flops, forward_flops, step_flops, unpadded
from plait.config.model import ModalityConfig, ModelConfig, TowerConfig
from plait.config.run import RunConfig, TrainConfig
from plait.model.latent_patches import place_embedding
from plait.model.mot import MixtureOfTransformers
from plait.plan.flops import active_parameters, num_parameters, visible_pairs

ONE_TOWER = {"image": "text", "speech": "text"}


def one_tower(**tower) -> ModelConfig:
    return ModelConfig(modalities=modalities(towers=dict(ONE_TOWER)), width=16, num_layers=2, num_heads=2,
                       num_kv_heads=1, ffn_width=24, towers={"text": TowerConfig(**tower)})  # fmt: skip


def packed(config: ModelConfig, rng, count=12, **kinds):
    return unpadded(pack(random_documents(rng, count, **kinds), config), RunConfig(model=config))


def both_counts(config: ModelConfig, batch) -> tuple[float, float]:
    """Return torch's count, and the formula's with attention as torch sees what runs: 2 products, and 5 backward."""
    found = forward_flops(config, batch)
    attention = 7 * 2 * config.num_layers * config.num_heads * config.head_dim * attention_cells(batch)
    return counted_flops(config, batch), 3 * (sum(found.values()) - found["attention"]) + attention


@pytest.mark.parametrize(
    "config",
    [model_config(), one_tower(), model_config(untied=["ffn"]), one_tower(ffn="moe", num_experts=8, top_k=2),
     model_config(untied=["qkv", "o", "ffn", "norm"], towers={"speech": "image"}),
     model_config(num_kv_heads=2, num_layers=3, tie_embeddings=True)],
    ids=["three towers", "one tower", "ffn", "token choice", "two towers", "tied"],
)  # fmt: skip
def test_the_formula_is_what_torch_counts(config, rng):
    counted, formula = both_counts(config, packed(config, rng))
    assert counted == formula


def test_towers_of_different_width(rng):
    config = ModelConfig(modalities=modalities(), width=16, num_layers=2, num_heads=2, head_dim=8,
                         towers={"image": TowerConfig(width=24, ffn_width=40)})  # fmt: skip
    counted, formula = both_counts(config, packed(config, rng))
    assert counted == formula


def test_expert_choice_comes_close(rng):
    config = one_tower(ffn="moe", num_experts=4, top_k=1, moe_routing="expert_choice")
    counted, formula = both_counts(config, packed(config, rng, 24))
    assert counted == pytest.approx(formula, rel=0.01)  # capacities are whole numbers


def test_latents_come_close(rng):
    """What leads to the inputs alone has no gradient of its inputs."""
    config = model_config(mel=True)
    batch = packed(config, rng, mel=True)
    counted, formula = both_counts(config, batch)
    inputs = 2 * 256 * config.width * len(batch.latents["mel"].values)
    inputs += 2 * 3 * config.width * len(batch.latents["mel"].values)
    assert counted == formula - inputs


def test_by_hand():
    config = one_tower()
    document = Document([Part("text", ids=[1, 2, 3]), Part("image", ids=[4, 5])])
    batch = unpadded(pack([document], config), RunConfig(model=config))
    n = 9  # <bos> 3 <image> 2 </image> <eos>
    assert batch.num_tokens == n and visible_pairs(batch) == 45 and attention_cells(batch) == 81
    found = forward_flops(config, batch)
    assert found == {
        "qkv": 2 * 2 * n * 16 * (16 + 16), "attention": 2 * 4 * 16 * 45, "o": 2 * 2 * n * 16 * 16,
        "ffn": 2 * 2 * 3 * n * 16 * 24, "router": 0, "head": 2 * 8 * 16 * config.layout.size, "latents": 0,
    }  # fmt: skip


def test_a_mixture_costs_what_the_dense_model_does_and_padding_costs_nothing(rng):
    documents = random_documents(rng, 12)
    counts = []
    for config in (model_config(), one_tower(), model_config(untied=["ffn"])):
        run = RunConfig(model=config)
        for pad in (1, 64):
            found = step_flops(run, [pack(documents, config, pad_rows_to=pad)])
            counts.append((found.formula, found.counted))
    assert len(set(counts)) == 1


def test_accumulated_batches_are_one_step(rng):
    config = RunConfig(model=model_config())
    batches = [pack(random_documents(rng, 4), config.model) for _ in range(2)]
    single = [step_flops(config, [b]).formula for b in batches]
    config.train.accumulate = 6
    assert step_flops(config, batches).formula == pytest.approx(3 * sum(single))
    config.train = TrainConfig(global_batch_tokens=12 * config.data.batch_tokens)
    assert step_flops(config, batches).formula == pytest.approx(6 * sum(single))


def test_a_unet_is_refused(rng):
    config = with_modality(model_config(mel=True), "mel", patch_network="unet")
    with pytest.raises(ConfigError, match=r"mel\.patch_network: 'unet' .* must be linear"):
        forward_flops(config, packed(config, rng, mel=True))


def test_parameters():
    dense, moe = one_tower(), one_tower(ffn="moe", num_experts=4, top_k=1)
    experts = 2 * 4 * 3 * 16 * 24
    assert num_parameters(moe) == num_parameters(dense) + experts * 3 // 4 + 2 * 16 * 4
    assert active_parameters(dense) == num_parameters(dense)
    assert active_parameters(moe) == num_parameters(dense) + 2 * 16 * 4
    mixture = ModelConfig(modalities={"a": ModalityConfig(vocab_size=4), "b": ModalityConfig(vocab_size=4)}, width=64)
    assert active_parameters(mixture) < num_parameters(mixture)


def test_counting_leaves_nothing_behind(rng):
    """Tables that the model keeps between steps are real ones afterwards."""
    config = model_config(mel=True)
    batch = packed(config, rng, mel=True)
    model = MixtureOfTransformers(config)
    before = model(batch)
    counted_flops(config, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, model(batch), strict=True))
    place_embedding.cache_clear()
    counted_flops(config, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, model(batch), strict=True))
