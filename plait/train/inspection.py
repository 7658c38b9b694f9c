"""Batches put aside for inspection: what a model was given when its gradient was not finite."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from plait.batch.batch import Batch
from plait.common.files import atomic_folder, write_json


def save_batches(folder: Path, batches: Sequence[Batch], facts: dict[str, Any]) -> Path:
    """Write batches into ``folder``: each one's tensors as safetensors, and as JSON what its documents are.

    ``facts`` (step, position of the data, ...) go into facts.json.
    """
    with atomic_folder(folder) as temporary:
        write_json(temporary / "facts.json", facts)
        for number, batch in enumerate(batches):
            save_file(dict(_tensors("", batch)), temporary / f"batch-{number}.safetensors")
            write_json(temporary / f"batch-{number}.json", _description(batch))
    return folder


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a batch with its place, such as ``routing.to_towers``."""
    if isinstance(value, Tensor):
        yield name, value.contiguous().clone()
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _tensors(f"{name}.{key}", each)
    elif isinstance(value, list) and value and isinstance(value[0], Tensor):
        for key, each in enumerate(value):
            yield from _tensors(f"{name}.{key}", each)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(f"{name}.{field.name}".lstrip("."), getattr(value, field.name))


def _description(batch: Batch) -> dict[str, Any]:
    documents = [
        {"index": d.index, "epoch": d.epoch, "task": d.task, "meta": d.meta,
         "parts": [{"modality": p.modality, "role": p.role, "tokens": len(p), "grid": list(p.grid)} for p in d.parts]}
        for d in batch.documents
    ]  # fmt: skip
    return {
        "counts": batch.counts,
        "lengths": batch.lengths,
        "tower_rows": batch.routing.sizes,
        "documents": documents,
        "spans": [dataclasses.asdict(span) for span in batch.spans],
    }
