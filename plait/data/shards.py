"""Prepared data on disk: flat arrays in safetensors, written whole or not at all, and read document by document.

A prepared folder holds::

    index.json                            modalities, splits, shards with their sizes; written last
    codecs/<modality>/                    what Codec.save_pretrained wrote
    tables/<split>.safetensors            every document's parts and checksums (plait/data/document_table.py)
    shards/<split>-00000.safetensors      the encoded documents
    shards/<split>-00000.meta.jsonl       one JSON object a document: what is known of it

A shard's arrays: ``ids`` [n], the local ids of all discrete parts in order, and ``latents.<modality>`` [m, C], those of
a continuous modality. Each document's contents have a checksum in the table, checked whenever they are read. Features
that one modality reads of another's parts (`reads` in its record of the index) stand behind each of them.
"""

import hashlib
import itertools
import json
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plait.batch.documents import Document, Part, role_of
from plait.common.errors import DataError, unknown
from plait.common.files import write_json, write_text
from plait.common.locks import writer_of
from plait.data.arrays import ArrayFile, write_arrays
from plait.data.document_table import MAX_GRID_AXES, PartTable, SplitTable, Table, make_table, write_table

SHARD_SCHEMA_VERSION = 3
SETTINGS_NAME = "settings.json"
"""What a prepared folder was made with."""

INDEX_NAME = "index.json"

_OPEN_SHARDS = 256  # files that one reader keeps open; systems allow about a thousand
_LARGEST_ARRAY = 2**31 - 1  # rows, as the table counts them


def shard_name(split: str, number: int) -> str:
    """Return the path of a shard within the prepared folder."""
    return f"shards/{split}-{number:05d}.safetensors"


def table_name(split: str) -> str:
    """Return the path of a split's table within the prepared folder."""
    return f"tables/{split}.safetensors"


def codec_folder(folder: str | Path, modality: str) -> Path:
    """Return where a modality's codec lies in a prepared folder."""
    return Path(folder) / "codecs" / modality


def write_shard(
    folder: Path, split: str, number: int, documents: Sequence[Document], modalities: dict[str, dict]
) -> tuple[dict, Table]:
    """Write one shard and its meta file; return its entry for the index, and its table.

    ``modalities`` are the index's records: their order numbers the parts, their largest vocabulary sets the ids' type.
    """
    names, forms = list(modalities), _forms(modalities)
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in forms}
    sizes = dict.fromkeys(forms, 0)
    rows, checksums, counts = [], [], []
    for document in documents:
        crc = 0
        for part in document.stored:
            store = "ids" if part.ids is not None else f"latents.{part.modality}"
            values = np.ascontiguousarray(part.ids if store == "ids" else part.latents, forms[store][0])
            grid = (*part.grid, *[0] * (MAX_GRID_AXES - len(part.grid)))
            rows.append((names.index(part.modality), len(part), *grid, sizes[store], int(part.loss > 0)))
            crc = zlib.crc32(values.tobytes(), crc)
            arrays[store].append(values)
            sizes[store] += len(values)
        checksums.append(crc)
        counts.append(len(document.stored))
    if max(sizes.values()) > _LARGEST_ARRAY:
        raise DataError(f"prepare.shard_documents: a shard of {len(documents)} documents is too large, set it lower")
    path = shard_name(split, number)
    lines = [json.dumps(d.meta, ensure_ascii=False) + "\n" for d in documents]
    write_text(meta_path(folder / path), "".join(lines))
    pieces = {name: (dtype, (sizes[name], *tail), arrays[name]) for name, (dtype, tail) in forms.items()}
    size = write_arrays(folder / path, pieces)
    table = make_table(np.array(rows), counts, checksums)
    tokens = int(table.parts[:, 1].sum())
    return {"file": path, "documents": len(documents), "parts": len(rows), "tokens": tokens, "bytes": size}, table


