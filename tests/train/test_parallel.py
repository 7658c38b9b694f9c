"""Losses, gradients and steps do not depend on how the work is cut: one process equals two ranks and four."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.fake_data import run_config, scene_like, write_folder
from helpers.models import modalities, random_documents, with_modality
from helpers.ranks import Steps, Workers, samples, train_run, train_steps

from plait.config.model import LoraConfig, ModelConfig, TowerConfig
from plait.config.run import ParallelConfig, RunConfig, TrainConfig
from plait.config.run_records import TowerSettings
from plait.model.mot import MixtureOfTransformers
from plait.model.pretrained import save_pretrained
from plait.train.metrics import read_metrics

TWO = {"shards": {}, "replicas": {"replicate": 2}, "tensor": {"tensor": 2}, "context": {"context": 2}}
FOUR = {
    "shards": {},
    "shards and replicas": {"replicate": 2},
    "tensor alone": {"tensor": 4},
    "context alone": {"context": 4},
    "tensor and shards": {"tensor": 2},
    "tensor and replicas": {"tensor": 2, "replicate": 2},
    "context and shards": {"context": 2},
    "context and tensor": {"context": 2, "tensor": 2},
}
MOE = {"ffn": "moe", "num_experts": 4, "top_k": 2}
MODELS = {
    "tokens only": {"mel": False},
    "post norm, biases, no norm of heads, towers that are called like weights": {
        "norm_order": "post",
        "qkv_bias": True,
        "qk_norm": False,
        "names": {"text": "gate", "image": "keys", "speech": "norm", "mel": "o"},
    },
    "dense": {"untied": []},
    "one ffn each": {"untied": ["ffn"]},
    "tied embeddings": {"tie_embeddings": True},
    "experts": {"towers": {"text": TowerConfig(**MOE), "image": TowerConfig(**MOE)}},
    "shared experts": {"towers": {n: TowerConfig(**MOE) for n in ("text", "image", "speech", "mel")}, "untied": []},
    "towers of other widths": {"towers": {"image": TowerConfig(width=24), "mel": TowerConfig(width=8)}},
    "clean copies": {"later_sees": "clean_copy"},
    "no noise is seen": {"later_sees": "nothing", "attention": "causal"},
    "a frozen tower": {"training": {"speech": TowerSettings(frozen=True)}},
    "an odd number of ids": {"vocab_size": 257},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(
        tmp_path_factory.mktemp("data"),
        {"train": [scene_like(i) for i in range(80)], "seen": [scene_like(i, seed=1) for i in range(20)]},
    )


@pytest.fixture(scope="module")
def two():
    workers = Workers(2)
    yield workers
    workers.close()


@pytest.fixture(scope="module")
def four():
    workers = Workers(4)
    yield workers
    workers.close()


def config_for(
    folder,
    out,
    *,
    mel=True,
    later_sees="noised",
    attention="bidirectional",
    vocab_size=0,
    train=None,
    training=None,
    names=None,
    **model,
):
    """Return a small run of text, image and speech, and of mel spectrograms by diffusion."""
    records = modalities(mel=mel, towers=names, later_sees=later_sees, attention=attention)
    for name in ("text", "image", "speech"):
        records[name] = dataclasses.replace(records[name], vocab_size=vocab_size if name == "text" else 0)
    shape = {"width": 16, "num_layers": 2, "num_heads": 8, "num_kv_heads": 4, "head_dim": 4, "ffn_width": 24}
    config = run_config(folder)
    config.out = str(out)
    config.train = TrainConfig(**({"device": "cpu", "clip": 1e9, "warmup_steps": 1} | (train or {})))
    model = ModelConfig(modalities=records, **shape | model)
    return dataclasses.replace(config, model=model, towers=training or {})


def dealt(*, data: int, steps=1, batches=1, mel=True, only=None, channels=3):
    """Return documents by step, data rank and batch; ``only`` are the modalities of each data rank."""
    rng = np.random.default_rng(0)
    made = [[[random_documents(rng, 4, mel=mel, only=only[r % len(only)] if only else None) for _ in range(batches)]
             for r in range(data)] for _ in range(steps)]  # fmt: skip
    for i, document in enumerate(d for step in made for rank in step for batch in rank for d in batch):
        document.index = i
        for part in document.parts:
            if part.latents is not None:
                part.latents = np.resize(part.latents, (len(part), channels))
    return made


def check(workers: Workers, config: RunConfig, layout: dict[str, int], *, backend="", **documents) -> Steps:
    """Compare every rank of a layout with one process that is given all batches; return what that one found."""
    steps = dealt(data=len(workers) // (layout.get("tensor", 1) * layout.get("context", 1)), **documents)
    alone = train_steps(config, steps)
    for found in workers.run(
        train_steps, dataclasses.replace(config, parallel=ParallelConfig(**layout)), steps, backend
    ):
        for name in ("counts", "sums", "norms", "gradients", "weights", "averages", "buffers"):
            try:
                torch.testing.assert_close(getattr(found, name), getattr(alone, name), rtol=0, atol=1e-9)
            except AssertionError as error:
                raise AssertionError(f"{layout}, {name}: {error}") from None
    return alone


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("layout", TWO)
def test_two_ranks_equal_one_process(layout, batches, folder, tmp_path, two):
    check(two, config_for(folder, tmp_path), TWO[layout], steps=2, batches=batches)


@pytest.mark.parametrize("model", MODELS)
def test_every_kind_of_model(model, folder, tmp_path, two):
    config = config_for(folder, tmp_path, **MODELS[model])
    for layout in ("tensor", "context"):
        check(two, config, TWO[layout], mel=MODELS[model].get("mel", True))


@pytest.mark.parametrize("layout", TWO)
def test_lora_beside_what_is_frozen(layout, folder, tmp_path, two):
    """Two steps: in the first one only the second matrix of a change has a gradient."""
    towers = {"image": TowerConfig(lora=LoraConfig(rank=3)),
              "mel": TowerConfig(lora=LoraConfig(rank=4, alpha=8.0, targets=("qkv", "o")))}  # fmt: skip
    found = check(two, config_for(folder, tmp_path, towers=towers), TWO[layout], steps=2)
    assert all(name.endswith((".lora.a", ".lora.b")) for step in found.gradients for name in step)
    assert all(gradient.any() for gradient in found.gradients[1].values())


def test_experts_that_choose_among_all_rows(folder, tmp_path, two):
    """Expert choice compares the rows of a batch, which tensor ranks all have."""
    experts = TowerConfig(**MOE, moe_routing="expert_choice")
    for towers, untied in (
        ({"image": experts}, ["qkv", "o", "ffn", "norm"]),
        (dict.fromkeys(("text", "image", "speech", "mel"), experts), []),
    ):
        check(two, config_for(folder, tmp_path, towers=towers, untied=untied), {"tensor": 2})


def test_a_convolutional_network_around_latents(folder, tmp_path, two):
    """Its items are dealt to the ranks that share a batch."""
    config = config_for(folder, tmp_path)
    config.model = with_modality(config.model, "mel", patch_network="unet", patch_size=2, latent_channels=4)
    for layout in TWO:
        check(two, config, TWO[layout], channels=4)


def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_by_all(folder, tmp_path, two):
    """Latents of one rank's batch hold NaN: no rank changes a weight in that step, and the next one is as it was."""
    documents = dealt(data=2, steps=2)
    config = config_for(folder, tmp_path, train={"ema": 0.9})
    alone = train_steps(config, documents[1:])
    for found in two.run(train_steps, config, documents, "", 1):
        assert not torch.isfinite(found.norms[0]) and found.bad_steps == 1
        torch.testing.assert_close((found.weights, found.averages), (alone.weights, alone.averages), rtol=0, atol=1e-9)


