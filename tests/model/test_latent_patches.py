"""Latents into the towers and out of them: one matrix, U-Net blocks on the grid of latents, or convolutions."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.models import modalities

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.common.errors import ConfigError
from plait.config.generation import DiffusionConfig
from plait.config.model import ModelConfig
from plait.model.latent_patches import LatentIn, LatentOut, from_images, place_embedding, to_images
from plait.model.mot import MixtureOfTransformers
from plait.objectives import loss_sums
from plait.objectives.diffusion import corrupt

GRIDS = [(2, 3), (1, 1), (3, 2), (2, 3)]
SIZES = [h * w for h, w in GRIDS]
CASES = [("linear", 1), ("linear", 2), ("unet", 2), ("unet", 4), ("conv", 1), ("conv", 2), ("conv", 16)]


@pytest.fixture(params=CASES, ids=lambda c: f"{c[0]}-{c[1]}")
def heads(request):
    """Both heads in float64 for 3-channel latents, and inputs for all of GRIDS."""
    network, patch_size = request.param
    torch.manual_seed(0)
    channels = 3 * patch_size**2
    modules = [m(channels, 24, patch_size=patch_size, network=network).double() for m in (LatentIn, LatentOut)]
    n = sum(SIZES)
    levels = torch.tensor([0.1, 0.9, 0.0, 0.5], dtype=torch.float64).repeat_interleave(torch.tensor(SIZES))
    hidden, latents = torch.randn(n, 24).double(), torch.randn(n, channels).double()
    return *modules, hidden, latents, levels


def test_shapes_and_gradients_of_all_parameters(heads):
    latent_in, latent_out, hidden, latents, levels = heads
    tokens = latent_in(latents, levels, GRIDS)
    predicted = latent_out(hidden, latents, levels, GRIDS)
    assert tokens.shape == hidden.shape and predicted.shape == latents.shape
    (tokens.square().sum() + predicted.square().sum()).backward()
    for module in (latent_in, latent_out):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_each_item_is_independent_of_its_companions(heads):
    """Statistics, borders and time are those of one item: alone, in another order or among others it is the same."""
    latent_in, latent_out, hidden, latents, levels = heads
    tokens = latent_in(latents, levels, GRIDS).split(SIZES)
    predicted = latent_out(hidden, latents, levels, GRIDS).split(SIZES)
    pieces = [x.split(SIZES) for x in (hidden, latents, levels)]
    for i, grid in enumerate(GRIDS):
        h, x, t = (p[i] for p in pieces)
        torch.testing.assert_close(latent_in(x, t, [grid]), tokens[i], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(latent_out(h, x, t, [grid]), predicted[i], rtol=1e-12, atol=1e-12)
    order = [3, 0, 2, 1]
    h, x, t = (torch.cat([p[i] for i in order]) for p in pieces)
    there = latent_out(h, x, t, [GRIDS[i] for i in order])
    torch.testing.assert_close(there, torch.cat([predicted[i] for i in order]), rtol=1e-12, atol=1e-12)


def test_no_tokens_give_zero_gradients(heads):
    latent_in, latent_out, hidden, latents, levels = heads
    tokens = latent_in(latents[:0], levels[:0], [])
    predicted = latent_out(hidden[:0], latents[:0], None, [])
    assert tokens.shape == (0, 24) and predicted.shape == (0, latents.shape[1])
    (tokens.sum() + predicted.sum()).backward()
    for module in (latent_in, latent_out):
        assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_no_timesteps_mean_clean(heads):
    latent_in, latent_out, hidden, latents, levels = heads
    zeros = torch.zeros_like(levels)
    assert torch.equal(latent_in(latents, None, GRIDS), latent_in(latents, zeros, GRIDS))
    assert torch.equal(latent_out(hidden, latents, None, GRIDS), latent_out(hidden, latents, zeros, GRIDS))


def test_the_unet_sees_the_level_and_the_latents_again():
    torch.manual_seed(0)
    latent_in, latent_out = (m(12, 24, patch_size=2, network="unet") for m in (LatentIn, LatentOut))
    hidden, latents, levels = torch.randn(6, 24), torch.randn(6, 12), torch.full((6,), 0.3)
    for network, inputs in ((latent_in, (latents,)), (latent_out, (hidden, latents))):
        base = network(*inputs, levels, [(2, 3)])
        assert not torch.allclose(network(*inputs, levels + 0.5, [(2, 3)]), base, atol=1e-3)
    base = latent_out(hidden, latents, levels, [(2, 3)])
    assert not torch.allclose(latent_out(hidden, latents + 1, levels, [(2, 3)]), base, atol=1e-3)


def test_patches_lie_row_by_row_with_their_channels_together():
    """The documented order of a token (plait/codecs/base.py): latent (r, c) of the patch, then its channels."""
    h, w, p, channels = 2, 3, 2, 5
    image = torch.arange(h * p * w * p * channels).reshape(h * p, w * p, channels)
    by_hand = [
        image[row * p + r, column * p + c]
        for row in range(h) for column in range(w) for r in range(p) for c in range(p)
    ]  # fmt: skip
    tokens = torch.cat(by_hand).reshape(1, h * w, p * p * channels)
    assert torch.equal(to_images(tokens, (h, w), p), image.permute(2, 0, 1)[None])
    assert torch.equal(from_images(to_images(tokens, (h, w), p), p), tokens)


def test_a_neighbouring_patch_matters_where_there_are_convolutions():
    torch.manual_seed(0)
    x = torch.randn(4, 12, dtype=torch.float64)
    moved = x.clone()
    moved[1] += 1.0
    for network in ("linear", "unet", "conv"):
        latent_in = LatentIn(12, 24, patch_size=2, network=network).double()
        change = (latent_in(moved, None, [(2, 2)]) - latent_in(x, None, [(2, 2)]))[0].abs().max()
        assert (change > 0) == (network != "linear")


@pytest.mark.parametrize("network", ["unet", "conv"])
def test_convolutions_need_rows_and_columns(network):
    latent_in = LatentIn(12, 24, patch_size=2, network=network)
    with pytest.raises(ConfigError, match=r"patch_network: 'unet or conv' is not allowed.*linear.*\(4,\)"):
        latent_in(torch.zeros(4, 12), None, [(4,)])


def test_a_stem_of_what_is_only_read_knows_no_level():
    """As images are that a policy is given (objective: input)."""
    torch.manual_seed(0)
    stem = LatentIn(12, 24, patch_size=2, network="conv", is_noised=False)
    tokens = stem(torch.randn(6, 12), None, [(2, 3)])
    assert tokens.shape == (6, 24) and not any("timestep" in name for name, _ in stem.named_parameters())
    tokens.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in stem.parameters())


@pytest.fixture
def unet_model() -> MixtureOfTransformers:
    records = modalities(mel=True)
    records["mel"] = dataclasses.replace(records["mel"], latent_channels=12, patch_size=2, patch_network="unet")
    return MixtureOfTransformers(ModelConfig(modalities=records, width=16, num_layers=2, num_heads=2)).double()


def images(rng: np.random.Generator, *grids: tuple[int, int]) -> list[Part]:
    return [Part("mel", latents=rng.standard_normal((h * w, 12)).astype(np.float32), grid=(h, w)) for h, w in grids]


def test_in_the_model_documents_do_not_meet_and_all_parameters_learn(rng, unet_model):
    caption = Part("text", ids=np.arange(4))
    grids = [[(2, 2)], [(1, 3), (2, 2)], [(2, 2), (3, 1)]]
    documents = [Document([caption, *images(rng, *g), caption], index=i) for i, g in enumerate(grids)]

    def losses(chosen):
        batch = corrupt(pack(chosen, unet_model.config), DiffusionConfig(), 0)
        return loss_sums(unet_model, unet_model(batch), batch)

    together = losses(documents)
    torch.testing.assert_close(together, sum(losses([d]) for d in documents), rtol=1e-10, atol=1e-10)
    together.sum().backward()
    heads = {n: p for n, p in unet_model.named_parameters() if n.startswith("latent_")}
    assert all(p.grad.abs().max() > 0 for p in heads.values())
    assert 4 < together[-1] < 12  # five images, each near the error of a prediction that is small: about 1


def test_in_the_model_no_image_gives_zero_gradients(unet_model):
    batch = corrupt(pack([Document([Part("text", ids=np.arange(4))])], unet_model.config), DiffusionConfig(), 0)
    loss_sums(unet_model, unet_model(batch), batch).sum().backward()
    heads = {n: p for n, p in unet_model.named_parameters() if n.startswith("latent_")}
    assert heads and all(p.grad is not None and not p.grad.any() for p in heads.values())


def test_place_embedding_tells_places_apart_and_depends_on_the_place_alone():
    small, large = (place_embedding(grid, 32, torch.device("cpu")) for grid in ((2, 3), (4, 5)))
    assert torch.equal(small[:3], large[:3]) and torch.equal(small[3:], large[5:8])
    assert torch.cdist(large, large).add(torch.eye(20) * 9).min() > 0.3
    assert place_embedding((7,), 30, torch.device("cpu")).shape == (7, 30)
