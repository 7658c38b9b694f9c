"""Continuous codecs: latents of mean 0 and deviation 1, any shape of image, saved copies, one sentence for errors."""

import json

import numpy as np
import pytest
import torch

from plait.codecs import codec_class, fitting, images, load_codec
from plait.codecs.base import Encoded
from plait.codecs.image_latents import ImageLatentCodec
from plait.codecs.image_pixels import ImagePixelCodec
from plait.codecs.latents import Scaling, divergence
from plait.codecs.speech_latents import SpeechLatentCodec
from plait.common.errors import CheckpointError, ConfigError, DataError
from plait.common.randomness import generator
from plait.config.run import PrepareConfig
from plait.model.latent_patches import from_images, to_images
from plait.scenes.source import SceneSource

TINY_IMAGE = {"size": 32, "channels": [16], "steps": 150, "batch_size": 8, "learning_rate": 1e-2}
TINY_SPEECH = {"channels": 32, "latent_channels": 8, "steps": 80, "learning_rate": 1e-2, "crop": 12, "batch_size": 8}


def quiet(share, text):
    assert 0 <= share <= 1 and isinstance(text, str)


def fitted(name: str, media, folder, *, progress=quiet, **options):
    codec = codec_class(name).from_options(options)
    codec.fit(media, minutes=1, seed=0, folder=folder, progress=progress)
    return codec


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[np.ndarray]]:
    """Drawn scenes of 32 x 32 pixels."""
    source = SceneSource(PrepareConfig(image_size=32), 0, parts=["image"])
    drawn = {s: [d.parts[0][1] for d in source.read(s, 0, n)] for s, n in [("train", 192), ("seen", 32)]}
    assert drawn["train"][0].shape == (32, 32, 3)
    return drawn


@pytest.fixture(scope="module")
def mixed(scenes) -> list[np.ndarray]:
    """Scenes cut to other shapes, in turns."""
    cuts = [(32, 32), (20, 32), (32, 14), (32, 32)]
    return [image[: cuts[i % 4][0], : cuts[i % 4][1]] for i, image in enumerate(scenes["train"])]


@pytest.fixture(scope="module")
def image_codec(scenes, tmp_path_factory) -> ImageLatentCodec:
    return fitted("image_latents", scenes["train"], tmp_path_factory.mktemp("fit"), **TINY_IMAGE)


@pytest.fixture(scope="module")
def any_codec(mixed, tmp_path_factory) -> ImageLatentCodec:
    return fitted("image_latents", mixed, tmp_path_factory.mktemp("fit"), **TINY_IMAGE | {"aspect": "any", "steps": 8})


def chirps(count: int, seed: int = 0) -> list[np.ndarray]:
    """Make recordings of tones after each other."""
    made = []
    for i in range(count):
        rng = generator(seed, "test sound", item=i)
        tones = [np.sin(np.arange(rng.integers(1500, 4000)) * rng.uniform(0.06, 1.2)) for _ in range(4)]
        made.append((0.3 * np.concatenate(tones)).astype(np.float32))
    return made


@pytest.fixture(scope="module")
def speech_codec(tmp_path_factory) -> SpeechLatentCodec:
    return fitted("speech_latents", chirps(24), tmp_path_factory.mktemp("fit"), **TINY_SPEECH)


def same(a: list[Encoded], b: list[Encoded]) -> bool:
    return all(np.array_equal(x.latents, y.latents) and x.grid == y.grid for x, y in zip(a, b, strict=True))


def per_channel(encoded: list[Encoded], channels: int) -> np.ndarray:
    return np.concatenate([e.latents.reshape(-1, channels) for e in encoded]).astype(np.float64)


# patches and shapes


def test_a_token_is_its_latents_row_by_row_each_with_all_its_channels():
    # latents of a map of 4 x 6 with 3 channels, each number saying where it stands: row, column, channel
    rows, columns, channels = np.meshgrid(range(4), range(6), range(3), indexing="ij")
    latents = torch.from_numpy(100 * rows + 10 * columns + channels).permute(2, 0, 1)[None]
    tokens = from_images(latents, 2)
    assert tokens.shape == (1, 6, 12)
    assert tokens[0, 0].tolist() == [0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112]
    assert tokens[0, :, 0].tolist() == [0, 20, 40, 200, 220, 240]
    assert torch.equal(to_images(tokens, (2, 3), 2), latents)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_come_back(patch):
    latents = torch.randn(3, 5, 4 * patch, 7 * patch)
    assert torch.equal(to_images(from_images(latents, patch), (4, 7), patch), latents)