def _forms(modalities: dict[str, dict]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Return the type and the shape of one row of every array of a shard."""
    largest = max((m["vocab_size"] for m in modalities.values()), default=0)
    forms = {"ids": (np.dtype(np.uint16 if largest <= 1 << 16 else np.int32), ())}
    latents = {name: m["latent_channels"] for name, m in modalities.items() if m["latent_channels"]}
    return forms | {f"latents.{name}": (np.dtype(np.float32), (channels,)) for name, channels in latents.items()}


def meta_path(shard: Path) -> Path:
    """Return the path of a shard's meta file."""
    return shard.with_name(shard.name.removesuffix(".safetensors") + ".meta.jsonl")


def split_record(folder: Path, split: str, shards: list[dict], tables: Any) -> dict:
    """Join the shards' tables (see `write_table`) and return the split's record for the index."""
    documents, parts, tokens = (sum(shard[k] for shard in shards) for k in ("documents", "parts", "tokens"))
    path = Path(folder) / table_name(split)
    size = write_table(path, documents, parts, tables)
    return {"documents": documents, "tokens": tokens, "table_bytes": size, "digest": digest_of(path), "shards": shards}


def digest_of(path: Path) -> str:
    """Return a digest of a table, which holds the checksums of all documents of its split."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()[:16]


def write_index(folder: str | Path, modalities: dict[str, dict], splits: dict[str, dict]) -> None:
    """Write the index of a prepared folder: the modalities' records, and those of the splits (`split_record`)."""
    index = {"schema_version": SHARD_SCHEMA_VERSION, "modalities": modalities, "splits": splits}
    write_json(Path(folder) / INDEX_NAME, index)


def read_index(folder: str | Path) -> dict:
    """Read and check the index of a prepared folder. Raises DataError."""
    path = Path(folder) / INDEX_NAME
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        version = index["schema_version"]
        if version == SHARD_SCHEMA_VERSION:
            _check_index(index)
    except FileNotFoundError:
        writer = writer_of(folder)
        if writer:
            raise DataError(
                f"data: {str(folder)!r} is still being prepared by {writer}; wait for it to finish"
            ) from None
        message = f"data: there is no {str(path)!r}, run `plait prepare` (it resumes an interrupted one)"
        raise DataError(message) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"data: {str(path)!r} is not an index of prepared data, run `plait prepare`") from None
    if version != SHARD_SCHEMA_VERSION:
        allowed = f"this plait reads {SHARD_SCHEMA_VERSION}"
        raise DataError(f"data: {str(path)!r} has schema_version {version!r}, {allowed}; prepare the data again")
    return index


def _check_index(index: dict) -> None:
    """Raise a ValueError or a KeyError where the index does not have the form that is written here."""

    def need(condition: bool) -> None:
        if not condition:
            raise ValueError

    def count(value: Any) -> int:
        need(type(value) is int and value >= 0)
        return value

    for record in index["modalities"].values():
        need(all(isinstance(record[name], str) for name in ("codec", "key", "fingerprint")))
        count(record["vocab_size"]), count(record["latent_channels"])
        need(record.get("reads", "") in ("", *index["modalities"]))
    for split in index["splits"].values():
        count(split["table_bytes"])
        for shard in split["shards"]:
            name = shard["file"]
            need(not name.startswith("/") and ".." not in name.split("/"))  # it stays in its folder
            count(shard["bytes"])
        need(count(split["documents"]) == sum(count(shard["documents"]) for shard in split["shards"]))


