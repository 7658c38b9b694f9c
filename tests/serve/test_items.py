"""Items of kinds that OpenAI does not know travel as files, and the playground shows them as their codecs do."""

import base64
import io
import json
import urllib.error
import urllib.request

import numpy as np
import openai
import pytest
import torch
from helpers.chromium import webgl_browser
from helpers.served import served, small_pipeline

from plait.codecs.meshes import mesh_of
from plait.codecs.motions import MotionCodec
from plait.codecs.text import BytePairCodec, BytePairOptions
from plait.codecs.voxels import VoxelCodec, VoxelOptions
from plait.config.generation import GenerateConfig, SamplingConfig
from plait.config.model import ModalityConfig, ModelConfig
from plait.generate.pipeline import Pipeline
from plait.model.mot import MixtureOfTransformers
from plait.serve import media

pytest.importorskip("trimesh")
SIDE = 8


def scene() -> np.ndarray:
    """Return a red block beside a blue one."""
    cells = np.zeros((SIDE, SIDE, SIDE, 4), np.uint8)
    cells[0:4, 2:6, 0:4] = (200, 40, 40, 255)
    cells[5:8, 2:6, 0:2] = (40, 40, 200, 255)
    return cells


def motion() -> np.ndarray:
    """Return the first block of `scene` sliding to the right."""
    item = np.zeros((4, 2, 15), np.float32)
    item[:, 0, 3], item[:, 0, 7] = 1, 1
    item[:, 0, :3], item[:, 0, 9:] = (-0.25, 0, 0.25), 0.5
    item[:, 0, 0] += 0.05 * np.arange(4)
    return item


class Scenes(VoxelCodec):
    """Voxels, as which a random model's latents are always `scene`."""

    def decode(self, encoded):
        return [scene() for _ in encoded]


class Motions(MotionCodec):
    """Motions, as which a random model's latents are always `motion`."""

    def decode(self, encoded):
        return [motion() for _ in encoded]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A random model of texts, scenes and motions."""
    folder = tmp_path_factory.mktemp("codecs")
    fitted = {"minutes": 0, "seed": 0, "folder": folder, "progress": lambda *_: None}
    text = BytePairCodec(BytePairOptions(vocab_size=270))
    text.fit(["a red block beside a blue one"] * 4, **fitted)
    scenes = Scenes(VoxelOptions(size=SIDE, token_size=4, latent_channels=4, width=16, steps=1, batch_size=4))
    scenes.fit([scene()], **fitted)
    motions = Motions.from_options({"steps": 4})
    records = {"text": ModalityConfig(vocab_size=text.vocab_size)} | {
        name: ModalityConfig(objective="diffusion", attention="bidirectional", latent_channels=codec.latent_channels,
                             patch_size=codec.patch_size)
        for name, codec in (("thing", scenes), ("motion", motions))
    }  # fmt: skip
    config = ModelConfig(records, width=32, num_heads=2, num_layers=2, max_positions=512, head_dim=16,
                         position_axes=("time", "x", "y", "z"), bos=text.bos, eos=text.eos,
                         stops=text.stops)  # fmt: skip
    torch.manual_seed(0)
    model = MixtureOfTransformers(config).double().requires_grad_(False)
    sampling = {"thing": SamplingConfig(steps=4), "motion": SamplingConfig(steps=2)}
    settings = GenerateConfig(max_tokens={"text": 8}, batch_size=4, sampling=sampling)
    return Pipeline(model, {"text": text, "thing": scenes, "motion": motions}, settings)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, pipeline):
    """A run's folder with a sample of each of two tasks."""
    run = tmp_path_factory.mktemp("run")
    (run / "samples").mkdir()
    pipeline.codecs["thing"].write(scene(), run / "samples" / "0.glb")
    pipeline.codecs["motion"].write(motion(), run / "samples" / "0.npz")
    text, thing, moves = ({"modality": "text", "text": "two blocks"}, {"modality": "thing", "file": "0.glb"},
                          {"modality": "motion", "file": "0.npz"})  # fmt: skip
    records = [{"task": "text>thing", "prompt": [text], "output": [thing]},
               {"task": "thing+text>motion", "prompt": [thing, text], "output": [moves]}]  # fmt: skip
    (run / "samples" / "samples.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    return run


@pytest.fixture(scope="module")
def address(pipeline, run_folder):
    with served(pipeline, run=run_folder) as where:
        yield where


def glb(cells: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    mesh_of(cells, y_up=True).export(buffer, file_type="glb")
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def file_item(data: bytes, name: str) -> dict:
    return {
        "type": "file",
        "file": {"filename": name, "file_data": f"data:x/y;base64,{base64.b64encode(data).decode()}"},
    }


def ask(address: str, content, output: str, **fields):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        return client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": content}], modalities=[output], extra_body=fields
        )


def test_a_scene_is_answered_as_a_file(address, pipeline, tmp_path):
    (part,) = ask(address, "two blocks", "scene3d").choices[0].message.content
    assert part["type"] == "file" and part["file"]["filename"] == "scene3d.glb" and "html" not in part
    head, _, data = part["file"]["file_data"].partition(",")
    assert head.endswith(";base64")
    (tmp_path / "made.glb").write_bytes(base64.b64decode(data))
    made = pipeline.codecs["thing"].read("made.glb", tmp_path)
    assert ((made[..., 3] > 0) <= (scene()[..., 3] > 0)).all() and (made[..., 3] > 0).sum() > 60


def test_a_file_is_read_by_what_it_is_and_a_motion_comes_with_html_among_its_scene(address):
    for data, name in ((glb(scene()), "blocks.glb"), (npz(cells=scene()), "blocks.npz")):
        content = [file_item(data, name), {"type": "text", "text": "pushed"}]
        (part,) = ask(address, content, "motion", html=True).choices[0].message.content
        assert part["file"]["filename"] == "motion.npz" and "data-cells" in part["html"]
    (part,) = ask(address, "pushed", "motion", html=True).choices[0].message.content
    assert "data-cells" not in part["html"] and "data-motion" in part["html"]


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        (file_item(b"no mesh", "a.glb"), "'a.glb' is nothing that this model reads"),
        (file_item(b"", "a.glb"), "file: 'a.glb' is empty"),
        ({"type": "file", "file": {"file_data": "file:///etc/passwd"}}, "is not base64"),
        ({"type": "file", "file": {"file_data": "https://x.org/;base64,AAAA"}}, "must be base64 or data:TYPE"),
        (file_item(npz(cells=np.zeros(9000, np.uint8)), "a.npz"), "bytes once unpacked are not allowed"),
    ],
)
def test_what_is_no_file_of_the_model_is_refused(address, monkeypatch, item, sentence):
    monkeypatch.setattr(media, "MAX_UNPACKED", 9000)
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(address, [item], "text")
    assert sentence in refusal.value.message