def test_shapes_keep_their_aspect_within_the_tokens_of_a_square():
    for height in range(1, 200, 7):
        for width in range(1, 300, 11):
            sides = images.image_sides(height, width, 64, multiple=8)
            assert not (sides[0] % 8 or sides[1] % 8) and 0.85 * 64**2 < sides[0] * sides[1] <= 64**2
            assert images.image_sides(*sides, 64, multiple=8) == sides, "a shaped image would be cut again"
            assert images.image_sides(width, height, 64, multiple=8) == sides[::-1]
    assert images.image_sides(640, 640, 64, multiple=8) == (64, 64)
    assert images.image_sides(300, 500, 64, multiple=8) == (48, 80)
    assert images.image_sides(1, 5000, 64, multiple=8) == (8, 512)
    assert images.image_sides(300, 500, 64) == (64, 64)


# latents of images


def test_image_latents_learn_and_are_normalised(image_codec, scenes):
    assert image_codec.latent_channels == 16 and image_codec.patch_size == 2 and image_codec.default_grid == (4, 4)
    encoded = image_codec.encode(scenes["train"])
    assert all(e.latents.shape == (16, 16) and e.latents.dtype == np.float32 and e.grid == (4, 4) for e in encoded)
    values = per_channel(encoded, 4)
    assert np.allclose(values.mean(0), 0, atol=1e-5) and np.allclose(values.std(0), 1, atol=1e-5)
    assert min(image_codec.scaling.scale) != pytest.approx(1, abs=0.01), "the test would not see a missing scale"
    quality = image_codec.quality(scenes["seen"])
    assert quality["psnr"] > 14 and 10 < quality["psnr_thumbnail"] < 30
    assert abs(quality["latent_mean"]) < 0.2 and 0.7 < quality["latent_std"] < 1.4
    decoded = np.stack(image_codec.decode(encoded[:8]))
    assert decoded.dtype == np.uint8 and images.psnr(np.stack(scenes["train"][:8]), decoded) > 14


def test_latents_are_the_posteriors_mean_in_the_order_of_the_page(image_codec, scenes):
    unit = images.to_unit(np.stack(scenes["seen"][:2]))
    with torch.no_grad():
        mean = image_codec.vae.encode(torch.nn.functional.pixel_unshuffle(unit, 4)).latent_dist.mean
    mean = (mean - torch.tensor(image_codec.scaling.mean)[:, None, None]) / torch.tensor(image_codec.scaling.scale)[
        :, None, None
    ]
    for item, map_CHW in zip(image_codec.encode(scenes["seen"][:2]), mean):
        token = map_CHW[:, 2:4, 4:6].permute(1, 2, 0).flatten()  # the second row of tokens, the third column
        assert np.allclose(item.latents[1 * 4 + 2], token.numpy(), atol=1e-5)


@pytest.mark.parametrize("codec", ["image_codec", "any_codec"])
def test_one_by_one_equals_together(codec, request, mixed):
    codec = request.getfixturevalue(codec)
    together = codec.encode(mixed[:24])
    for image, item in zip(mixed[:6], together):
        assert np.allclose(codec.encode([image])[0].latents, item.latents, atol=1e-4)
        again, whole = codec.decode([item])[0].astype(int), codec.decode(together)[:6]
        assert any(again.shape == w.shape and np.abs(again - w).max() <= 1 for w in whole)


