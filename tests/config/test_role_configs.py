"""Two towers by role and noise state, from the shipped YAML: bagel_like and cosmos_like."""

import copy
import re

import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT
from helpers.fake_data import write_folder

from plait.batch.assemble import pack
from plait.batch.batch import Batch
from plait.batch.documents import Document, Part
from plait.batch.spans import Span, tower_of
from plait.config.file import from_dict, load
from plait.config.generation import SamplingConfig
from plait.config.run import RunConfig
from plait.config.shipped import config_path
from plait.data.loader import Loader
from plait.generate import Request, generate
from plait.model.mask import segments, varlen_calls
from plait.model.mot import MixtureOfTransformers
from plait.objectives import loss_sums
from plait.objectives.diffusion import corrupt
from plait.train.metrics import read_metrics
from plait.train.trainer import Trainer

CHANNELS, GRID = 8, (3, 3)
PREPARED = {
    "text": {"codec": "text_bpe", "key": "text", "vocab_size": 32, "latent_channels": 0},
    "image": {"codec": "image_latents", "key": "image", "vocab_size": 0, "latent_channels": CHANNELS, "patch_size": 1},
}
for _record in PREPARED.values():
    _record |= {"default_grid": [], "fingerprint": _record["codec"]}

# (modality, role, noised) -> tower; a delimiter has no role
TOWERS = {
    "bagel_like": {
        ("text", "", False): "understanding",
        ("text", "understanding", False): "understanding",
        ("text", "generation", False): "understanding",
        ("image", "understanding", False): "understanding",
        ("image", "generation", True): "generation",
        ("image", "generation", False): "generation",  # the clean copy of a generated image
    },
    "cosmos_like": {
        ("text", "", False): "reasoner",
        ("text", "understanding", False): "reasoner",
        ("text", "generation", False): "reasoner",
        ("image", "understanding", False): "reasoner",
        ("image", "generation", True): "generator",
    },
}
NAMES = list(TOWERS)


def text(i: int) -> Part:
    return Part("text", np.arange(4) + 4 * (i % 7))


def image(i: int, role: str = "generation") -> Part:
    values = np.random.default_rng(i % 7).standard_normal((9, CHANNELS)).astype(np.float32)
    return Part("image", latents=values, grid=GRID, role=role)


