"""Prepared data on disk: flat arrays in safetensors, written atomically and read through a memory map.

A prepared folder holds::

    index.json                            modalities, splits, shards with sizes and checksums; written last
    codecs/<modality>/                    what Codec.save_pretrained wrote
    shards/<split>-00000.safetensors      the encoded documents
    shards/<split>-00000.meta.jsonl       one JSON object a document: what is known of it

A shard's arrays, for D documents of P parts in all (a part's modality is its place in the index)::

    document_parts [D]      number of parts             ids [n]                  local ids of all discrete parts
    part_modality  [P]      place of its modality       latents.<modality> [m, C]  those of a continuous modality
    part_length    [P]      tokens without delimiters   part_grid [P, 3]         extent in space, padded with 0
"""

import json
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from plait.batch import Document, Part
from plait.errors import DataError, unknown
from plait.files import atomic_file, write_text

SHARD_SCHEMA_VERSION = 1
INDEX_NAME = "index.json"
MAX_GRID_AXES = 3

_OPEN_SHARDS = 512  # kept mapped at once by one reader; systems limit maps to some ten thousands


def shard_name(split: str, number: int) -> str:
    """Return the path of a shard within the prepared folder."""
    return f"shards/{split}-{number:05d}.safetensors"


def write_shard(
    folder: Path, split: str, number: int, documents: Sequence[Document], modalities: dict[str, dict]
) -> dict:
    """Write one shard and its meta file; return its entry for the index.

    ``modalities`` are the index's records: their order numbers the parts, their largest vocabulary sets the ids' type.
    """
    names = list(modalities)
    largest = max((m["vocab_size"] for m in modalities.values()), default=0)
    parts = [part for document in documents for part in document.parts]
    grids = np.zeros((len(parts), MAX_GRID_AXES), np.int32)
    for row, part in zip(grids, parts, strict=True):
        row[: len(part.grid)] = part.grid
    arrays = {
        "document_parts": np.array([len(d.parts) for d in documents], np.int32),
        "part_modality": np.array([names.index(p.modality) for p in parts], np.uint8),
        "part_length": np.array([len(p) for p in parts], np.int32),
        "part_grid": grids,
        "ids": _joined([p.ids for p in parts if p.ids is not None], np.uint16 if largest <= 1 << 16 else np.int32),
    }
    for name in names:
        if modalities[name]["latent_channels"]:
            latents = [p.latents for p in parts if p.modality == name]
            empty = np.zeros((0, modalities[name]["latent_channels"]), np.float32)
            arrays[f"latents.{name}"] = _joined([empty, *latents], np.float32)
    path = shard_name(split, number)
    data = safetensors.numpy.save(arrays)
    write_text(meta_path(folder / path), "".join(json.dumps(d.meta, ensure_ascii=False) + "\n" for d in documents))
    with atomic_file(folder / path) as temporary:
        temporary.write_bytes(data)
    return {
        "file": path,
        "documents": len(documents),
        "tokens": int(arrays["part_length"].sum()),
        "bytes": len(data),
        "crc32": zlib.crc32(data),
    }


def meta_path(shard: Path) -> Path:
    """Return the path of a shard's meta file."""
    return shard.with_name(shard.name.removesuffix(".safetensors") + ".meta.jsonl")


def _joined(arrays: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.asarray(a) for a in arrays]).astype(dtype) if arrays else np.zeros(0, dtype)


def read_index(folder: str | Path) -> dict:
    """Read and check the index of a prepared folder. Raises DataError."""
    path = Path(folder) / INDEX_NAME
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version = index["schema_version"]
        index["modalities"], index["splits"]
    except FileNotFoundError:
        message = f"data: there is no {str(path)!r}, make it with plait prepare (an interrupted one goes on)"
        raise DataError(message) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"data: {str(path)!r} is not an index of prepared data, make it with plait prepare") from None
    if version != SHARD_SCHEMA_VERSION:
        allowed = f"this plait reads {SHARD_SCHEMA_VERSION}"
        raise DataError(f"data: {str(path)!r} has schema_version {version!r}, {allowed}; prepare the data again")
    return index