@pytest.mark.parametrize("name", ["image_latents", "image_pixels", "image_components"])
def test_any_aspect_in_one_batch(name, any_codec, mixed, tmp_path):
    codec = any_codec
    if name != "image_latents":
        codec = fitted(name, mixed, tmp_path, size=32, patch_size=8, aspect="any")
    batch = [*mixed[:8], np.zeros((400, 30, 3), np.uint8)]
    encoded = codec.encode(batch)
    assert [e.grid for e in encoded[:4]] == [(4, 4), (3, 5), (5, 3), (4, 4)] and encoded[-1].grid == (16, 1)
    assert all(e.latents.shape == (e.grid[0] * e.grid[1], codec.latent_channels) for e in encoded)
    decoded = codec.decode(encoded)
    assert [d.shape for d in decoded] == [(8 * e.grid[0], 8 * e.grid[1], 3) for e in encoded]
    values = per_channel(codec.encode(mixed), codec.latent_channels // codec.patch_size**2)
    assert np.allclose(values.mean(0), 0, atol=1e-4)
    assert name == "image_components" or np.allclose(values.std(0), 1, atol=1e-5)
    if name == "image_pixels":
        shaped = [images.resize_image(p, 32, multiple=8) for p in batch]
        assert all(np.array_equal(a, b) for a, b in zip(decoded, shaped))


def test_a_image_read_from_a_file_keeps_its_shape(any_codec, tmp_path):
    any_codec.write(np.full((60, 100, 3), 90, np.uint8), tmp_path / "wide.png")
    image = any_codec.read("wide.png", tmp_path)
    assert image.shape == (24, 40, 3) and any_codec.encode([image])[0].grid == (3, 5)
    assert "data:image/png" in any_codec.to_html(image)


@pytest.mark.parametrize(
    "options",
    [{"channels": [8, 16]}, {"downsample": 2}, {"downsample": 8, "channels": [8, 8], "patch_size": 1},
     {"latent_channels": 6, "patch_size": 4}],
)  # fmt: skip
def test_image_latents_are_saved_and_read_back(options, scenes, tmp_path):
    codec = fitted("image_latents", scenes["train"][:32], tmp_path, **TINY_IMAGE | {"steps": 3} | options)
    codec.save_pretrained(tmp_path / "saved")
    again = load_codec(tmp_path / "saved")
    assert again.is_fitted and again.options == codec.options and again.scaling == codec.scaling
    encoded = codec.encode(scenes["seen"])
    side = 32 // (codec.options.downsample * codec.patch_size)
    assert encoded[0].grid == codec.default_grid == again.default_grid == (side, side)
    assert same(encoded, again.encode(scenes["seen"]))
    assert all(np.array_equal(a, b) for a, b in zip(codec.decode(encoded), again.decode(encoded)))


def test_kl_divergence_is_torch_distributions():
    mean, log_variance = torch.randn(3, 5).double(), torch.randn(3, 5).double()
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    wanted = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean()
    assert torch.allclose(divergence(mean, log_variance).double(), wanted, atol=1e-6)


# pretrained VAEs


def tiny_vae(**changes):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    shape = {"in_channels": 3, "out_channels": 3, "latent_channels": 6, "scaling_factor": 0.3, "shift_factor": 0.1}
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [8, 8, 16],
        "norm_num_groups": 4,
    }
    return AutoencoderKL(**shape | blocks | changes)


