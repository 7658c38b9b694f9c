"""Every codec: what goes in comes back, at any size, from a saved copy, and wrong files say so in one sentence."""

import itertools
import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.codecs import CODECS, codec_class, fitting, load_codec
from plait.codecs.base import Encoded
from plait.codecs.image_tokens import ImageTokenCodec
from plait.codecs.mel import LogMel, mel_filters
from plait.codecs.speech_tokens import SpeechTokenCodec
from plait.codecs.text import BytePairCodec, PretrainedTokenizerCodec
from plait.common.errors import CheckpointError, ConfigError, DataError
from plait.common.randomness import generator

SENTENCES = ["a red apple on a blue background", "ein Fuchs über dem Mond", "赤いりんごと青い背景", "🦊 left of 🍎"] * 5


def quiet(share, text):
    assert 0 <= share <= 1 and isinstance(text, str)


def blobs(count: int, size: int = 16, seed: int = 0) -> list[np.ndarray]:
    """Draw images of one coloured square on a coloured ground."""
    drawn = []
    for i in range(count):
        rng = generator(seed, "test picture", item=i)
        image = np.empty((size, size, 3), np.uint8)
        image[:] = rng.integers(256, size=3)
        x, y, w, h = rng.integers(1, size // 2, 4)
        image[y : y + h, x : x + w] = rng.integers(256, size=3)
        drawn.append(image)
    return drawn


@pytest.fixture(scope="module")
def text_codec(tmp_path_factory) -> BytePairCodec:
    codec = BytePairCodec.from_options({"vocab_size": 300})
    assert not codec.is_fitted
    codec.fit(SENTENCES, minutes=0.1, seed=0, folder=tmp_path_factory.mktemp("fit"), progress=quiet)
    return codec


TINY_IMAGE = {"size": 16, "channels": 16, "levels": [4, 4, 4], "steps": 60, "learning_rate": 1e-2}


def fitted_image_codec(folder: Path, **options) -> ImageTokenCodec:
    codec = ImageTokenCodec.from_options(TINY_IMAGE | options)
    codec.fit(blobs(64), minutes=1, seed=0, folder=folder, progress=quiet)
    return codec


@pytest.fixture(scope="module")
def image_codec(tmp_path_factory) -> ImageTokenCodec:
    return fitted_image_codec(tmp_path_factory.mktemp("fit"))


# text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_any_text_in_any_language_comes_back_exactly(text_codec, texts):
    encoded = text_codec.encode(texts)
    assert text_codec.decode(encoded) == texts
    assert all(e.ids.dtype == np.int32 and e.ids.min() >= 0 and e.ids.max() < 300 for e in encoded)


def test_text_any_ids_decode(text_codec):
    assert all(
        isinstance(t, str)
        for t in text_codec.decode([Encoded(ids=np.arange(300, dtype=np.int32)), Encoded(ids=np.array([], np.int32))])
    )


def test_text_of_few_merges_keeps_its_vocabulary(tmp_path):
    codec = BytePairCodec.from_options({"vocab_size": 5000})
    codec.fit(["ab"], minutes=0, seed=0, folder=tmp_path, progress=quiet)
    assert codec.vocab_size == 5000
    assert codec.decode([Encoded(ids=np.array([4999]))]) == [""]


def test_text_quality(text_codec):
    quality = text_codec.quality(SENTENCES)
    assert quality["exact"] == 1.0 and quality["bytes_per_token"] > 1


def test_text_is_saved_and_read_back(text_codec, tmp_path):
    text_codec.save_pretrained(tmp_path)
    again = load_codec(tmp_path)
    assert isinstance(again, BytePairCodec) and again.is_fitted
    assert [e.ids.tolist() for e in again.encode(SENTENCES)] == [e.ids.tolist() for e in text_codec.encode(SENTENCES)]


@pytest.mark.parametrize("value", ["", 3, None, "\ud800"])
def test_text_that_is_no_text(text_codec, value):
    with pytest.raises(DataError, match="text"):
        text_codec.read(value, Path())


def test_text_html_is_escaped(text_codec, tmp_path):
    assert text_codec.to_html("<b> & co") == "<p>&lt;b&gt; &amp; co</p>"
    text_codec.write("ä", tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "ä\n"


def test_pretrained_tokenizer(text_codec, tmp_path):
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=text_codec.tokenizer).save_pretrained(str(tmp_path / "theirs"))
    codec = PretrainedTokenizerCodec.from_options({"path": str(tmp_path / "theirs")})
    assert codec.is_fitted and codec.vocab_size == 300
    assert codec.decode(codec.encode(SENTENCES)) == SENTENCES
    codec.save_pretrained(tmp_path / "ours")
    again = load_codec(tmp_path / "ours")
    assert again.decode(codec.encode(SENTENCES)) == SENTENCES and again.options == codec.options
    with pytest.raises(ConfigError, match=r"codec_options\.path"):
        PretrainedTokenizerCodec.from_options({"path": str(tmp_path / "nothing")})


# trained image tokens


def test_image_tokens_learn_and_have_a_grid(image_codec):
    held_out = blobs(20, seed=1)
    encoded = image_codec.encode(held_out)
    assert image_codec.vocab_size == 64 and image_codec.default_grid == (4, 4)
    assert all(e.grid == (4, 4) and e.ids.shape == (16,) and e.ids.dtype == np.int32 for e in encoded)
    assert all(e.ids.min() >= 0 and e.ids.max() < 64 for e in encoded)
    decoded = image_codec.decode(encoded)
    assert all(d.shape == (16, 16, 3) and d.dtype == np.uint8 for d in decoded)
    quality = image_codec.quality(held_out)
    assert quality["psnr"] > 13 and 0 < quality["codes_used"] <= 1 and quality["psnr_thumbnail"] > 0


def test_image_one_by_one_equals_together(image_codec):
    images = blobs(70, seed=2)
    together = image_codec.encode(images)
    alone = [image_codec.encode([p])[0] for p in images[:5]]
    assert np.mean([(a.ids == b.ids).mean() for a, b in zip(alone, together)]) > 0.98


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (40, 20), (7, 90)])
def test_image_of_any_size(image_codec, shape):
    image = np.full((*shape, 3), 200, np.uint8)
    decoded = image_codec.decode(image_codec.encode([image]))[0]
    assert decoded.shape == (16, 16, 3)