def written(i: int) -> Document:
    """Pairs, and now and then documents with a second image, or images alone."""
    parts = [text(i), image(i)]
    if i % 5 == 0:
        parts = [image(i), text(i), image(i + 1)]
    elif i % 7 == 0:
        parts = [image(i), image(i + 1)]  # fits no task, so that both are learnt
    return Document(parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    splits = {"train": [written(i) for i in range(70)], "seen": [written(i) for i in range(10)]}
    return write_folder(tmp_path_factory.mktemp("data"), splits, modalities=PREPARED)


def small(name: str, folder, out="") -> RunConfig:
    """Return the shipped config, made small, over the prepared folder."""
    sizes = {"model.width": 32, "model.num_layers": 2, "model.num_heads": 4, "model.num_kv_heads": 2,
             "model.ffn_width": 64, "data.path": folder, "data.batch_tokens": 256, "data.max_document_tokens": 0,
             "data.num_workers": 0, "train.minutes": 0, "train.steps": 30, "train.learning_rate": 1e-2,
             "train.warmup_steps": 3, "train.precision": "float32", "train.device": "cpu", "train.log_every": 1,
             "train.ema": 0.9, "out": out or folder / "run"}  # fmt: skip
    return load(config_path(name), [f"{key}={value}" for key, value in sizes.items()])


@pytest.fixture(scope="module", params=NAMES)
def trained(request, folder, tmp_path_factory):
    """A config's name, its trainer after 30 steps, and its log."""
    out = tmp_path_factory.mktemp(request.param)
    trainer = Trainer(small(request.param, folder, out))
    trainer.run()
    return request.param, trainer, read_metrics(out / "metrics.jsonl")


def packed(config: RunConfig, count: int) -> tuple[RunConfig, list[Batch]]:
    """Return the config with its vocabulary, and training batches."""
    loader = Loader(config)
    batches = iter(loader)
    found = [next(batches)[0] for _ in range(count)]
    return loader.config, [corrupt(b, config.diffusion, config.seed) for b in found]


def tower_of_tokens(batch: Batch, towers: list[str]) -> np.ndarray:
    """Return the tower of each token [T] from the rows that routing gave it."""
    edges = np.cumsum([0, *batch.routing.padded_sizes])
    return np.array(towers)[np.searchsorted(edges, batch.routing.to_sequence.numpy(), side="right") - 1]


def in_sequence(model: MixtureOfTransformers, batch: Batch) -> torch.Tensor:
    """Return the hidden states [T, D] in sequence order (all towers of one width)."""
    with torch.no_grad():
        return torch.cat(model(batch)).index_select(0, batch.routing.to_sequence)


@pytest.mark.parametrize("name", NAMES)
def test_every_role_and_noise_state_is_in_its_tower(name, folder):
    config, batches = packed(small(name, folder), 8)
    seen = set()
    for batch in batches:
        towers = tower_of_tokens(batch, list(config.model.towers))
        for span in batch.spans:
            kind = (span.modality, span.role, span.noised)
            assert set(towers[span.start : span.stop]) == {TOWERS[name][kind]} == {tower_of(span, config.model)}
            seen.add(kind)
    assert seen == set(TOWERS[name])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter_of_both_towers(name, folder):
    """But for the latent head of the tower that never carries a noised image: it has nothing to predict."""
    config, batches = packed(small(name, folder), 4)
    model = MixtureOfTransformers(config.model)
    for batch in batches:
        loss_sums(model, model(batch), batch).sum().backward()
    idle = f"latent_out.image.{TOWERS[name]['image', 'understanding', False]}."
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and (parameter.grad.any() or key.startswith(idle)), key
    towers = {key.split(".")[3] for key, _ in model.named_parameters() if key.startswith("blocks.")}
    assert towers == set(TOWERS[name].values())  # every component is a tower's own, none is shared


def test_losses_fall(trained):
    _, trainer, rows = trained
    assert trainer.state.step == 30 and trainer.averages is not None
    # over seeds, the losses of images fall to 0.82 to 0.92 in so few steps: noise levels differ from step to step
    for key, share in (("loss/text", 0.6), ("loss/image", 0.95)):
        values = [row[key] for row in rows if key in row]
        assert len(values) >= 28 and np.mean(values[-5:]) < share * np.mean(values[:5]), key
    assert any("val_loss/seen/image" in row for row in rows)


def test_all_directions_generate(trained):
    _, trainer, _ = trained
    model, sampling = trainer.model, {"text": SamplingConfig(temperature=0.5)}
    steps = {"guidance": 2.0, "media_guidance": 1.5, "steps": 3}
    sampling["image"] = SamplingConfig(**steps)
    asked = [([text(1)], "image"), ([image(2, "understanding"), text(3)], "image"), ([], "image"),
             ([image(4, "understanding")], "text")]  # fmt: skip
    requests = [Request(p, o, sampling, {"text": 5}, number=i) for i, (p, o) in enumerate(asked)]
    results = generate(model, requests, grids={"image": GRID}, diffusion=trainer.config.diffusion)
    for result in results[:3]:
        (part,) = result.parts
        assert part.latents.shape == (9, CHANNELS) and np.isfinite(part.latents).all() and result.stopped == "done"
    assert [p.modality for p in results[3].parts] == ["text"] and 1 <= len(results[3].parts[0]) <= 5
    assert results[3].parts[0].ids.max() < PREPARED["text"]["vocab_size"]


def test_free_text_and_images_in_turn(trained):
    _, trainer, _ = trained
    model, layout = copy.deepcopy(trainer.model), trainer.model.config.layout
    with torch.no_grad():  # it opens images gladly, and ends late
        model.head["shared"].weight[layout.opening["image"]] += 5 * model.head["shared"].weight.abs().mean()
        model.head["shared"].weight[layout.eos] *= -1
    sampling = {"image": SamplingConfig(steps=3, guidance=2.0)}
    requests = [Request([text(i)], None, sampling, {"text": 4}, max_spans=2, number=i) for i in range(6)]
    results = generate(model, requests, grids={"image": GRID}, diffusion=trainer.config.diffusion)
    orders = {tuple(p.modality for p in r.parts) for r in results}
    assert {r.stopped for r in results} == {"eos"}
    assert any("image" in o and o[-1] == "text" for o in orders)  # text goes on after an image


def interleaved(config: RunConfig) -> Batch:
    """Return two documents that generate two images each among texts, in float64."""
    parts = [text(1), image(2), text(3), image(4), text(5)]
    batch = pack([Document(parts, index=0), Document(parts[1:], index=1)], config.model)
    batch = corrupt(batch, config.diffusion, 0)
    for group in batch.latents.values():
        group.values, group.timesteps = group.values.double(), group.timesteps.double()
    return batch


def changed(batch: Batch, which: int) -> Batch:
    """Return the batch with other latents in one of its images' spans."""
    other = copy.deepcopy(batch)
    group = other.latents["image"]
    group.values[group.span == which] += 1.0
    return other


def test_bagel_later_tokens_see_the_clean_copy_alone(folder):
    config, _ = packed(small("bagel_like", folder), 1)
    model, batch = MixtureOfTransformers(config.model).double(), interleaved(config)
    images = [s for s in batch.spans if s.modality == "image"]
    assert [s.noised for s in images] == [True, False] * 4
    before = in_sequence(model, batch)
    for which, span in enumerate(images):
        after = in_sequence(model, changed(batch, which))
        moved = (after != before).any(dim=1)
        own = torch.zeros_like(moved)
        own[span.start : span.stop] = True
        end = sum(batch.lengths[: span.document + 1])
        assert moved[own].all()
        if span.noised:
            assert torch.equal(moved, own)  # bitwise as it was, everywhere else
        else:
            assert moved[span.stop : end].all() and not moved[: span.start].any() and not moved[end:].any()


def test_cosmos_reasoner_never_attends_to_diffusion_tokens(folder):
    config, _ = packed(small("cosmos_like", folder), 1)
    model, batch = MixtureOfTransformers(config.model).double(), interleaved(config)
    towers = tower_of_tokens(batch, list(config.model.towers))
    before, spans = in_sequence(model, batch), [s for s in batch.spans if s.modality == "image"]
    for which, span in enumerate(spans):
        moved = (in_sequence(model, changed(batch, which)) != before).any(dim=1).numpy()
        assert not moved[towers == "reasoner"].any()  # bitwise as it was
        assert moved[span.start : span.stop].all() and moved.sum() == span.length


@pytest.mark.parametrize("name", NAMES)
def test_a_given_image_is_seen_by_what_follows(name, folder):
    config, _ = packed(small(name, folder), 1)
    document = Document([image(0, "understanding"), text(1)])
    model, batch = MixtureOfTransformers(config.model), corrupt(pack([document], config.model), config.diffusion, 0)
    moved = (in_sequence(model, changed(batch, 0)) != in_sequence(model, batch)).any(dim=1)
    assert moved.tolist() == [False] * 2 + [True] * (batch.num_tokens - 2)


def test_cosmos_attention_is_two_calls_without_copies_of_the_reasoners_keys(folder):
    config, batches = packed(small("cosmos_like", folder), 8)
    for batch in batches:
        causal, items = varlen_calls(segments(batch.spans))
        assert causal.causal and not items.causal
        towers = tower_of_tokens(batch, list(config.model.towers))
        assert set(towers[causal.queries]) == {"reasoner"} and set(towers[causal.keys]) == {"reasoner"}
        # the reasoner of a document is one causal sequence, over its own keys and no copies of them
        np.testing.assert_array_equal(causal.queries, causal.keys)
        assert len(causal.query_offsets) - 1 == len(batch.lengths)
        # the generator sees what the reasoner said before, and its own item: no other diffusion token
        for i, (low, high) in enumerate(zip(items.key_offsets, items.key_offsets[1:], strict=False)):
            queries = set(items.queries[items.query_offsets[i] : items.query_offsets[i + 1]])
            foreign = [k for k in items.keys[low:high] if towers[k] == "generator" and k not in queries]
            assert foreign == []


def test_the_examples_of_the_page_are_configs_and_route_as_it_says():
    page = (ROOT / "docs/routing.md").read_text()
    examples = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)]
    clean_copy = Span("image", "generation", GRID, 0, 9, 0, bidirectional=True)
    found = [tower_of(clean_copy, from_dict(RunConfig, {"model": example}).model) for example in examples]
    assert found == ["image", "generation", "reasoner", "generation"]