def test_pretrained_vae(scenes, tmp_path):
    vae = tiny_vae().eval()
    vae.save_pretrained(tmp_path / "theirs")
    options = {"size": 32, "path": str(tmp_path / "theirs"), "latent_channels": 6}
    assert not codec_class("image_latents").from_options(options).is_fitted, "prepare would not have it measured"
    codec = fitted("image_latents", scenes["train"][:64], tmp_path, **options)
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), codec.vae.parameters())), "it was trained"
    values = per_channel(codec.encode(scenes["train"][:64]), 6)
    assert np.allclose(values.mean(0), 0, atol=1e-5) and np.allclose(values.std(0), 1, atol=1e-5)
    with torch.no_grad():
        theirs = vae(images.to_unit(scenes["seen"][0][None])).sample
    decoded = codec.decode(codec.encode(scenes["seen"][:1]))[0]
    assert np.abs(images.from_unit(theirs)[0].astype(int) - decoded).max() <= 1

    codec.save_pretrained(tmp_path / "ours")
    (tmp_path / "theirs").rename(tmp_path / "gone")
    again = load_codec(tmp_path / "ours")
    assert again.options == codec.options and same(codec.encode(scenes["seen"]), again.encode(scenes["seen"]))
    description = json.loads((tmp_path / "ours" / "codec.json").read_text())
    assert (description["vae_scaling_factor"], description["vae_shift_factor"]) == (0.3, 0.1)
    copied = fitted("image_latents", scenes["train"][:64], tmp_path, **options | {"path": str(tmp_path / "ours")})
    assert same(copied.encode(scenes["seen"]), codec.encode(scenes["seen"]))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {}, "codec_options.latent_channels: 4 is not allowed, it must be 6, that of the VAE"),
        ({}, {"latent_channels": 6, "downsample": 8}, "codec_options.downsample: 8 is not allowed, it must be 4"),
        ({"in_channels": 4}, {"latent_channels": 6}, "takes 4 channels and returns 3"),
        ({"out_channels": 6}, {"latent_channels": 6}, "takes 3 channels and returns 6"),
        (None, {}, "holds no AutoencoderKL"),
    ],
)
def test_pretrained_vaes_that_do_not_fit(changes, options, message, tmp_path):
    if changes is not None:
        tiny_vae(**changes).save_pretrained(tmp_path / "vae")
    with pytest.raises(ConfigError, match=message):
        ImageLatentCodec.from_options({"path": str(tmp_path / "vae"), **options})


# pixels


def test_pixels_come_back_exactly_and_are_saved(scenes, tmp_path):
    codec = fitted("image_pixels", scenes["train"], tmp_path, size=32, patch_size=4)
    assert codec.latent_channels == 48 and codec.patch_size == 4 and codec.default_grid == (8, 8)
    encoded = codec.encode(scenes["seen"])
    assert all(np.array_equal(a, b) for a, b in zip(codec.decode(encoded), scenes["seen"]))
    colour = (encoded[0].latents[0, :3] * codec.scaling.scale + codec.scaling.mean + 1) * 127.5
    assert np.allclose(colour, scenes["seen"][0][0, 0], atol=1e-3)
    values = per_channel(codec.encode(scenes["train"]), 3)
    assert np.allclose(values.mean(0), 0, atol=1e-4) and np.allclose(values.std(0), 1, atol=1e-4)
    assert codec.quality(scenes["seen"])["psnr"] == 100
    codec.save_pretrained(tmp_path / "saved")
    again = load_codec(tmp_path / "saved")
    assert isinstance(again, ImagePixelCodec) and same(encoded, again.encode(scenes["seen"]))


# principal components


def test_components_are_the_best_that_so_many_can_be(scenes, tmp_path):
    codec = fitted("image_components", scenes["train"], tmp_path, size=32, patch_size=8, components=40)
    assert codec.latent_channels == 40 and codec.patch_size == 1 and codec.default_grid == (4, 4)
    encoded = codec.encode(scenes["train"])
    values = np.concatenate([e.latents for e in encoded])
    spread = np.cov(values.T, ddof=0)
    assert np.allclose(values.mean(0), 0, atol=1e-4) and np.allclose(spread, np.diag(spread.diagonal()), atol=1e-2)
    assert np.isclose(spread.diagonal().mean(), 1, atol=1e-3) and (np.diff(spread.diagonal()) <= 1e-3).all()
    # no other 40 numbers of a patch leave less of its variance (Eckart and Young): compare with the singular values
    pixels = torch.from_numpy(np.stack(scenes["train"])).permute(0, 3, 1, 2).double() / 127.5 - 1
    patches = from_images(pixels, 8).flatten(0, 1)
    left = torch.linalg.svdvals(patches - patches.mean(0))[40:].square().sum() / len(patches) / 192
    grid = codec.scaling.restore(to_images(torch.from_numpy(np.stack([e.latents for e in encoded])), (4, 4), 1))
    assert torch.isclose((codec._images(grid).detach() - pixels).square().mean(), left, rtol=5e-3)
    codec.save_pretrained(tmp_path / "saved")
    assert same(encoded, load_codec(tmp_path / "saved").encode(scenes["train"]))