def test_image_any_ids_decode(image_codec):
    ids = generator(0, "test ids").integers(64, size=16).astype(np.int32)
    assert image_codec.decode([Encoded(ids=ids)])[0].shape == (16, 16, 3)
    with pytest.raises(DataError, match="15 ids are not an image"):
        image_codec.decode([Encoded(ids=ids[:15])])


@pytest.mark.parametrize("options", [{"downsample": 2}, {"downsample": 8}, {"quantizer": "vq", "codebook_size": 32}])
def test_image_options(tmp_path, options):
    codec = fitted_image_codec(tmp_path / "fit", **{"steps": 12} | options)
    codec.save_pretrained(tmp_path / "saved")
    again = load_codec(tmp_path / "saved")
    images = blobs(4, seed=3)
    assert len(codec.encode(images)[0].ids) == (16 // codec.options.downsample) ** 2
    for a, b in zip(codec.encode(images), again.encode(images)):
        assert np.array_equal(a.ids, b.ids)
    for a, b in zip(codec.decode(codec.encode(images)), again.decode(again.encode(images))):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"downsample": 3}, "codec_options.downsample: 3"),
        ({"size": 18}, "codec_options.size: 18"),
        ({"levels": [2, 2]}, r"codec_options.levels: \[2, 2\]"),
        ({"quantizer": "vq", "codebook_size": 1}, "codec_options.codebook_size: 1"),
        ({"quantizer": "fsk"}, "did you mean 'fsq'"),
        ({"chanels": 3}, "did you mean 'channels'"),
    ],
)
def test_image_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        ImageTokenCodec.from_options(options)