class ShardSource:
    """The encoded documents of one split of a prepared folder, by number.

    Opening reads the index and no document; ids and latents stay on disk until a document is asked for.
    """

    names: list[str]
    """The folder's modalities, in the order that the table counts."""

    def __init__(self, folder: str | Path, split: str, index: dict | None = None):
        self.folder = str(folder)
        self.split = split
        self.index = read_index(folder) if index is None else index
        if split not in self.index["splits"]:
            raise DataError(unknown(f"split of {str(folder)!r}", split, self.index["splits"]))
        record, modalities = self.index["splits"][split], self.index["modalities"]
        self.names = list(modalities)
        self._stores = [f"latents.{n}" if m["latent_channels"] else "ids" for n, m in modalities.items()]
        self._is_features = np.array([bool(m.get("reads")) for m in modalities.values()])
        self._forms = _forms(modalities)
        self._entries = record["shards"]
        self._first_document = list(itertools.accumulate((e["documents"] for e in self._entries), initial=0))
        self._table = SplitTable(
            Path(folder) / table_name(split), record["table_bytes"], record["documents"], len(self.names)
        )
        self._open: OrderedDict[int, ArrayFile] = OrderedDict()
        self._meta: tuple[int, bytes, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._table)

    def parts(self, documents: np.ndarray | Sequence[int]) -> PartTable:
        """Return the records of the parts of documents [n], without their contents."""
        return self._stored(documents).folded(self._is_features)

    def _stored(self, documents: np.ndarray | Sequence[int]) -> PartTable:
        """Return the records of all that is stored of documents [n], features by themselves."""
        documents = np.asarray(documents, np.int64)
        if len(documents) and not 0 <= documents.min() <= documents.max() < len(self):
            raise IndexError(f"documents {documents.min()} to {documents.max()} of {len(self)}")
        return self._table.look_up(documents)

    def document(self, i: int, *, meta: bool = True) -> Document:
        """Return document ``i`` with its parts as written; its arrays cannot be written to."""
        return self.documents([i], meta=meta)[0]

    def documents(self, numbers: np.ndarray | Sequence[int], *, meta: bool = True) -> list[Document]:
        """Return several documents with their parts as written, in the order asked for."""
        table, documents = self._stored(numbers), []
        starts, checksums = table.starts.tolist(), table.contents_crc.tolist()
        columns = (table.modality, table.length, table.place, table.grid, table.loss)
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        for k, i in enumerate(np.asarray(numbers).tolist()):
            shard, _ = self._locate(i)
            file, parts, crc = self._file(shard), [], 0
            for modality, length, start, grid, loss in rows[starts[k] : starts[k + 1]]:
                store = self._stores[modality]
                values = file.read(store, start, length)
                crc = zlib.crc32(values.data, crc)
                field = "ids" if store == "ids" else "latents"
                extent, role = tuple(n for n in grid if n), role_of(given=False, loss=loss)
                part = Part(self.names[modality], grid=extent, role=role, loss=float(loss), **{field: values})
                if self._is_features[modality] and parts:
                    parts[-1].features = part
                else:
                    parts.append(part)
            if crc != checksums[k]:
                raise file.broken(f"is corrupt (checksum mismatch in document {i})")
            documents.append(Document(parts, index=i, meta=self.meta(i) if meta else {}))
        return documents

    def meta(self, i: int) -> dict:
        """Return what is known of document ``i``."""
        shard, local = self._locate(i)
        loaded = self._meta
        if loaded is None or loaded[0] != shard:
            loaded = self._meta = (shard, *self._read_meta(shard))
        _, text, starts = loaded
        try:
            return json.loads(text[starts[local] : starts[local + 1]])
        except (ValueError, RecursionError):
            path = str(meta_path(Path(self.folder) / self._entries[shard]["file"]))
            raise DataError(f"data: line {local + 1} of {path!r} is corrupt, prepare the data again") from None

    def _locate(self, i: int) -> tuple[int, int]:
        shard = bisect_right(self._first_document, i) - 1
        return shard, i - self._first_document[shard]

    def _file(self, shard: int) -> ArrayFile:
        file = self._open.get(shard)
        if file is None:
            entry = self._entries[shard]
            file = ArrayFile(f"{self.folder}/{entry['file']}", entry["bytes"])
            if any((file.dtype(name), file.shape(name)[1:]) != form for name, form in self._forms.items()):
                raise file.broken("does not hold what the index says")
            self._open[shard] = file
            while len(self._open) > _OPEN_SHARDS:
                try:
                    self._open.popitem(last=False)  # closed once no other thread reads from it
                except KeyError:
                    break
        return file

    def _read_meta(self, shard: int) -> tuple[bytes, np.ndarray]:
        path = meta_path(Path(self.folder) / self._entries[shard]["file"])
        try:
            text = path.read_bytes()
        except OSError as error:
            raise DataError(f"data: {str(path)!r} cannot be read ({error.strerror}), prepare again") from None
        ends = np.flatnonzero(np.frombuffer(text or b" ", np.uint8) == 10) + 1
        if len(ends) != self._entries[shard]["documents"]:
            wanted = self._entries[shard]["documents"]
            raise DataError(f"data: {str(path)!r} has {len(ends)} lines, not {wanted}, prepare again")
        return text, np.concatenate([[0], ends])