def test_all_components_bring_pixels_back(scenes, tmp_path):
    codec = fitted("image_components", scenes["train"], tmp_path, size=32, patch_size=4, components=48)
    again = codec.decode(codec.encode(scenes["seen"]))
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(again, scenes["seen"]))


def test_components_that_say_nothing_are_not_blown_up(tmp_path):
    flat = [np.full((32, 32, 3), level, np.uint8) for level in (10, 90, 200)]
    codec = fitted("image_components", flat, tmp_path, size=32, patch_size=8, components=20)
    latents = np.stack([e.latents for e in codec.encode(flat)])
    assert latents[..., 0].std() > 4 and np.abs(latents[..., 1:]).max() < 1e-2
    assert all(np.array_equal(a, b) for a, b in zip(codec.decode(codec.encode(flat)), flat))


# speech


def test_speech_latents_are_25_a_second_learned_and_normalised(speech_codec):
    clips = chirps(6, seed=1)
    encoded = speech_codec.encode(clips)
    assert [e.grid for e in encoded] == [(-(-len(clip) // 640),) for clip in clips]
    assert all(e.latents.shape == (*e.grid, 8) and e.latents.dtype == np.float32 for e in encoded)
    decoded = speech_codec.decode(encoded)
    assert [len(wave) for wave in decoded] == [640 * e.grid[0] for e in encoded]
    assert all(wave.dtype == np.float32 and np.abs(wave).max() <= 1 for wave in decoded)
    values = per_channel(speech_codec.encode(chirps(24)), 8)
    assert np.allclose(values.mean(0), 0, atol=1e-4) and np.allclose(values.std(0), 1, atol=1e-4)
    assert speech_codec.default_grid == (int(np.median([-(-len(clip) // 640) for clip in chirps(24)])),)
    quality = speech_codec.quality(clips)
    assert quality["mel_l1"] < 0.55 and 0.6 < quality["latent_std"] < 1.6
    assert quality["tokens_per_item"] == np.mean([e.grid[0] for e in encoded])


def test_speech_one_by_one_equals_together_at_any_length(speech_codec):
    clips = [clip[:n] for clip, n in zip(chirps(5, seed=2), [1, 639, 640, 641, 5000])]
    together = speech_codec.encode(clips)
    assert [len(e.latents) for e in together] == [1, 1, 1, 2, 8]
    assert all(np.allclose(speech_codec.encode([c])[0].latents, e.latents, atol=1e-4) for c, e in zip(clips, together))
    assert len(speech_codec.decode([Encoded(latents=np.zeros((0, 8), np.float32), grid=(0,))])[0]) == 0


def test_speech_latents_are_saved_and_read_back(speech_codec, tmp_path):
    speech_codec.save_pretrained(tmp_path)
    again = load_codec(tmp_path)
    clips = chirps(3, seed=3)
    encoded = speech_codec.encode(clips)
    assert again.is_fitted and again.default_grid == speech_codec.default_grid and same(encoded, again.encode(clips))
    assert all(np.array_equal(a, b) for a, b in zip(again.decode(encoded), speech_codec.decode(encoded)))
    description = json.loads((tmp_path / "codec.json").read_text())
    (tmp_path / "codec.json").write_text(json.dumps(description | {"median_tokens": 0}))
    with pytest.raises(CheckpointError, match=r"median_tokens .* is 0"):
        load_codec(tmp_path)


# all of them


class Stop(Exception):
    """Raised by a progress callback, as `plait prepare` stops a fit."""


@pytest.mark.parametrize("name", ["image_latents", "speech_latents"])
def test_a_resumed_fit_equals_an_uninterrupted_one(name, mixed, tmp_path, monkeypatch):
    media = mixed if name == "image_latents" else chirps(12)
    options = (TINY_IMAGE | {"aspect": "any"} if name == "image_latents" else TINY_SPEECH) | {"steps": 12}
    whole = fitted(name, media, tmp_path / "one", **options)
    monkeypatch.setattr(fitting, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fitting, "_REPORT_SECONDS", 0.0)

    def stop_half_way(share, text):
        if share >= 0.5:
            raise Stop

    with pytest.raises(Stop):
        fitted(name, media, tmp_path / "two", progress=stop_half_way, **options)
    seen = []
    resumed = fitted(name, media, tmp_path / "two", progress=lambda share, _: seen.append(share), **options)
    assert seen[0] >= 0.4, "it began anew"
    assert same(whole.encode(media[:8]), resumed.encode(media[:8])) and whole.scaling == resumed.scaling


@pytest.mark.parametrize("codec", ["image_codec", "speech_codec"])
def test_latents_that_are_none(codec, request):
    codec = request.getfixturevalue(codec)
    width, n = codec.latent_channels, int(np.prod(codec.default_grid))
    good = np.zeros((n, width), np.float32)
    broken = good.copy()
    broken[1, 2] = np.nan
    for latents, message in [
        (broken, "not numbers"),
        (np.full_like(good, np.inf), "not numbers"),
        (good[:, 1:], rf"\[{n}, {width - 1}\] are not allowed, they must be \[tokens, {width}\]"),
        (good[0], "must be"),
        (None, "holds ids"),
    ]:
        with pytest.raises(DataError, match=message):
            codec.decode([Encoded(latents=latents, grid=codec.default_grid)])


def test_grids_that_do_not_fit(image_codec):
    for grid in [(), (16,), (3, 5), (-4, -4)]:
        with pytest.raises(DataError, match="grid"):
            image_codec.decode([Encoded(latents=np.zeros((16, 16), np.float32), grid=grid)])
    assert image_codec.decode([Encoded(latents=np.zeros((16, 16), np.float32), grid=(2, 8))])[0].shape == (16, 64, 3)


def test_a_stored_scale_of_another_shape_is_refused(image_codec, tmp_path):
    image_codec.save_pretrained(tmp_path)
    description = json.loads((tmp_path / "codec.json").read_text())
    for change, message in [
        ({"latent_mean": [0.0] * 3}, "latent_mean .* is 3 numbers, it must be 4"),
        ({"latent_scale": None}, "latent_scale .* is None, it must be 4 numbers"),
        ({"options": description["options"] | {"latent_channels": 8}}, "8 is not allowed, it must be 4"),
        ({"options": description["options"] | {"downsample": 2}}, "2 is not allowed, it must be 4"),
    ]:
        (tmp_path / "codec.json").write_text(json.dumps(description | change))
        with pytest.raises(CheckpointError, match=message):
            load_codec(tmp_path)


def test_broken_weights_are_noticed_when_measured():
    with pytest.raises(DataError, match="not numbers"):
        Scaling.measure([torch.ones(2, 3), torch.tensor([[1.0, float("nan"), 2.0]])])


@pytest.mark.parametrize("name", ["image_latents", "image_pixels", "image_components", "speech_latents"])
def test_fitting_on_nothing(name, tmp_path):
    with pytest.raises(DataError, match="there are no"):
        fitted(name, [], tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("image_latents", {"downsample": 3}, "codec_options.downsample: 3"),
        ("image_latents", {"size": 36}, r"size: 36 .* multiple of downsample \* patch_size \(8\)"),
        ("image_latents", {"patch_size": 0}, "patch_size: 0"),
        ("image_latents", {"channels": [8, 8, 8, 8]}, "channels: .* 1 to 3 multiples of 8"),
        ("image_latents", {"channels": [12]}, r"channels: \[12\]"),
        ("image_latents", {"latent_channels": 0}, "latent_channels: 0"),
        ("image_latents", {"kl_weight": -1.0}, "kl_weight: -1"),
        ("image_latents", {"aspect": "sqare"}, "did you mean 'square'"),
        ("image_pixels", {"size": 60}, r"size: 60 .* multiple of patch_size \(8\)"),
        ("image_components", {"patch_size": 4, "components": 49}, r"components: 49 .* 1 to 3 \* patch_size\^2 \(48\)"),
        ("image_components", {"components": 0}, "components: 0"),
        ("image_pixels", {"patchsize": 4}, "did you mean 'patch_size'"),
        ("speech_latents", {"latent_channels": 0}, "latent_channels: 0"),
        ("speech_latents", {"channels": 3}, "channels: 3"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(ConfigError, match=message):
        codec_class(name).from_options(options)
