"""Codecs that only read: encoders of transformers by folder, whatever holds them, saved without the rest."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.encoders import PATCH, SIDE, save_speech, save_vision

from plait.codecs import codec_class, fixed_grids, load_codec
from plait.codecs.base import Encoded, read_only
from plait.common.errors import CheckpointError, ConfigError, DataError

RATE = 16_000


def quiet(share, text):
    assert 0 <= share <= 1


def images(rng, *shapes):
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in shapes]


def clips(rng, *lengths):
    return [rng.uniform(-0.5, 0.5, n).astype(np.float32) for n in lengths]


def fitted(name, media, folder, **options):
    codec = codec_class(name).from_options(options)
    assert not codec.is_fitted
    codec.fit(media, minutes=0, seed=0, folder=folder, progress=quiet)
    return codec


@pytest.mark.parametrize("kind", ["SiglipVision", "Siglip", "ClipVision", "Dinov2"])
def test_a_vision_encoder_reads_patches_row_by_row(rng, tmp_path, kind):
    path = save_vision(tmp_path / "encoder", kind)
    media = images(rng, *[(SIDE, SIDE)] * 6, (20, 60))
    codec = fitted("image_features", media, tmp_path, path=str(path))
    rows = SIDE // PATCH
    encoded = codec.encode(media)
    assert {(e.grid, e.latents.shape, e.latents.dtype) for e in encoded} == {
        ((rows, rows), (rows * rows, 16), np.dtype(np.float32))
    }
    values = np.concatenate([e.latents for e in encoded])
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-4)  # per channel
    np.testing.assert_allclose(values.std(0), 1, atol=1e-3)
    with torch.no_grad():  # a class token, where there is one, stands first and is left out
        pixels = torch.from_numpy(media[0]).permute(2, 0, 1)[None] / 127.5 - 1
        tokens = codec.encoder(pixel_values=pixels).last_hidden_state[0]
    assert len(tokens) == rows * rows + (kind in ("ClipVision", "Dinov2"))
    restored = codec.scaling.restore(torch.from_numpy(encoded[0].latents).T[None])[0].T
    torch.testing.assert_close(restored, tokens[-rows * rows :], rtol=0, atol=1e-4)
    changed = media[0].copy()
    changed[: SIDE // 2] = 255 - changed[: SIDE // 2]  # the first token of the upper half differs most
    moved = np.abs(codec.encode([changed])[0].latents - encoded[0].latents).mean(1).reshape(rows, rows)
    assert moved[0].mean() > moved[-1].mean()


@pytest.mark.parametrize("kind", ["SiglipVision", "Siglip"])
def test_what_is_saved_is_the_encoder_alone_and_reads_the_same(rng, tmp_path, kind):
    path, media = save_vision(tmp_path / "encoder", kind), images(rng, *[(SIDE, SIDE)] * 3)
    (path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.3] * 3}))
    codec = fitted("image_features", media, tmp_path, path=str(path), layer=-2)
    assert codec.mean == [0.1, 0.2, 0.3]
    codec.save_pretrained(tmp_path / "saved")
    again = load_codec(tmp_path / "saved")
    assert (again.mean, again.options.path) == (codec.mean, str(path)) and again.is_fitted
    for a, b in zip(codec.encode(media), again.encode(media), strict=True):
        np.testing.assert_array_equal(a.latents, b.latents)
    assert sum(p.numel() for p in again.encoder.parameters()) == sum(p.numel() for p in codec.encoder.parameters())
    assert not any(p.requires_grad for p in again.encoder.parameters())


def test_other_sizes_and_shapes_of_images(rng, tmp_path):
    path, media = save_vision(tmp_path / "encoder"), images(rng, (64, 64), (64, 30), (30, 64))
    codec = fitted("image_features", media, tmp_path, path=str(path), size=48)
    assert {e.grid for e in codec.encode(media)} == {(6, 6)}
    codec = fitted("image_features", media, tmp_path, path=str(path), size=48, aspect="any")
    assert [e.grid for e in codec.encode(media)] == [(6, 6), (9, 4), (4, 9)]
    assert all(len(e.latents) == 36 for e in codec.encode(media))


@pytest.mark.parametrize("kind", ["Whisper", "Hubert", "HubertForCTC"])
def test_a_speech_encoder_reads_recordings_of_any_length(rng, tmp_path, kind):
    path, media = save_speech(tmp_path / "encoder", kind), clips(rng, 7000, 3200, 100, 12345)
    codec = fitted("speech_features", media, tmp_path, path=str(path))
    assert codec.sample_rate == RATE
    encoded = codec.encode(media)
    assert all(e.grid == (len(e.latents),) and e.latents.shape[1] == 16 for e in encoded)
    lengths = [len(e.latents) for e in encoded]
    if kind == "Whisper":  # 25 tokens a piece, of 320 samples each
        assert lengths == [22, 10, 1, 39]
    else:
        assert abs(lengths[0] - 7000 / 320) < 2 and lengths[2] == 1
    codec.save_pretrained(tmp_path / "saved")
    again = load_codec(tmp_path / "saved")
    for a, b in zip(encoded, again.encode(media), strict=True):
        np.testing.assert_array_equal(a.latents, b.latents)
    names = {name.split(".")[0] for name, _ in again.encoder.named_parameters()}
    assert "decoder" not in names and "lm_head" not in names


def test_sound_of_another_codec_is_brought_to_its_rate(rng, tmp_path):
    codec = codec_class("speech_features").from_options({"path": str(save_speech(tmp_path / "encoder"))})
    other = codec_class("speech_features").from_options({"path": str(tmp_path / "encoder")})
    other.sample_rate = 24_000
    (clip,) = clips(rng, 24_000)
    assert codec.taken_from(clip, codec) is clip
    assert len(codec.taken_from(clip, other)) == RATE and codec.taken_from(clip, other).dtype == np.float32


def test_nothing_leads_back_to_media(rng, tmp_path):
    media = images(rng, (SIDE, SIDE))
    codec = fitted("image_features", media, tmp_path, path=str(save_vision(tmp_path / "encoder")))
    encoded = codec.encode(media)
    assert codec.reads_only and codec.decode(encoded) == encoded
    assert read_only(encoded[0]) == codec.to_html(encoded[0]) == "read only: 4 × 4 features"
    assert "data:image/png" in codec.to_html(media[0])
    assert codec.default_grid == (4, 4) and fixed_grids({"vit": codec}) == {}  # none is ever made
    assert set(codec.quality(media)) == {"latent_mean", "latent_std", "tokens_per_item"}


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("image_features", {"path": "nowhere"}, r"^codec_options\.path: 'nowhere' holds no model of transformers \("),
        ("image_features", {"layer": -4}, r"^codec_options\.layer: -4 .* between -3 and -1: this encoder has 3 la"),
        ("image_features", {"layer": 0}, r"^codec_options\.layer: 0 is not allowed"),
        ("image_features", {"size": 20}, r"^codec_options\.size: 20 .* a multiple of 8, the side of a patch$"),
        ("image_features", {"mean": [0.5]}, r"^codec_options\.mean: \[0\.5\] .* three numbers, or left out$"),
        ("image_features", {"std": [0.0, 1.0, 1.0]}, r"^codec_options\.std: .* above 0$"),
        ("speech_features", {}, r"^codec_options\.path: .* is no speech encoder that is read, use Whisper"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(tmp_path, name, options, sentence):
    path = str(save_vision(tmp_path / "encoder"))
    with pytest.raises(ConfigError, match=sentence) as error:
        codec_class(name).from_options({"path": path} | options)
    assert "\n" not in str(error.value)


def test_a_folder_of_another_kind_is_named(tmp_path):
    path = str(save_speech(tmp_path / "encoder"))
    with pytest.raises(ConfigError, match=r"is no vision encoder whose tokens are patches$"):
        codec_class("image_features").from_options({"path": path})
    torch.save({}, tmp_path / "encoder" / "pytorch_model.bin")
    (tmp_path / "encoder" / "model.safetensors").unlink()  # pickles are never read
    with pytest.raises(ConfigError, match=r"holds no HubertModel"):
        codec_class("speech_features").from_options({"path": path})


def test_nothing_to_measure_and_a_corrupt_description(rng, tmp_path):
    path = save_vision(tmp_path / "encoder")
    codec = codec_class("image_features").from_options({"path": str(path)})
    with pytest.raises(DataError, match="there is nothing to measure its features on"):
        codec.fit([], minutes=0, seed=0, folder=tmp_path, progress=quiet)
    codec.fit(images(rng, (SIDE, SIDE)), minutes=0, seed=0, folder=tmp_path, progress=quiet)
    codec.save_pretrained(tmp_path / "saved")
    description = json.loads((tmp_path / "saved/codec.json").read_text())
    for broken in ({"latent_mean": [1.0]}, {"image_mean": None}):
        (tmp_path / "saved/codec.json").write_text(json.dumps(description | broken))
        with pytest.raises(CheckpointError):
            load_codec(tmp_path / "saved")


def test_without_transformers_it_says_what_to_install(tmp_path):
    path = save_vision(tmp_path / "encoder")
    program = (
        "import sys; sys.modules['transformers'] = None\n"
        "from plait.codecs import codec_class\n"
        f"codec_class('image_features').from_options({{'path': {str(path)!r}}})"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "ResourceError: codec: package 'transformers' is not installed" in run.stderr
    assert "pip install 'plait[media]'" in run.stderr


def test_encoded_items_say_their_size():
    assert read_only(Encoded(latents=np.zeros((7, 2)))) == "read only: 7 features"
