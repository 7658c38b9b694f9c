"""What a prompt may be: texts, files by what they are, PIL images, arrays; and errors that never print an array."""

import dataclasses
import math

import numpy as np
import pytest
import soundfile
from helpers.models import model_config
from PIL import Image

from plait.codecs.text import BytePairCodec, BytePairOptions
from plait.common.errors import ConfigError, PlaitError
from plait.config.generation import GenerateConfig, SamplingConfig
from plait.config.run_records import ModalitySettings
from plait.generate import Request
from plait.generate.pipeline import Pipeline
from plait.model.mot import MixtureOfTransformers
from plait.prepare.encode import build_codecs

SIDE, RATE = 8, 16_000


class Kept:
    """Stands in for a codec's network: what was read is kept as it is."""

    def __init__(self, codec):
        self.codec, self.key, self.kind, self.names_files = codec, codec.key, codec.kind, codec.names_files
        self.sample_rate, self.default_grid, self.reads = codec.sample_rate, (), codec.reads
        self.reads_values = codec.reads_values
        self.read, self.read_bytes, self.taken_from = codec.read, codec.read_bytes, codec.taken_from


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    chosen = {"text": ("text_bpe", {"vocab_size": 256}), "image": ("image_pixels", {"size": SIDE}),
              "speech": ("speech_tokens", {})}  # fmt: skip
    codecs = build_codecs({name: ModalitySettings(codec, options) for name, (codec, options) in chosen.items()})
    codecs["text"].fit(["a fox"], minutes=0, seed=0, folder=None, progress=lambda *_: None)
    codecs |= {name: Kept(codecs[name]) for name in ("image", "speech")}
    return Pipeline(MixtureOfTransformers(model_config()), codecs, GenerateConfig())


PIXELS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
SOUND = np.sin(np.arange(RATE) / 20).astype(np.float32)


