"""Media and rows in every container that a user may bring."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image

from helpers.manifests import write


def png(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 255, (12, 9 + i % 5, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def flac(i: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(i).uniform(-0.9, 0.9, 500 + i), 8000, format="FLAC")
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def write_tar(path, numbers, **settings):
    with tarfile.open(path, "w", **settings) as tar:
        for i in numbers:
            for suffix, data in (("txt", f"document {i}".encode()), ("json", json.dumps({"row": i}).encode()),
                                 ("png", png(i)), ("flac", flac(i))):  # fmt: skip
                add(tar, f"folder/{i:06d}.{suffix}", data)
    return path


def write_parquet(path, numbers):
    """Write a table as Hugging Face's datasets are: media as structs of bytes and path, other columns plain."""
    columns = {
        "text": [f"document {i}" for i in numbers],
        "image": [{"bytes": png(i), "path": f"{i}.png"} for i in numbers],
        "audio": [{"bytes": flac(i), "path": None} for i in numbers],
        "row": list(numbers),
        "unused": [[1, 2]] * len(numbers),
    }
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


def write_lines(folder, numbers, name="rows.jsonl"):
    for i in numbers:
        (folder / f"{i}.png").write_bytes(png(i))
        (folder / f"{i}.flac").write_bytes(flac(i))
    rows = [
        {"parts": [{"text": f"document {i}"}, {"image": f"{i}.png"}, {"audio": f"{i}.flac"}], "meta": {"row": i}}
        for i in numbers
    ]
    return write(folder, rows, name)
