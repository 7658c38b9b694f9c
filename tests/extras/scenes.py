"""Scenes: drawn and spoken."""

from plait.config.run import PrepareConfig
from plait.prepare.raw import raw_documents
from plait.scenes.source import SceneSource

source = SceneSource(PrepareConfig(concepts=64, documents=4, validation_documents=1, image_size=32), seed=0)
for document in raw_documents(source, "train", [0, 1]):
    parts = dict(document.parts)
    assert parts["text"] and parts["image"].shape == (32, 32, 3) and len(parts["audio"]) > 8000