class ShardSource:
    """The encoded documents of one split of a prepared folder, by index.

    Opening reads a few numbers for each part; ids and latents stay on disk until a document is asked for.
    """

    names: list[str]
    """The folder's modalities, in the order that `part_modality` counts."""
    part_starts: np.ndarray
    """[D + 1]: document i has parts part_starts[i] to part_starts[i + 1]."""
    part_modality: np.ndarray
    """[P] place of the part's modality in `names`."""
    part_length: np.ndarray
    """[P] tokens of the part, without delimiters."""
    part_grid: np.ndarray
    """[P, 3] extent in space, padded with zeros."""

    def __init__(self, folder: str | Path, split: str, index: dict | None = None):
        self.folder = str(folder)
        self.split = split
        self.index = read_index(folder) if index is None else index
        if split not in self.index["splits"]:
            raise DataError(unknown(f"split of {str(folder)!r}", split, self.index["splits"]))
        self.names = list(self.index["modalities"])
        entries = self.index["splits"][split]["shards"]
        self._shards = [_Shard(Path(folder), entry, self.index["modalities"]) for entry in entries]
        tables = [shard.read_table() for shard in self._shards]
        counts = _joined([t.document_parts for t in tables], np.int64)
        self.part_starts = np.concatenate([[0], np.cumsum(counts)])
        self.part_modality = _joined([t.part_modality for t in tables], np.uint8)
        self.part_length = _joined([t.part_length for t in tables], np.int32)
        self.part_grid = np.concatenate([np.zeros((0, MAX_GRID_AXES), np.int32), *(t.part_grid for t in tables)])
        self._first_document = np.concatenate([[0], np.cumsum([s.num_documents for s in self._shards])]).astype(int)
        self._open: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.part_starts) - 1

    def document(self, i: int, *, meta: bool = True) -> Document:
        """Return document ``i`` with its parts as written; its arrays are views of the file."""
        shard, local = self._locate(i)
        first, last = int(self.part_starts[i]), int(self.part_starts[i + 1])
        start = int(self.part_starts[self._first_document[shard]])  # the shard's first part
        parts = []
        for p in range(first, last):
            name = self.names[self.part_modality[p]]
            values = self._shards[shard].values(p - start, name, int(self.part_length[p]))
            grid = tuple(int(n) for n in self.part_grid[p] if n)
            parts.append(Part(name, grid=grid, **values))
        return Document(parts, index=i, meta=self._shards[shard].meta(local) if meta else {})

    def meta(self, i: int) -> dict:
        """Return what is known of document ``i``."""
        shard, local = self._locate(i)
        return self._shards[shard].meta(local)

    def _locate(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        shard = int(np.searchsorted(self._first_document, i, side="right")) - 1
        if shard not in self._open:
            self._open[shard] = None
            if len(self._open) > _OPEN_SHARDS:
                self._shards[self._open.popitem(last=False)[0]].close()
        return shard, i - int(self._first_document[shard])


@dataclass
class _Table:
    document_parts: np.ndarray
    part_modality: np.ndarray
    part_length: np.ndarray
    part_grid: np.ndarray


class _Shard:
    """One file. It is checked whole (checksum) when the first document is read from it."""

    def __init__(self, folder: Path, entry: dict, modalities: dict[str, dict]):
        self.path = folder / entry["file"]
        self.entry = entry
        self.num_documents = entry["documents"]
        self._modalities = modalities
        self._checked = False
        self._values: dict[str, np.ndarray] | None = None
        self._part_offset: np.ndarray | None = None
        self._meta: tuple[bytes, np.ndarray] | None = None

    def read_table(self) -> _Table:
        """Read the numbers of every part."""
        try:
            if self.path.stat().st_size != self.entry["bytes"]:
                raise self._broken(f"has {self.path.stat().st_size} bytes, not {self.entry['bytes']}")
            with safe_open(self.path, framework="np") as file:
                table = _Table(*(file.get_tensor(name) for name in _Table.__dataclass_fields__))
        except (OSError, SafetensorError) as error:
            raise self._broken(f"cannot be read ({str(error).splitlines()[0]})") from None
        parts = int(table.document_parts.sum())
        whole = len(table.document_parts) == self.num_documents and parts == len(table.part_length)
        if not whole or int(table.part_length.sum()) != self.entry["tokens"]:
            raise self._broken("does not hold what the index says")
        return table

    def values(self, part: int, modality: str, length: int) -> dict[str, np.ndarray]:
        """Return ``{"ids": [n]}`` or ``{"latents": [n, C]}`` of a part of this shard."""
        arrays = self._values
        if arrays is None:
            arrays = self._map()
        at = int(self._part_offset[part])
        if self._modalities[modality]["latent_channels"]:
            return {"latents": arrays[f"latents.{modality}"][at : at + length]}
        return {"ids": arrays["ids"][at : at + length]}

    def meta(self, document: int) -> dict:
        """Return the meta of a document of this shard."""
        if self._meta is None:
            path = meta_path(self.path)
            try:
                text = path.read_bytes()
            except OSError as error:
                raise DataError(f"data: {str(path)!r} cannot be read ({error.strerror}), prepare again") from None
            ends = np.flatnonzero(np.frombuffer(text, np.uint8) == 10) + 1
            if len(ends) != self.num_documents:
                raise DataError(f"data: {str(path)!r} has {len(ends)} lines, not {self.num_documents}, prepare again")
            self._meta = text, np.concatenate([[0], ends])
        text, starts = self._meta
        return json.loads(text[starts[document] : starts[document + 1]])

    def close(self) -> None:
        """Let the map go; the next read opens it again."""
        self._values, self._meta = None, None

    def _map(self) -> dict[str, np.ndarray]:
        """Map the file, check it on first use, and find where each part's values begin."""
        data = np.memmap(self.path, np.uint8, mode="r")
        if not self._checked and zlib.crc32(data) != self.entry["crc32"]:
            raise self._broken("is damaged (its checksum differs)")
        self._checked = True
        size = int(data[:8].view("<u8")[0])
        header = json.loads(bytes(data[8 : 8 + size]))
        arrays = {name: _view(data, 8 + size, field) for name, field in header.items() if name != "__metadata__"}
        lengths, modality = arrays["part_length"].astype(np.int64), arrays["part_modality"]
        continuous = [bool(m["latent_channels"]) for m in self._modalities.values()]
        stores = np.array([i + 1 if c else 0 for i, c in enumerate(continuous)])[modality]
        offset = np.zeros(len(lengths), np.int64)
        for store in np.unique(stores):
            mine = stores == store
            offset[mine] = np.cumsum(lengths[mine]) - lengths[mine]
        self._part_offset = offset  # before _values: another thread takes a set _values as a sign that all is there
        self._values = arrays
        return arrays

    def _broken(self, what: str) -> DataError:
        return DataError(f"data: shard {str(self.path)!r} {what}, prepare the data again")


_DTYPES = {"U8": np.uint8, "U16": np.uint16, "I32": np.int32, "I64": np.int64, "F32": np.float32, "F16": np.float16}


def _view(data: np.ndarray, base: int, field: dict) -> np.ndarray:
    """Return an array of a safetensors file as a view of the mapped bytes."""
    start, stop = field["data_offsets"]
    return np.asarray(data[base + start : base + stop]).view(_DTYPES[field["dtype"]]).reshape(field["shape"])
