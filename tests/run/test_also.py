"""`plait generate --also`: what is made in more formats, beside the first file, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from plait.cli import main
from plait.codecs.motions import MotionCodec
from plait.codecs.text import BytePairCodec, BytePairOptions
from plait.codecs.voxels import VoxelCodec
from plait.common.errors import ConfigError
from plait.config.generation import GenerateConfig, SamplingConfig
from plait.config.model import ModalityConfig, ModelConfig
from plait.generate.pipeline import Pipeline
from plait.model.mot import MixtureOfTransformers
from plait.run.load import load

trimesh = pytest.importorskip("trimesh")
SIZE = 16


def cells() -> np.ndarray:
    """Return two blocks, one of them red."""
    scene = np.zeros((SIZE, SIZE, SIZE, 4), np.uint8)
    scene[1:7, 4:10, 0:7] = (220, 30, 20, 255)
    scene[9:15, 6:9, 0:3] = (20, 40, 220, 255)
    return scene


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model of texts, scenes and motions, saved; what it makes is noise."""
    folder = tmp_path_factory.mktemp("also")
    text = BytePairCodec(BytePairOptions(vocab_size=260))
    scenes = VoxelCodec.from_options({"size": SIZE, "width": 16, "depth": 1, "steps": 1})
    motions = MotionCodec.from_options({})
    for codec, media in ((text, ["two blocks"]), (scenes, [cells()])):
        codec.fit(media, minutes=0, seed=0, folder=folder, progress=lambda *_: None)
    made = {"objective": "diffusion", "attention": "bidirectional"}
    records = {"text": ModalityConfig(vocab_size=text.vocab_size)} | {
        name: ModalityConfig(latent_channels=codec.latent_channels, patch_size=codec.patch_size, **made)
        for name, codec in (("scene3d", scenes), ("motion", motions))
    }
    config = ModelConfig(records, width=32, num_heads=2, num_layers=1, max_positions=256,
                         position_axes=["time", "x", "y", "z"], bos=text.bos, eos=text.eos)  # fmt: skip
    torch.manual_seed(0)
    settings = GenerateConfig(sampling={name: SamplingConfig(steps=2) for name in ("scene3d", "motion")})
    pipeline = Pipeline(MixtureOfTransformers(config), {"text": text, "scene3d": scenes, "motion": motions}, settings)
    pipeline.save_pretrained(folder / "small")
    np.savez(folder / "scene.npz", cells=cells())
    return folder / "small"


def generate(model, out, *words: str) -> int:
    return main(["generate", str(model), "--out", str(out), *words])


def test_a_scene_in_every_format(model, tmp_path, capsys):
    assert generate(model, tmp_path, "--text", "a", "--output", "scene3d", "--also", "ply,obj,stl,npz,xml,glb") == 0
    (record,) = map(json.loads, (tmp_path / "samples.jsonl").read_text().splitlines())
    (part,) = record["output"]
    assert part["file"] == "scene3d/0000-output0.glb"
    assert part["also"] == [f"scene3d/0000-output0.{name}" for name in ("ply", "obj", "stl", "npz", "xml")]
    assert sorted(p.name for p in (tmp_path / "scene3d").iterdir()) == sorted(
        p.rpartition("/")[2] for p in (part["file"], *part["also"])
    )
    made = np.load(tmp_path / part["also"][3])["cells"]
    filled = (made[..., 3] > 0).sum() / SIZE**3
    solid = trimesh.load_mesh(tmp_path / part["also"][0])
    solid.merge_vertices(merge_norm=True, merge_tex=True)
    assert solid.volume == pytest.approx(filled, abs=1e-4)
    assert "0000-output0.glb" in capsys.readouterr().out
    loaded = pytest.importorskip("mujoco").MjModel.from_xml_path(str(tmp_path / part["also"][4]))
    assert 8 * np.prod(loaded.geom_size[1:], axis=1).sum() == pytest.approx(filled, rel=1e-3)


def test_a_motion_of_the_prompts_scene(model, tmp_path, monkeypatch):
    """The pictures know the scene of the same sample: they show its cells in place of boxes."""
    seen = []

    def drawn(motion, scene):
        seen.append(scene)
        return [np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)]

    monkeypatch.setattr("plait.codecs.animation.frames_of", drawn)
    scene = ["--part", f"scene3d={model.parent / 'scene.npz'}"]
    for words, given in ((["--text", "they fall", *scene], True), (["--text", "they fall"], False)):
        out = tmp_path / str(given)
        assert generate(model, out, *words, "--output", "motion", "--also", ".glb, .gif") == 0
        (record,) = map(json.loads, (out / "samples.jsonl").read_text().splitlines())
        assert record["output"][0] == {
            "modality": "motion", "file": "motion/0000-output0.npz",
            "also": ["motion/0000-output0.glb", "motion/0000-output0.gif"]}  # fmt: skip
        assert np.load(out / "motion/0000-output0.npz")["motion"].shape == (24, 2, 15)
        trimesh.load_scene(out / "motion/0000-output0.glb")
        assert Image.open(out / "motion/0000-output0.gif").n_frames == 2
        assert "also" not in record["prompt"][-1]
        last = seen.pop()
        assert np.array_equal(last, cells()) if given else last is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output", "scene3d", "--also", "ply,fbx"],
         "--also: 'fbx' is not allowed, it must be one of glb, ply, obj, stl, npz, xml, for scene3d"),
        (["--output", "motion", "--also", "ply"], "--also: 'ply' is not allowed, it must be one of npz, glb, gif, for"),
        (["--output", "text", "--also", "ply"], "--also: 'ply' is not allowed, it must be left out: text has no files"),
        (["--also", "ply"], "--also: 'ply' is not allowed, it must be given with --output"),
        (["--output", "scene3d", "--also", "ply,xml", "--prompts", "list.txt"],
         "--also: 'ply,xml' is not allowed, it must be left out with --prompts"),
    ],
)  # fmt: skip
def test_what_is_refused(model, tmp_path, capsys, words, said):
    assert generate(model, tmp_path, "--text", "a", *words) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_several_outputs_in_turn(model, tmp_path, monkeypatch):
    """A scene and then its motion are what each is when it is asked for by itself, given what was before it."""
    monkeypatch.setattr("plait.codecs.animation.frames_of", lambda *_: [np.zeros((8, 8, 3), np.uint8)] * 2)
    assert (
        generate(model, tmp_path, "--text", "a", "--output", "scene3d,motion", "--also", "gif,npz", "--count", "2") == 0
    )
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [r["task"] for r in records] == ["text>scene3d+motion"] * 2
    scene, motion = records[1]["output"]
    assert [scene["file"], motion["file"]] == ["scene3d/0001-output0.glb", "motion/0001-output1.npz"]
    assert scene["also"] == ["scene3d/0001-output0.npz"] and motion["also"] == ["motion/0001-output1.gif"]
    pipeline = load(model)
    first, second = (pipeline.generate(["a", "a"], output)[1] for output in ("scene3d", ["scene3d", "motion"]))
    assert np.array_equal(first.output[0][1], second.output[0][1])
    given = [*pipeline.encode([("text", "a")]), first.result.parts[0]]
    alone = pipeline.complete([given], ["motion"], numbers=[1])[0].parts[0]
    assert np.allclose(alone.latents, second.result.parts[1].latents, atol=1e-4)  # alone, and as one of two
    with pytest.raises(ConfigError, match="unknown name 'sound'"):
        pipeline.generate("a", ["scene3d", "sound"])
