"""What the report shows: tasks of the config, each on held-out documents that have its parts."""

import json

import numpy as np
import pytest
from helpers.evaluation import CODECS, document
from helpers.fake_data import model_config, run_config, scene_like, write_folder

from plait.batch.documents import Document, Part
from plait.config.generation import GenerateConfig
from plait.data.sources import resolve_vocabulary
from plait.generate.pipeline import Pipeline
from plait.model.mot import MixtureOfTransformers
from plait.run.samples import SampleSet

TASKS = {"text,image": 1.0, "image,text": 1.0, "text,speech": 1.0, "text,image,text": 1.0, "as_written": 1.0}


def without(document: Document, *names: str) -> Document:
    return Document([p for p in document.parts if p.modality not in names], meta={"caption": "a fox"})


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Documents that lack this or that come first; the last split alone has speech."""
    path = tmp_path_factory.mktemp("samples")
    images = [Document([Part("image", np.full(16, i), grid=(4, 4))]) for i in range(2)]
    texts = [
        Document([Part("text", np.frombuffer(f"text {i}".encode(), np.uint8).astype(np.int32)), *images[0].parts])
        for i in range(4)
    ]
    spoken = [without(scene_like(i), "image") for i in range(3)]
    folder = write_folder(path / "data", {"train": texts, "seen": [*images, *texts], "unseen": spoken})
    config = resolve_vocabulary(run_config(folder, tasks=TASKS))
    generate = GenerateConfig(max_tokens={"text": 5, "speech": 5}, grids={"image": [4, 4]})
    pipeline = Pipeline(MixtureOfTransformers(config.model), CODECS, generate, config.diffusion)
    SampleSet(config, pipeline, path / "out", 3).write(free=1)
    return [json.loads(line) for line in (path / "out" / "samples.jsonl").read_text().splitlines()]


def test_parts_of_several_modalities_are_decoded_in_their_order():
    pipeline = Pipeline(MixtureOfTransformers(model_config()), CODECS, GenerateConfig())
    parts = [part for i in (2, 0, 1) for part in document(i).parts] + document(3).parts[1:2]
    together = pipeline.decode(parts)
    assert [name for name, _ in together] == ["text", "image", "speech"] * 3 + ["image"]
    for part, (_, media) in zip(parts, together, strict=True):
        np.testing.assert_array_equal(media, pipeline.decode([part])[0][1])
    assert pipeline.decode([]) == []


def test_each_task_is_shown_on_the_first_documents_that_have_its_parts(shown):
    tasks = [record["task"] for record in shown]
    assert tasks == ["text>image"] * 3 + ["image>text"] * 3 + ["text>speech"] * 3 + ["free"]
    assert [r["prompt"][0]["text"] for r in shown[:3]] == ["text 0", "text 1", "text 2"]
    assert [r["truth"][0]["text"] for r in shown[3:6]] == ["text 0", "text 1", "text 2"]
    assert all(record["truth"][0]["modality"] == "speech" for record in shown[6:9])