def test_image_files(image_codec, tmp_path):
    from PIL import Image

    ramp = np.linspace(0, 255, 30 * 20 * 3).astype(np.uint8).reshape(20, 30, 3)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.fromarray(ramp[..., 0]).convert("P").save(tmp_path / "b.gif")
    Image.fromarray(np.dstack([ramp, np.zeros((20, 30), np.uint8)])).save(tmp_path / "clear.png")
    assert image_codec.read("a.png", tmp_path).shape == (16, 16, 3)
    assert image_codec.read("b.gif", tmp_path).shape == (16, 16, 3)
    assert (image_codec.read("clear.png", tmp_path) == 255).all()
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-40])
    (tmp_path / "text.png").write_text("no image")
    for name, message in [("cut.png", "not a readable"), ("text.png", "not a readable"), ("no.png", "there is no file"),
                          (7, "must be the path"), (".", "not a readable")]:  # fmt: skip
        with pytest.raises(DataError, match=message):
            image_codec.read(name, tmp_path)
    image_codec.write(ramp, tmp_path / "out.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), ramp)
    shown = image_codec.to_html(blobs(1)[0])
    assert "data:image/png;base64," in shown and "pixelated" in shown


# trained speech tokens


def tone(samples: int, frequency: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(np.arange(samples) * frequency * 2 * np.pi / 16000)).astype(np.float32)


def chirps(count: int, seed: int = 0) -> list[np.ndarray]:
    """Make recordings of one to four tones after each other."""
    made = []
    for i in range(count):
        rng = generator(seed, "test sound", item=i)
        made.append(np.concatenate([tone(rng.integers(1500, 4000), rng.uniform(150, 3000)) for _ in range(4)]))
    return made


TINY_SPEECH = {"channels": 32, "levels": [4, 4, 4], "steps": 80, "learning_rate": 1e-2, "crop": 12, "batch_size": 8}


@pytest.fixture(scope="module")
def speech_codec(tmp_path_factory) -> SpeechTokenCodec:
    codec = SpeechTokenCodec.from_options(TINY_SPEECH)
    codec.fit(chirps(24), minutes=1, seed=0, folder=tmp_path_factory.mktemp("fit"), progress=quiet)
    return codec


def test_speech_tokens_are_25_a_second_and_learned(speech_codec):
    held_out = chirps(6, seed=1)
    encoded = speech_codec.encode(held_out)
    assert [len(e.ids) for e in encoded] == [-(-len(clip) // 640) for clip in held_out]
    assert all(e.ids.dtype == np.int32 and e.ids.min() >= 0 and e.ids.max() < 64 for e in encoded)
    decoded = speech_codec.decode(encoded)
    assert [len(wave) for wave in decoded] == [640 * len(e.ids) for e in encoded]
    assert all(wave.dtype == np.float32 and np.abs(wave).max() <= 1 for wave in decoded)
    untrained = SpeechTokenCodec.from_options(TINY_SPEECH)
    untrained.model.mean.copy_(speech_codec.model.mean)
    untrained.model.scale.copy_(speech_codec.model.scale)
    quality = speech_codec.quality(held_out)
    assert quality["mel_l1"] < 0.8 * untrained.quality(held_out)["mel_l1"]
    assert quality["tokens_per_item"] == pytest.approx(np.mean([len(e.ids) for e in encoded]))


def test_speech_one_by_one_equals_together(speech_codec):
    clips = chirps(9, seed=2)
    together = speech_codec.encode(clips)
    assert all(np.array_equal(speech_codec.encode([c])[0].ids, e.ids) for c, e in zip(clips, together))


@pytest.mark.parametrize("samples", [1, 639, 640, 641, 100_000])
def test_speech_of_any_length(speech_codec, samples):
    encoded = speech_codec.encode([tone(samples)])
    assert len(speech_codec.decode(encoded)[0]) == 640 * len(encoded[0].ids) >= samples


def test_speech_any_ids_decode(speech_codec):
    ids = generator(0, "test ids").integers(64, size=21).astype(np.int32)
    waves = speech_codec.decode([Encoded(ids=ids), Encoded(ids=ids[:0])])
    assert [len(w) for w in waves] == [21 * 640, 0] and np.isfinite(waves[0]).all()


def test_empty_speech_is_refused(speech_codec):
    with pytest.raises(DataError, match="empty"):
        speech_codec.encode([tone(700), np.zeros(0, np.float32)])


def test_speech_is_saved_and_read_back(speech_codec, tmp_path):
    speech_codec.save_pretrained(tmp_path)
    again = load_codec(tmp_path)
    clips = chirps(3, seed=3)
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(again.encode(clips), speech_codec.encode(clips)))
    encoded = again.encode(clips)
    assert all(np.array_equal(a, b) for a, b in zip(again.decode(encoded), speech_codec.decode(encoded)))


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_speech_files(speech_codec, tmp_path, kind):
    import soundfile

    stereo = np.stack([tone(44_100, 330 * 16000 / 44100), np.zeros(44_100)], axis=1)
    soundfile.write(tmp_path / f"a.{kind}", stereo, 44_100)
    read = speech_codec.read(f"a.{kind}", tmp_path)
    assert read.dtype == np.float32 and abs(len(read) - 16_000) < 20
    assert 0.1 < np.abs(read[2000:-2000]).max() < 0.2  # the mean of a tone of 0.3 and silence
    peak = np.abs(np.fft.rfft(read)).argmax() * 16_000 / len(read)
    assert abs(peak - 330) < 3


def test_speech_files_that_are_none(speech_codec, tmp_path):
    import soundfile

    speech_codec.write(tone(3000), tmp_path / "good.wav")
    assert np.allclose(speech_codec.read("good.wav", tmp_path), tone(3000), atol=1e-3)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "cut.flac").write_bytes(b"fLaC")
    for name, message in [("empty.wav", "empty"), ("text.wav", "not a readable"), ("cut.flac", "not a readable"),
                          ("no.wav", "there is no file"), (None, "must be the path")]:  # fmt: skip
        with pytest.raises(DataError, match=message):
            speech_codec.read(name, tmp_path)
    assert "data:audio/wav;base64," in speech_codec.to_html(tone(300))


def test_griffin_lim_keeps_the_spectrum():
    mel = LogMel()
    clip = torch.from_numpy(chirps(1)[0][: 640 * 10])[None]
    original = mel(clip)
    rebuilt = mel(mel.waveform(original))
    loud = original > original.max() - 3
    assert (original - rebuilt)[loud].abs().mean() < 0.3
    assert mel_filters().sum(1).allclose(torch.ones(80))


# pretrained codecs, as small models with random weights


def tiny_image_model(kind: str):
    torch.manual_seed(0)
    if kind == "diffusers":
        from diffusers import VQModel

        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        return VQModel(block_out_channels=(8, 8), norm_num_groups=4, num_vq_embeddings=20, sample_size=16, **blocks)
    shape = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "embed_dim": 4}
    if kind == "emu3":
        from transformers.models.emu3.modeling_emu3 import Emu3VQVAE, Emu3VQVAEConfig

        return Emu3VQVAE(Emu3VQVAEConfig(codebook_size=20, hidden_size=32, attn_resolutions=[], **shape))
    from transformers.models.janus.modeling_janus import JanusVQVAE, JanusVQVAEConfig

    return JanusVQVAE(JanusVQVAEConfig(num_embeddings=20, num_patches=8, latent_channels=8, **shape))


