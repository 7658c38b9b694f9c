"""Where torch.distributed.checkpoint puts its tensors: safetensors files that anything can read, and no pickle.

torch's planner decides which rank writes which piece of which tensor, and which pieces a rank needs to fill its own;
here pieces become bytes and back. A tensor's key is ``group/name``: each group has its own files, in which tensors
have their plain names, so that on one rank ``model.safetensors`` is a saved model. torch's own safetensors storage
holds each rank's bytes twice in memory, has no checksums, and writes no index of pieces (torch 2.13).
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from plait.common.files import clear_disk_errors, write_json
from plait.common.tensor_files import Cut, Piece, Stored, TensorStore, index_path, make_index, part_name, write_tensors


@dataclasses.dataclass(frozen=True)
class Written:
    """A file that a rank wrote."""

    file: str
    checksum: int
    num_bytes: int


class SafetensorsWriter(StorageWriter):
    """Writes one checkpoint into ``temporary``; the first rank then calls ``finish`` with the files of all ranks.

    A failure of any rank, there or here, is one of all ranks.
    """

    def __init__(self, temporary: Path, finish: Callable[[list[Written]], None]):
        self.temporary, self._finish = temporary, finish

    def reset(self, checkpoint_id=None) -> None:
        """Nothing is kept between checkpoints: each has its own writer."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Take the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the folder, on the first rank before any rank writes, and number the ranks."""
        with clear_disk_errors(self.temporary):
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary.mkdir(parents=True)
        return [dataclasses.replace(plan, storage_data=(i, len(plans))) for i, plan in enumerate(plans, start=1)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's pieces, one file a group."""
        groups: dict[str, dict[str, WriteItem]] = {}
        for item in plan.items:
            group, _, name = item.index.fqn.partition("/")
            if torch.Size(item.tensor_data.chunk.sizes).numel() or not item.tensor_data.size.numel():
                groups.setdefault(group, {})[name] = item
        results = []
        for group, items in groups.items():
            path = self.temporary / part_name(group, *plan.storage_data)
            stored = {
                n: Stored(i.tensor_data.properties.dtype, tuple(i.tensor_data.chunk.sizes)) for n, i in items.items()
            }
            with clear_disk_errors(path):
                checksum = write_tensors(path, stored, lambda name, items=items: planner.resolve_data(items[name]))
                written = Written(path.name, checksum, path.stat().st_size)
            for name, item in items.items():
                results.append(WriteResult(item.index, stored[name].num_bytes, (written, stored[name].shape)))
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index of each group that lies in several files, and let the checkpoint be completed."""
        flat = [result for of_rank in results for result in of_rank]
        groups: dict[str, dict[str, list[Piece]]] = {}
        for result in flat:
            group, _, name = result.index.fqn.partition("/")
            written, shape = result.storage_data
            piece = Piece(written.file, tuple(result.index.offset), shape)
            groups.setdefault(group, {}).setdefault(name, []).append(piece)
        with clear_disk_errors(self.temporary):
            for group, pieces_by_name in groups.items():
                cuts = {}
                for name, pieces in pieces_by_name.items():
                    record = metadata.state_dict_metadata[f"{group}/{name}"]
                    cuts[name] = Cut(record.properties.dtype, tuple(record.size), tuple(pieces))
                if len(results) > 1:
                    write_json(index_path(self.temporary / part_name(group, 1, 1)), make_index(cuts))
            self._finish(sorted({result.storage_data[0] for result in flat}, key=lambda w: w.file))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id) -> bool:
        """Say whether a name can be a checkpoint's; torch asks where it has to choose a storage itself."""
        return isinstance(checkpoint_id, str | Path)


class SafetensorsReader(StorageReader):
    """Reads from stores by group; of each file only what this rank needs."""

    def __init__(self, stores: dict[str, TensorStore]):
        self._stores = stores
        self._pieces: dict[MetadataIndex, tuple[TensorStore, str, Piece]] = {}

    def reset(self, checkpoint_id=None) -> None:
        """Nothing is kept: each checkpoint has its own reader."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return every tensor's type, shape and pieces."""
        records = {}
        for group, store in self._stores.items():
            for name, cut in store.tensors.items():
                key = f"{group}/{name}"
                chunks = [ChunkStorageMetadata(torch.Size(p.start), torch.Size(p.shape)) for p in cut.pieces]
                records[key] = TensorStorageMetadata(TensorProperties(dtype=cut.dtype), torch.Size(cut.shape), chunks)
                for piece in cut.pieces:
                    self._pieces[MetadataIndex(key, torch.Size(piece.start))] = (store, name, piece)
        return Metadata(state_dict_metadata=records)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Take the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Take the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill this rank's tensors."""
        for item in plan.items:
            store, name, piece = self._pieces[item.storage_index]
            values = store.read_piece(name, piece, item.storage_offsets, item.lengths)
            target = planner.resolve_tensor(item).detach()
            target.copy_(values)
            planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id) -> bool:
        """Say whether a name can be a checkpoint's; torch asks where it has to choose a storage itself."""
        return isinstance(checkpoint_id, str | Path)