def test_files_are_taken_by_what_they_are(pipeline, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    (tmp_path / "b").write_bytes((tmp_path / "a.png").read_bytes())  # a name says nothing
    soundfile.write(tmp_path / "c.wav", SOUND, RATE, subtype="FLOAT")
    (tmp_path / "d.txt").write_text("a fox", encoding="utf-8")
    media = pipeline.read([tmp_path / name for name in ("a.png", "b", "c.wav", "d.txt")])
    assert [name for name, _ in media] == ["image", "image", "speech", "text"]
    np.testing.assert_array_equal(media[0][1], PIXELS)
    np.testing.assert_array_equal(media[1][1], PIXELS)
    np.testing.assert_allclose(media[2][1], SOUND, atol=1e-6)
    assert media[3][1] == "a fox"
    assert pipeline.read(tmp_path / "a.png")[0][0] == "image"
    (tmp_path / "e.bin").write_bytes(bytes(range(256)) * 9)
    with pytest.raises(PlaitError, match=r"e\.bin' is neither text in UTF-8 nor media that this model reads"):
        pipeline.read(tmp_path / "e.bin")
    with pytest.raises(PlaitError, match=r"there is no file .*none\.png"):
        pipeline.read(tmp_path / "none.png")


def test_images_and_arrays_are_taken(pipeline):
    image = Image.fromarray(PIXELS)
    grey, opaque = PIXELS[:, :, 0], np.dstack([PIXELS, np.full((SIDE, SIDE), 255, np.uint8)])
    for value in (PIXELS, image, opaque, image.convert("RGBA"), {"image": PIXELS}, {"image": image}):
        ((name, read),) = pipeline.read(value)
        assert name == "image"
        np.testing.assert_array_equal(read, PIXELS)
    for value in (grey, grey[:, :, None], Image.fromarray(grey), {"image": grey}):
        np.testing.assert_array_equal(pipeline.read(value)[0][1], np.repeat(grey[:, :, None], 3, axis=2))
    clear = opaque.copy()
    clear[:, :, 3] = 0
    assert (pipeline.read(clear)[0][1] == 255).all()  # what is transparent is white, as in a file
    turned = Image.fromarray(PIXELS)
    turned.getexif()[274] = 6
    np.testing.assert_array_equal(pipeline.read(turned)[0][1], np.rot90(PIXELS, -1))
    assert pipeline.read(image.convert("CMYK"))[0][1].shape == (SIDE, SIDE, 3)


def test_two_modalities_of_one_kind_are_told_apart_by_their_keys(tmp_path):
    """Two cameras: a part names the one that it is of, by key or by name; an image alone could be of either."""
    cameras = {"front": ModalitySettings("image_pixels", {"size": SIDE}, key="ahead"),
               "rear": ModalitySettings("image_pixels", {"size": SIDE}, key="rear")}  # fmt: skip
    codecs = build_codecs({"text": ModalitySettings("text_bpe", {"vocab_size": 256}), **cameras})
    config = model_config()
    image = dataclasses.replace(config.modalities["image"], tower="")
    modalities = {"text": config.modalities["text"], **dict.fromkeys(cameras, image)}
    two = Pipeline(
        MixtureOfTransformers(dataclasses.replace(config, modalities=modalities, towers={})), codecs, GenerateConfig()
    )
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    read = two.read(
        [{"ahead": "a.png"}, {"rear": PIXELS}, {"front": tmp_path.joinpath("a.png").read_bytes()}], tmp_path
    )
    assert [name for name, _ in read] == ["front", "rear", "front"]
    for _, image in read:
        np.testing.assert_array_equal(image, PIXELS)
    for unclear in (PIXELS, Image.fromarray(PIXELS), tmp_path / "a.png"):
        with pytest.raises(ConfigError, match=r"several modalities of kind 'image', .* there are ahead, rear"):
            two.read(unclear)
    with pytest.raises(ConfigError, match=r"rear\.codec: .* set model\.modalities\.rear\.key, such as key: rear"):
        build_codecs({name: ModalitySettings("image_pixels", {"size": SIDE}) for name in cameras})
    with pytest.raises(ConfigError, match=r"front\.key: 'loss' is not allowed"):
        build_codecs({"front": ModalitySettings("image_pixels", {"size": SIDE}, key="loss")})


def test_sound_arrays_are_at_the_codecs_rate(pipeline):
    for value in (SOUND, SOUND.astype(np.float64), {"audio": SOUND}, {"speech": SOUND}):
        ((name, read),) = pipeline.read(value)
        assert name == "speech" and read.dtype == np.float32
        np.testing.assert_array_equal(read, SOUND)
    with pytest.raises(ConfigError, match=r"an array of int16 \[9\].*it must be float32 \[samples\], 16,000 of them"):
        pipeline.read({"audio": np.zeros(9, np.int16)})
    with pytest.raises(ConfigError, match="finite numbers"):
        pipeline.read(np.array([0.0, math.nan], np.float32))


def test_prompts_in_turn_and_many_prompts(pipeline):
    assert [n for n, _ in pipeline.read(["a fox", PIXELS, {"text": "b"}, SOUND])] == ["text", "image", "text", "speech"]
    assert pipeline.read("") == pipeline.read([]) == []


WRONG = [PIXELS.astype(np.float32), np.zeros((4, 4, 5), np.uint8), np.zeros((2, 3, 4, 3), np.uint8),
         np.zeros((2, 900)), np.zeros((0, 4), np.uint8), {"image": np.zeros((900, 900))},
         {"text": PIXELS}, {"audio": PIXELS}, {"speech": 3},
         {"image": 3.5}, {"smell": PIXELS}, {"a": 1, "b": PIXELS}, None, 3, math.nan, {PIXELS.tobytes()}, object(),
         [[PIXELS]], "half \ud83d", {"text": "half \ud83d"}, {"text": 3}, {"image": "none.png"}]  # fmt: skip


@pytest.mark.parametrize("prompt", WRONG, ids=range(len(WRONG)))
def test_what_is_no_prompt_is_refused_in_one_short_sentence(pipeline, prompt):
    with pytest.raises(PlaitError) as refused:
        pipeline.generate([prompt])
    message = str(refused.value)
    assert len(message) < 500 and "\n" not in message and message.isprintable()


def test_half_a_surrogate_pair_never_reaches_the_tokenizer():
    codec = BytePairCodec(BytePairOptions(256))
    codec.fit(["a"], minutes=0, seed=0, folder=None, progress=lambda *_: None)
    with pytest.raises(
        PlaitError, match=r"'half \\ud83d' is not valid Unicode \(half of a surrogate pair at character 6"
    ):
        codec.encode(["half \ud83d"])


NO_NUMBERS = [math.nan, math.inf, -math.inf, -1, "0.5", None, True, [1]]
SETTINGS = {
    "top_k": [1.5, *NO_NUMBERS], "steps": [0, 1.5, *NO_NUMBERS], "temperature": NO_NUMBERS,
    "top_p": [0, 1.5, *NO_NUMBERS], "guidance": [n for n in NO_NUMBERS if n != -1],
    "media_guidance": [n for n in NO_NUMBERS if n != -1], "shift": [0, math.nan, math.inf, True],
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_sampling_takes_numbers_alone(pipeline, name):
    for value in SETTINGS[name]:
        with pytest.raises(ConfigError, match=rf"{name}.* is not allowed, it must be"):
            pipeline.generate("a", "text", sampling={"text": SamplingConfig(**{name: value})})


@pytest.mark.parametrize(("settings", "field"), [
    *(({"seed": v}, "seed") for v in (1.5, math.nan, "1", None, True)),
    *(({"max_tokens": {"text": v}}, "max_tokens.text") for v in (0, -1, 1.5, math.nan, math.inf, "9", None, True)),
    *(({"grids": {"mel": v}}, "grids.mel") for v in ((0, 1), (-1, 2), (1.5, 2), (math.nan,), ("2", 2), (), 4, "4")),
    ({"seed": np.zeros(999)}, "seed"), ({"sampling": np.zeros(999)}, "sampling"),
    ({"grids": {"mel": np.ones((99, 99))}}, "grids.mel"), ({"max_tokens": 9}, "max_tokens"),
    ({"grids": [2, 2]}, "grids"), ({"sampling": 1.0}, "sampling"),
    ({"sampling": {"text": {"top_k": 1}}}, "sampling.text"), ({"grids": {"image": (2, 2)}}, "grids.image"),
    ({"max_tokens": {"texts": 3}}, "max_tokens"), ({"sampling": {"texts": SamplingConfig()}}, "sampling"),
])  # fmt: skip
def test_arguments_of_generation_are_taken_rightly_or_refused(settings, field):
    codec = BytePairCodec(BytePairOptions(256))
    codec.fit(["a"], minutes=0, seed=0, folder=None, progress=lambda *_: None)
    pipeline = Pipeline(MixtureOfTransformers(model_config(mel=True)), {"text": codec}, GenerateConfig())
    with pytest.raises(ConfigError, match=rf"^generate\.{field}(\[0\])?: ") as refused:
        pipeline.generate("", "text", **settings)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(("name", "value"), [("number", -1), ("number", 1.5), ("max_spans", -1), ("max_spans", None),
                                             ("num_snapshots", "3"), ("num_snapshots", math.nan)])  # fmt: skip
def test_requests_take_integers_alone(name, value):
    from plait.generate import Generator

    with pytest.raises(ConfigError, match=rf"generate\.{name}: .* it must be (a whole number|0 or more)"):
        Generator(MixtureOfTransformers(model_config()), grids={}).add(Request([], "text", **{name: value}))