@pytest.mark.parametrize(("kind", "size"), [("diffusers", 0), ("diffusers", 32), ("emu3", 16), ("janus", 0)])
def test_pretrained_image_codecs(kind, size, tmp_path):
    tiny_image_model(kind).save_pretrained(str(tmp_path / "theirs"))
    codec = codec_class("image_tokens_pretrained").from_options(
        {"path": str(tmp_path / "theirs"), "kind": kind, "size": size}
    )
    side = size or 16
    assert codec.is_fitted and codec.vocab_size == 20 and codec.default_grid == (side // 2, side // 2)
    media = [*blobs(9), np.zeros((20, 50, 3), np.uint8)]
    encoded = codec.encode(media)
    assert all(e.ids.shape == ((side // 2) ** 2,) and e.ids.dtype == np.int32 and e.ids.max() < 20 for e in encoded)
    decoded = codec.decode(encoded)
    assert all(d.shape == (side, side, 3) and d.dtype == np.uint8 for d in decoded)
    assert {"psnr", "psnr_thumbnail", "codes_used"} == set(codec.quality(media))
    codec.save_pretrained(tmp_path / "ours")
    (tmp_path / "theirs").rename(tmp_path / "gone")
    again = load_codec(tmp_path / "ours")
    assert again.options == codec.options
    assert all(np.array_equal(a, b) for a, b in zip(again.decode(encoded), decoded))


def test_pretrained_diffusers_decodes_what_the_model_itself_does(tmp_path):
    model = tiny_image_model("diffusers")
    model.save_pretrained(str(tmp_path))
    codec = codec_class("image_tokens_pretrained").from_options({"path": str(tmp_path)})
    image = torch.from_numpy(blobs(1)[0])[None].permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = model(image).sample
    found = codec.decode(codec.encode(blobs(1)))[0]
    assert np.abs(found.astype(int) - ((expected[0].permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5).numpy()).max() <= 1


def tiny_speech_model(kind: str, **options):
    torch.manual_seed(0)
    if kind == "encodec":
        from transformers import EncodecConfig, EncodecModel

        shape = {"num_filters": 4, "hidden_size": 8, "codebook_dim": 8, "codebook_size": 16, "num_lstm_layers": 1}
        rates = {"upsampling_ratios": [4, 4], "sampling_rate": 16_000, "target_bandwidths": [8.0, 16.0]}
        return EncodecModel(EncodecConfig(**shape, **rates, **options))
    from transformers import MimiConfig, MimiModel

    return MimiModel(
        MimiConfig(
            num_filters=4, hidden_size=16, codebook_dim=8, vector_quantization_hidden_dimension=8, codebook_size=16,
            num_quantizers=4, num_hidden_layers=1, intermediate_size=16, num_attention_heads=2, num_key_value_heads=2,
            head_dim=8, upsampling_ratios=[4, 4], upsample_groups=16, sampling_rate=16_000, frame_rate=500,
        )
    )  # fmt: skip


@pytest.mark.parametrize("flattening", ["interleaved", "first"])
@pytest.mark.parametrize("kind", ["encodec", "mimi"])
def test_pretrained_speech_codecs(kind, flattening, tmp_path):
    tiny_speech_model(kind).save_pretrained(str(tmp_path / "theirs"))
    options = {"path": str(tmp_path / "theirs"), "kind": kind, "flattening": flattening}
    codec = codec_class("speech_tokens_pretrained").from_options(options)
    books = 1 if flattening == "first" else {"encodec": 2, "mimi": 4}[kind]
    assert codec.num_codebooks == books and codec.vocab_size == 16 * books and codec.sample_rate == 16_000
    clips = [tone(1600), tone(3000, 700)]
    encoded = codec.encode(clips)
    for item, clip in zip(encoded, clips):
        frames = item.ids.reshape(-1, books)
        assert item.ids.dtype == np.int32 and (frames // 16 == np.arange(books)).all()
        assert abs(len(codec.decode([item])[0]) - len(clip)) <= 640
    decoded = codec.decode([Encoded(ids=np.arange(codec.vocab_size).astype(np.int32)), Encoded(ids=encoded[0].ids[:0])])
    assert len(decoded[0]) > 0 and len(decoded[1]) == 0
    assert codec.quality(clips)["tokens_per_item"] == np.mean([len(e.ids) for e in encoded])
    with pytest.raises(DataError, match="empty"):
        codec.encode([np.zeros(0, np.float32)])
    codec.save_pretrained(tmp_path / "ours")
    (tmp_path / "theirs").rename(tmp_path / "gone")
    again = load_codec(tmp_path / "ours")
    assert all(np.array_equal(a, b) for a, b in zip(again.decode(encoded), codec.decode(encoded)))


def test_pretrained_interleaving_is_the_models_own_codes(tmp_path):
    model = tiny_speech_model("mimi")
    model.save_pretrained(str(tmp_path))
    codec = codec_class("speech_tokens_pretrained").from_options({"path": str(tmp_path), "codebooks": 3})
    with torch.no_grad():
        codes = model.encode(torch.from_numpy(tone(1600))[None, None], num_quantizers=3).audio_codes
        wave = model.decode(codes).audio_values
    item = codec.encode([tone(1600)])[0]
    assert np.array_equal(item.ids.reshape(-1, 3).T - 16 * np.arange(3)[:, None], codes[0].numpy())
    assert np.allclose(codec.decode([item])[0], wave[0, 0].clamp(-1, 1).numpy(), atol=1e-6)


def test_pretrained_codecs_that_do_not_fit(tmp_path):
    speech, image = codec_class("speech_tokens_pretrained"), codec_class("image_tokens_pretrained")
    tiny_speech_model("encodec").save_pretrained(str(tmp_path / "encodec"))
    tiny_speech_model("encodec", normalize=True).save_pretrained(str(tmp_path / "loud"))
    tiny_image_model("janus").save_pretrained(str(tmp_path / "janus"))
    for cls, options, message in [
        (speech, {"path": str(tmp_path / "nothing")}, "holds no MimiModel"),
        (speech, {"path": str(tmp_path / "encodec"), "kind": "encodec", "codebooks": 99}, "between 0 and 4"),
        (speech, {"path": str(tmp_path / "loud"), "kind": "encodec"}, "normalises loudness"),
        (image, {"path": str(tmp_path / "nothing")}, "holds no VQModel"),
        (image, {"path": str(tmp_path / "janus"), "kind": "emu3"}, "holds no Emu3VQVAE"),
        (image, {"path": str(tmp_path / "janus"), "kind": "janus", "size": 32}, "16, the only size"),
        (image, {"path": str(tmp_path / "janus"), "kind": "janos"}, "did you mean 'janus'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            cls.from_options(options)


# fitting


def test_fitting_is_deterministic_and_resumes(tmp_path, monkeypatch):
    first = fitted_image_codec(tmp_path / "one", steps=20)
    assert np.array_equal(weights(first), weights(fitted_image_codec(tmp_path / "two", steps=20)))
    monkeypatch.setattr(fitting, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fitting, "_REPORT_SECONDS", 0.0)

    class Stop(Exception):
        pass

    def stop_half_way(share, text):
        if share >= 0.5:
            raise Stop

    codec = ImageTokenCodec.from_options(TINY_IMAGE | {"steps": 20})
    with pytest.raises(Stop):
        codec.fit(blobs(64), minutes=1, seed=0, folder=tmp_path / "three", progress=stop_half_way)
    seen = []
    codec = ImageTokenCodec.from_options(TINY_IMAGE | {"steps": 20})
    codec.fit(blobs(64), minutes=1, seed=0, folder=tmp_path / "three", progress=lambda share, _: seen.append(share))
    assert seen[0] >= 0.4, "it began anew"
    assert np.array_equal(weights(first), weights(codec))


def weights(codec) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in codec.model.parameters()])


def test_fitting_keeps_to_its_time(tmp_path, monkeypatch):
    """A step takes a sixteenth of a second by this clock, so 1.875 seconds are 30 steps."""
    ticks, seen = itertools.count(), []
    monkeypatch.setattr(fitting, "time", types.SimpleNamespace(monotonic=lambda: next(ticks) / 16))
    codec = ImageTokenCodec.from_options(TINY_IMAGE | {"steps": 0})
    codec.fit(
        blobs(64), minutes=1.875 / 60, seed=0, folder=tmp_path, progress=lambda share, text: seen.append((share, text))
    )
    assert seen[-1] == (1.0, "30 steps")
    assert len(seen) >= 3 and "loss" in seen[0][1]
    assert [s for s, _ in seen] == sorted(s for s, _ in seen)


def test_fitting_on_nothing():
    for codec in [cls.from_options({}) for cls in (ImageTokenCodec, BytePairCodec, SpeechTokenCodec)]:
        with pytest.raises(DataError, match=r"there (are|is) no"):
            codec.fit([], minutes=1, seed=0, folder=Path("unused"), progress=quiet)


# saved folders


@pytest.mark.parametrize("codec", ["text_codec", "image_codec", "speech_codec"])
def test_wrong_folders_are_one_sentence(codec, request, tmp_path):
    codec = request.getfixturevalue(codec)
    cls = type(codec)

    def refuses(message):
        with pytest.raises(CheckpointError, match=message):
            cls.from_pretrained(tmp_path)

    refuses("there is no .*codec.json")
    codec.save_pretrained(tmp_path)
    data = next(p for p in tmp_path.iterdir() if p.name != "codec.json")
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    refuses(data.name)
    data.unlink()
    refuses(f"there is no .*{data.name}")
    description = json.loads((tmp_path / "codec.json").read_text())
    (tmp_path / "codec.json").write_text(json.dumps(description | {"options": {"unheard": 1}}))
    refuses("unheard")
    (tmp_path / "codec.json").write_text(json.dumps(description | {"codec": "another"}))
    refuses("'another'")
    (tmp_path / "codec.json").write_text("{")
    refuses("not a codec description")


def test_weights_of_another_size_are_refused(image_codec, tmp_path):
    image_codec.save_pretrained(tmp_path)
    description = json.loads((tmp_path / "codec.json").read_text())
    description["options"]["channels"] = 32
    (tmp_path / "codec.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="does not fit"):
        ImageTokenCodec.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", CODECS)
def test_registered_codecs_have_the_promised_form(name):
    cls = codec_class(name)
    assert cls.name == name and cls.suffix.startswith(".")
    assert cls.kind in ("text", "image", "audio", "scene3d", "motion", "actions", "traffic")