def test_bfloat16(folder, tmp_path, two):
    """Weights, gradients and their sums are float32, and ranks are as near to float32 as one process in bfloat16 is.

    How near that is depends on the processor, so it is measured; a gradient of a wrong scale, or of which a rank's part
    is missing, is off by half of itself or more.
    """
    config = config_for(folder, tmp_path, train={"precision": "bfloat16"})
    exact_config = config_for(folder, tmp_path, train={"precision": "float32"})
    for layout, parallel in TWO.items():
        steps = dealt(data=1 if layout in ("tensor", "context") else 2, batches=2)
        alone, exact = (train_steps(c, steps, dtype=torch.float32) for c in (config, exact_config))
        reference = exact.gradients[0]
        cut = dataclasses.replace(config, parallel=ParallelConfig(**parallel))
        for found in two.run(train_steps, cut, steps, "", None, torch.float32):
            torch.testing.assert_close(found.sums, exact.sums, rtol=1e-2, atol=0)
            assert {t.dtype for t in (*found.weights.values(), *found.gradients[0].values())} == {torch.float32}
            assert error(found.gradients[0], reference) < 2 * error(alone.gradients[0], reference)
            for name, gradient in found.gradients[0].items():
                off = (gradient - reference[name]).norm()
                assert off < 0.3 * reference[name].norm() + 1e-4 * norm_of(reference), (layout, name)


