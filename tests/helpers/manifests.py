"""Manifests on disk, and their documents."""

import json
import tempfile
from pathlib import Path

from helpers.fake_data import FakeImage, FakeOptions, FakeSpeech, FakeText
from plait.codecs.chat import chat_of
from plait.config.run import PrepareConfig
from plait.prepare.formats import open_rows
from plait.prepare.manifest import ManifestSource, known_keys
from plait.prepare.remote import expand
from plait.prepare.row_index import RowIndex, join, scan

CODECS = {"text": FakeText(FakeOptions()), "image": FakeImage(FakeOptions()), "speech": FakeSpeech(FakeOptions())}


def write(folder, rows, name="manifest.jsonl"):
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    return folder / name


def open_source(sources, codecs=CODECS, **settings) -> ManifestSource:
    """Find the rows of manifests, and open them."""
    prepare = PrepareConfig(**({"validation_share": 0.0} | settings))
    files = expand([str(s) for s in (sources if isinstance(sources, list) else [sources])])
    folder = Path(tempfile.mkdtemp())
    for number, place in enumerate(files):
        rows = open_rows(place, prepare.columns, known_keys(codecs), chat_of(codecs))
        scan(rows, folder, number, prepare.validation_share, lambda count: None)
    join(folder, folder, len(files))
    return ManifestSource(files, prepare, codecs, RowIndex(folder))


def read_all(path, share=0.0, codecs=CODECS, **settings):
    source = open_source(path, codecs, validation_share=share, **settings)
    return {split: list(source.read(split, 0, rows)) for split, rows in source.splits().items()}