def test_the_script_is_there_where_the_model_needs_it(address, tmp_path):
    with urllib.request.urlopen(f"{address}/items.js") as answer:
        assert answer.headers["content-type"].startswith("text/javascript") and b"THREE" in answer.read()
    others = served(small_pipeline(tmp_path, chat=False), key="secret")
    with others as other, pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{other}/items.js")


SHOWN = ".plait-3d > canvas:not([hidden])"


def test_the_playground_makes_shows_and_reads_items(address, tmp_path):
    (tmp_path / "blocks.glb").write_bytes(glb(scene()))
    with webgl_browser() as browser:
        browser.open(address, calm=True)
        browser.until("!document.getElementById('go').disabled")
        assert browser.run("document.getElementById('about').textContent") == (
            "small reads text, motions and scenes, and makes text, motions and scenes."
        )
        makes = browser.run("[...document.querySelectorAll('#make label')].map((l) => l.textContent)")
        assert makes == ["motion", "scene", "text", "you choose"]
        browser.until(f"document.querySelectorAll('.sample {SHOWN}').length === 3")
        assert browser.run("document.querySelectorAll('.sample [data-motion][data-cells]').length") == 1
        browser.run(
            "[...document.querySelectorAll('.sample button')].findLast((b) => b.textContent === 'Try it').click()"
        )
        browser.until(f"document.querySelectorAll('#parts {SHOWN}').length === 1")
        browser.run("document.getElementById('go').click()")
        browser.until(f"document.querySelectorAll('.answer figure:not(.forming) {SHOWN}').length === 1")
        browser.until("document.querySelector('.result .foot')?.childElementCount > 0")
        assert "Download" in browser.run("document.querySelector('.foot').textContent")
        assert browser.run("document.querySelector('.answer figure').suffix") == "npz"
        browser.call("DOM.enable")
        browser.run("document.querySelector('#parts button').click()")
        browser.choose("#file", tmp_path / "blocks.glb")
        browser.until("document.querySelector('#parts .part:nth-child(2)')?.textContent.startsWith('blocks.glb')")
        browser.run(
            "document.querySelector('[name=make][value=scene3d]').click(); document.getElementById('go').click()"
        )
        browser.until("document.querySelectorAll('.result').length === 2")
        browser.until(f"document.querySelectorAll('.result:first-child .answer {SHOWN}').length === 1")
        assert browser.problems(address) == []