def norm_of(gradients: dict[str, torch.Tensor]) -> float:
    """Return the norm of all gradients together."""
    return float(torch.stack([g.double().norm() for g in gradients.values()]).norm())


def error(gradients: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """Return the norm of the difference of all gradients together."""
    return norm_of({name: gradients[name] - reference[name] for name in reference})


def test_weights_to_start_from(folder, tmp_path, two):
    """Each rank takes its part of a saved model, or of one tower of another."""
    saved = config_for(folder, tmp_path, mel=False)
    model = saved.model
    for name, size in (("text", 256), ("image", 64), ("speech", 128)):
        model = with_modality(model, name, vocab_size=size)
    save_pretrained(MixtureOfTransformers(model, seed=5), tmp_path / "saved")
    whole = config_for(folder, tmp_path / "a", mel=False, train={"init_from": str(tmp_path / "saved")})
    tower = config_for(folder, tmp_path / "b", training={"image": TowerSettings(init_from=str(tmp_path / "saved"))})
    first = train_steps(config_for(folder, tmp_path / "c", mel=False), []).weights
    for config, name in ((whole, "head.shared.weight"), (tower, "blocks.1.ffn.image.gate.weight")):
        for layout in TWO:
            found = check(two, config, TWO[layout], steps=0).weights
            assert not torch.equal(found[name], first[name])


@pytest.mark.parametrize("absent", ["text", "image", "speech", "mel"])
def test_a_rank_whose_batch_lacks_a_modality(absent, folder, tmp_path, two):
    names = ["text", "image", "speech", "mel"]
    others = [n for n in names if n != absent]
    for layout, only in (("shards", [names, others]), ("tensor", [others]), ("context", [others])):
        check(two, config_for(folder, tmp_path), TWO[layout], only=only)


def test_ranks_of_one_modality_each(folder, tmp_path, two):
    for only in (["text"], ["mel"]), (["image"], ["speech"]):
        check(two, config_for(folder, tmp_path), {}, steps=2, batches=2, only=only)


@pytest.mark.parametrize("layout", TWO)
def test_clipped_steps_with_averages(layout, folder, tmp_path, two):
    """Gradients are clipped by the norm of all ranks: several steps, each of which clips, end at the same weights."""
    train = {"clip": 0.1, "ema": 0.9, "normalize": "per_modality", "learning_rate": 0.01}
    alone = check(two, config_for(folder, tmp_path, train=train), TWO[layout], steps=4)
    assert all(norm > 0.1 for norm in alone.norms)


@pytest.mark.parametrize("layout", TWO)
def test_steps_by_muon(layout, folder, tmp_path, two):
    """A matrix that ranks hold parts of is moved as a whole."""
    train = {"optimizer": "muon", "learning_rate": 0.01}
    check(two, config_for(folder, tmp_path, train=train), TWO[layout], steps=3)


def run_of(folder, out, **parallel):
    config = config_for(folder, out, mel=False, train={"steps": 6, "log_every": 1, "validate_every": 2,
                        "validation_batches": 3, "ema": 0.5, "learning_rate": 0.01})  # fmt: skip
    config.data = dataclasses.replace(config.data, batch_tokens=512, tasks={"text,image": 1.0, "image,text": 1.0})
    config.parallel = ParallelConfig(**parallel)
    return config


def rows_of(out) -> list[dict]:
    """Return the rows of a run's log without what depends on the machine."""
    kept = ("loss/", "val_loss/", "grad_norm", "learning_rate")
    return [
        {k: v for k, v in row.items() if k in ("step", "tokens") or k.startswith(kept)}
        for row in read_metrics(out / "metrics.jsonl")
    ]


def test_whole_runs(folder, tmp_path, two):
    """Two ranks that take a batch each train as one process that takes two: same data, losses and validation."""
    alone, shards = run_of(folder, tmp_path / "alone"), run_of(folder, tmp_path / "shards")
    alone.train.global_batch_tokens = shards.train.global_batch_tokens = 2 * alone.data.batch_tokens
    train_run(alone)
    two.run(train_run, shards)
    assert len(rows_of(tmp_path / "alone")) == 9
    for found, expected in zip(rows_of(tmp_path / "shards"), rows_of(tmp_path / "alone"), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    same_batch = run_of(folder, tmp_path / "one")
    train_run(same_batch)
    for layout in ("tensor", "context"):
        two.run(train_run, run_of(folder, tmp_path / layout, **TWO[layout]))
        for found, expected in zip(rows_of(tmp_path / layout), rows_of(tmp_path / "one"), strict=True):
            assert found == pytest.approx(expected, rel=1e-4)


def test_samples_while_training(folder, tmp_path, two):
    """Ranks that share weights all generate the same, between steps, and go on as if they had not."""
    config = config_for(folder, tmp_path, mel=False, train={"ema": 0.5, "learning_rate": 0.01})
    steps = dealt(data=2, steps=2, mel=False)
    parts, weights = samples(config, steps)
    assert sum(map(len, parts)) > 6
    for layout in ("shards", "replicas"):
        cut = dataclasses.replace(config, parallel=ParallelConfig(**TWO[layout]))
        for found, its_weights in two.run(samples, cut, steps):
            assert found == parts
            torch.testing.assert_close(its_weights, weights, rtol=0, atol=1e-9)


@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputed_activations(recompute, folder, tmp_path, two):
    for layout in TWO:
        config = config_for(folder, tmp_path, train={"checkpoint_activations": recompute})
        check(two, config, TWO[layout])


def test_compiled_blocks(folder, tmp_path, two):
    """No graph breaks, whatever the towers hold: fullgraph would raise."""
    config = config_for(folder, tmp_path, num_layers=1)
    check(two, config, {}, steps=3, only=[["text"], ["image", "mel"]], backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("layout", TWO)
def test_compiled_blocks_that_recompute(layout, folder, tmp_path, two):
    config = config_for(folder, tmp_path, train={"checkpoint_activations": "selective"})
    check(two, config, TWO[layout], steps=3, only=[["text"], ["image", "mel"]], backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("layout", FOUR)
def test_four_ranks_equal_one_process(layout, folder, tmp_path, four):
    for batches in (1, 2):
        check(four, config_for(folder, tmp_path), FOUR[layout], steps=2, batches=batches)
    check(four, config_for(folder, tmp_path), FOUR[layout], only=[["text"], ["image", "mel"], ["speech"], ["mel"]])


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_kind_of_model_on_four_ranks(model, folder, tmp_path, four):
    config = config_for(folder, tmp_path, **MODELS[model])
    for layout in ("tensor and shards", "context and tensor", "context and shards"):
        check(four, config, FOUR[layout], mel=MODELS[model].get("mel", True))
