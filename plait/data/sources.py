"""From prepared folders to documents with a task: which parts are given, and which one is predicted."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.batch.documents import Document, Part, role_of
from plait.common.errors import ConfigError, DataError, require, unknown
from plait.common.files import read_json
from plait.common.randomness import uniforms
from plait.config.modality import ModalityConfig
from plait.config.model import ModelConfig
from plait.config.run import RunConfig, SourceConfig
from plait.config.tasks import AS_WRITTEN_TASK, lacking, mentions_of
from plait.data.document_table import PartTable
from plait.data.packing import EDGES, PartSize
from plait.data.shards import SETTINGS_NAME, ShardSource, digest_of, read_index, table_name

AS_WRITTEN = -1
"""The task of documents whose parts stay as written."""

MEAN_OVER = 4096
"""Documents over which a mean length is taken at most."""

ALL_GIVEN, HOST_GIVEN = 1, 2
"""What a draw may drop of the given parts: all of them, or those of the host modality. 0 is nothing."""


def folders(config: RunConfig) -> dict[str, SourceConfig]:
    """Return the prepared folders of a run, with their weights and what happens when they are exhausted."""
    named = config.data.sources or {config.data.path: 1.0}
    return {folder: s if isinstance(s, SourceConfig) else SourceConfig(s) for folder, s in named.items()}


def data_seed(config: RunConfig) -> int:
    """Return the seed that the run's data were prepared with: a run may have another one of its own."""
    path = Path(config.data.path) / SETTINGS_NAME
    return read_json(path, "prepared data").get("seed", config.seed) if path.exists() else config.seed


def validation_splits(config: RunConfig) -> list[str]:
    """Return the names of the splits that are not trained on and have documents, in the order they were prepared."""
    splits: dict[str, None] = {}
    for folder in folders(config):
        splits |= {s: None for s, record in read_index(folder)["splits"].items() if record["documents"]}
    return [s for s in splits if s != "train"]


def open_sources(config: RunConfig, split: str) -> list[ShardSource]:
    """Open one split of every prepared folder that has it; all must be encoded by the same codecs."""
    indexes = {folder: read_index(folder) for folder in folders(config)}
    known: dict[str, tuple[str, str]] = {}
    for folder, index in indexes.items():
        for name, record in index["modalities"].items():
            first, fingerprint = known.setdefault(name, (folder, record["fingerprint"]))
            if record["fingerprint"] != fingerprint:
                raise DataError(
                    f"data.sources: {folder!r} encodes {name} by another codec than {first!r}, "
                    "prepare one with prepare.codecs_from set to the other"
                )
        for name, reader in config.model.readers.items():
            if name in index["modalities"] and reader not in index["modalities"]:
                raise DataError(f"data: {folder!r} has {name} without {reader}, which reads it; prepare it again")
    opened = [ShardSource(f, split, index) for f, index in indexes.items() if split in index["splits"]]
    if not opened:
        splits = {s for index in indexes.values() for s in index["splits"]}
        raise DataError(unknown("split of the prepared data", split, splits))
    return opened


def codec_records(config: RunConfig) -> dict[str, tuple[str, dict]]:
    """Return for each modality of a run's data the first folder that has its codec, and what the index says of it."""
    records: dict[str, tuple[str, dict]] = {}
    for folder in folders(config):
        for name, record in read_index(folder)["modalities"].items():
            records.setdefault(name, (folder, record))
    return records


def codec_fingerprints(config: RunConfig) -> dict[str, str]:
    """Return what tells the codec of each of the model's modalities from any other, where the data have one."""
    known = config.model.modalities
    return {name: record["fingerprint"] for name, (_, record) in codec_records(config).items() if name in known}


def documents_digest(source: ShardSource) -> str:
    """Return a digest of every document of a source: the index has it, but for folders of an earlier plait."""
    known = source.index["splits"][source.split].get("digest")
    return known or digest_of(Path(source.folder) / table_name(source.split))


def data_fingerprint(config: RunConfig) -> str:
    """Return a digest of all that a run can read: its folders' codecs, and the checksums of every document."""
    digest = hashlib.sha256()
    for folder in folders(config):
        index = read_index(folder)
        for name, record in index["modalities"].items():
            digest.update(f"{name} {record['fingerprint']}\n".encode())
        for split in index["splits"]:
            digest.update(f"{split}\n".encode())
            with open(Path(folder) / table_name(split), "rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
    return digest.hexdigest()[:16]


def resolve_vocabulary(config: RunConfig, index: dict | None = None) -> RunConfig:
    """Return the config with every modality's vocabulary and latent channels filled in from the prepared data.

    ``index`` is what `read_index` returned; None reads those of the run's folders. A vocabulary larger than the
    codec's is kept (room to grow). Raises ConfigError where it is smaller, or the codec is another one.
    """
    if index is None:
        indexes = [read_index(folder) for folder in folders(config)]
        index = {"modalities": {name: m for i in reversed(indexes) for name, m in i["modalities"].items()}}
    modalities = {}
    for name, modality in config.model.modalities.items():
        where, record = f"model.modalities.{name}", index["modalities"].get(name)
        if record is None:
            if not (modality.vocab_size or modality.latent_channels):
                raise ConfigError(f"{where}: the prepared data has no {name!r}, only {', '.join(index['modalities'])}")
            modalities[name] = modality  # its size is known without data
            continue
        _check_reading(modality, record, where)
        codec = config.modalities[name].codec
        if codec and codec != record["codec"]:
            raise ConfigError(f"{where}.codec: {codec!r}, but the data was prepared with {record['codec']!r}")
        if modality.objective == "next_token":
            sizes = {"vocab_size": _size(modality, "vocab_size", record, where, exact=False)}
        else:
            record = {"patch_size": 1} | record
            sizes = {n: _size(modality, n, record, where, exact=True) for n in ("latent_channels", "patch_size")}
        modalities[name] = dataclasses.replace(modality, **sizes)
    host = index["modalities"].get(next(iter(modalities)), {})
    model = dataclasses.replace(config.model, modalities=modalities, **unset_ends(config.model, host.get("ends", {})))
    return dataclasses.replace(config, model=model)


def unset_ends(model: ModelConfig, ends: dict[str, Any]) -> dict[str, Any]:
    """Return bos, eos and stops of the first modality's codec, as far as a model's config leaves them unset."""
    own = {"bos": "added", "eos": "added", "stops": ()} | ends
    return {name: own[name] for name in own if getattr(model, name) in (None, ())}


def _check_reading(modality: ModalityConfig, record: dict, where: str) -> None:
    """Raise a ConfigError where the data were prepared with other features, or with a codec that cannot make a part."""
    read, now = record.get("reads", ""), modality.reads
    require(read == now, f"{where}.reads", now, f"{read!r}, with which the data was prepared, or prepare it again")
    cannot_make = record.get("reads_only", False)
    require(not cannot_make or modality.objective == "input", f"{where}.objective", modality.objective,
            f"input: codec {record.get('codec')!r} only reads")  # fmt: skip


def _size(modality: ModalityConfig, field: str, record: dict, where: str, *, exact: bool) -> int:
    configured, needed = getattr(modality, field), record[field]
    if not needed:
        kind = "ids" if field == "vocab_size" else "latents"
        raise ConfigError(
            f"{where}.objective: {modality.objective!r} needs {kind}, which codec {record['codec']!r} does not make"
        )
    if configured and (configured < needed or (exact and configured != needed)):
        allowed = f"{'' if exact else 'at least '}{needed} (codec {record['codec']!r}), or 0 to take that"
        raise ConfigError(f"{where}.{field}: {configured} is not allowed, it must be {allowed}")
    return configured or needed


@dataclass
class Draw:
    """What was drawn for some documents: n of them."""

    task: np.ndarray
    """[n] place among the tasks, or AS_WRITTEN."""
    dropped: np.ndarray
    """[n] int8: 0, ALL_GIVEN or HOST_GIVEN."""
    lengths: np.ndarray
    """[n] tokens, <bos>, <eos>, delimiters and clean copies included; 2 where no part is left."""


class TaskSource:
    """A source whose documents have a task drawn for each epoch.

    A task such as ``text,image`` orders the parts by modality: the k-th mention of a modality takes its k-th part, the
    last mention all that are left; parts of modalities not mentioned are no part of the task. ``image,text without
    speech`` is served by documents that have no speech. Documents that cannot serve any task stay as written. The last
    mention is predicted, those before it are given; at rate ``drop_condition`` all given parts are dropped, at rate
    ``drop_host`` only those of the host modality, where others are given with them. Without ``given_loss`` what is
    given carries no loss. A draw depends on (seed, source, document, epoch) alone, and is made when it is asked for.
    """

    def __init__(
        self,
        source: ShardSource,
        model: ModelConfig,
        tasks: dict[str, float],
        *,
        drop_condition: float = 0.0,
        drop_host: float = 0.0,
        seed: int = 0,
        number: int = 0,
        given_loss: bool = True,
    ):
        self.source, self.given_loss = source, given_loss
        self.tasks = [mentions_of(task) for task in tasks if task != AS_WRITTEN_TASK]
        self.lacking = [lacking(task) for task in tasks if task != AS_WRITTEN_TASK]
        self.weights = np.array([weight for task, weight in tasks.items() if task != AS_WRITTEN_TASK], float)
        self.weight_as_written = tasks.get(AS_WRITTEN_TASK, 0.0)
        self.drop_condition, self.drop_host = drop_condition, drop_host
        self.model = model
        self.seed = seed
        self.number = number
        self.host = model.layout.host
        self._places = {name: i for i, name in enumerate(source.names)}
        # by modality of the source
        self._used = np.array([name in model.modalities for name in source.names])
        self._wrapped = np.array([0 if name == self.host else 2 for name in source.names])
        readers = [model.readers.get(name) for name in source.names]
        self._read = np.array([reader is not None for reader in readers])
        self._beside = np.array([reader is None or model.modalities[reader].beside for reader in readers])
        records = [model.modalities.get(name) for name in source.names]
        self._copied = np.array(
            [r is not None and r.objective == "diffusion" and r.later_sees == "clean_copy" for r in records]
        )

    def __len__(self) -> int:
        return len(self.source)

    def draw(self, documents: np.ndarray, epoch: np.ndarray | int = 0) -> Draw:
        """Draw the tasks of documents [n] for their epochs ([n], or one for all)."""
        table = self.source.parts(documents)
        uniform = self._uniforms("task", documents, epoch)
        task = np.full(len(documents), AS_WRITTEN, np.int16)
        kinds, kind = np.unique(self.eligible(table), return_inverse=True)
        for k, bits in enumerate(kinds):
            eligible = [t for t in range(len(self.tasks)) if bits >> t & 1 and self.weights[t] > 0]
            if eligible:
                weights = self.weights[eligible].tolist()
                if self.weight_as_written > 0:
                    eligible, weights = [*eligible, AS_WRITTEN], [*weights, self.weight_as_written]
                edges = np.cumsum(weights)
                of_kind = np.flatnonzero(kind == k)
                chosen = np.searchsorted(edges, uniform[of_kind] * edges[-1], side="right")
                task[of_kind] = np.array(eligible)[np.minimum(chosen, len(eligible) - 1)]
        drop = self._uniforms("drop condition", documents, epoch)
        # one number decides both, so that they exclude each other; the last entry stands for AS_WRITTEN
        several = np.array([len(t) > 1 for t in self.tasks] + [False])
        others = np.array([len({self.host, *t[:-1]}) > 1 and self.host in t[:-1] for t in self.tasks] + [False])
        dropped, below = np.zeros(len(documents), np.int8), drop < self.drop_condition
        dropped[below & several[task]] = ALL_GIVEN
        dropped[~below & (drop < self.drop_condition + self.drop_host) & others[task]] = HOST_GIVEN
        return Draw(task, dropped, self._lengths(table, task, dropped))

    def mean_length(self, limit: int = 0) -> float:
        """Return the tokens of a document on average, each counted as ``limit`` at most where that is above 0.

        All documents are counted where they are few, else some, spread evenly: the same ones every time.
        """
        size = min(len(self), MEAN_OVER)
        lengths = self.draw(np.arange(size) * len(self) // size).lengths
        return float((np.minimum(lengths, limit) if limit else lengths).mean())

    def _uniforms(self, purpose: str, documents: np.ndarray, epoch: np.ndarray | int) -> np.ndarray:
        return uniforms(self.seed, purpose, item=documents, stream=self.number, epoch=epoch)

    def choose(self, names: Sequence[str], task: int, dropped: int) -> list[tuple[int, bool]]:
        """Return the chosen ones of parts of modalities ``names``, in order, as (place, whether it is given)."""
        places = [p for p, name in enumerate(names) if name in self._places and self._used[self._places[name]]]
        if task == AS_WRITTEN:
            return [(p, False) for p in places]
        by_name: dict[str, list[int]] = {name: [] for name in self.tasks[task]}
        for p in places:
            if names[p] in by_name:
                by_name[names[p]].append(p)
        chosen = []
        mentions = self.tasks[task]
        for k, name in enumerate(mentions):
            take = 1 if name in mentions[k + 1 :] else len(by_name[name])
            taken, by_name[name] = by_name[name][:take], by_name[name][take:]
            if self._keeps(mentions, k, dropped):
                chosen += [(p, k < len(mentions) - 1) for p in taken]
        return chosen

    def _keeps(self, mentions: list[str], k: int, dropped: int) -> bool:
        """Say whether the k-th mention of a task is there with ``dropped`` of the given ones left out."""
        is_given = k < len(mentions) - 1
        return not (is_given and (dropped == ALL_GIVEN or (dropped == HOST_GIVEN and mentions[k] == self.host)))

    def sizes(self, i: int, task: int, dropped: int) -> list[PartSize]:
        """Return what cutting has to know of the chosen parts of document ``i``.

        A part that gets a clean copy is kept whole, and its copy counts as delimiters do; the last part has none. So is
        a given part that is read as features, and what these take more than it does counts as delimiters.
        """
        table = self.source.parts([i])
        chosen = self.choose([self.source.names[m] for m in table.modality], task, dropped)
        grids = (table.grid > 0).sum(1)
        sizes = []
        for k, (p, is_given) in enumerate(chosen):
            modality, length = table.modality[p], int(table.length[p])
            role = role_of(given=is_given, loss=float(table.loss[p]))
            copied = bool(self._copied[modality]) and role == "generation" and k < len(chosen) - 1
            copy, delimiters, read = (length if copied else 0), int(self._wrapped[modality]), False
            if self._read[modality] and role == "understanding":
                own = (length + delimiters) * int(self._beside[modality])
                delimiters, read = own + int(table.features[p]) + 2 - length, True
            sizes.append(PartSize(length, delimiters + copy, copied or read or bool(grids[p] > 1), copy))
        return sizes

    @staticmethod
    def piece_length(piece: Sequence[tuple[int, int, int]], sizes: Sequence[PartSize]) -> int:
        """Return the tokens of a document cut out as ``piece``, whose last part has no copy."""
        last = len(piece) - 1
        extra = [sizes[p].delimiters - sizes[p].copy * (k == last) for k, (p, _, _) in enumerate(piece)]
        return EDGES + sum(extra) + sum(stop - start for _, start, stop in piece)

    def document(self, i: int, task: int, dropped: int) -> Document:
        """Return document ``i`` for a task."""
        return self.arrange(self.source.document(i, meta=False), task, dropped)

    def arrange(
        self, written: Document, task: int, dropped: int, piece: Sequence[tuple[int, int, int]] | None = None
    ) -> Document:
        """Return a document for a task; ``piece`` holds (chosen part, start, stop) where it is cut."""
        chosen = self.choose([p.modality for p in written.parts], task, dropped)
        parts = [self._as_given(written.parts[p]) if is_given else written.parts[p] for p, is_given in chosen]
        if piece is not None:
            parts = [_slice(parts[k], start, stop) for k, start, stop in piece]
        names = dict.fromkeys(p.modality for p in parts) if task != AS_WRITTEN else [p.modality for p in parts]
        if task != AS_WRITTEN and piece is None:
            mentions = self.tasks[task]
            names = [name for k, name in enumerate(mentions) if self._keeps(mentions, k, dropped)]
        return Document(parts, index=written.index, task=">".join(names), meta=written.meta)

    def _as_given(self, part: Part) -> Part:
        loss = part.loss if self.given_loss else 0.0
        return dataclasses.replace(part, role=role_of(given=True, loss=loss), loss=loss)

    def serves(self, documents: np.ndarray) -> np.ndarray:
        """Say for each document [n] and task [tasks, as_written left out] whether it has the task's parts."""
        bits = self.eligible(self.source.parts(documents))
        return (bits[:, None] >> np.arange(len(self.tasks)) & 1).astype(bool)

    def eligible(self, table: PartTable) -> np.ndarray:
        """Return for each document [n] the bits of the tasks that it has the parts for."""
        have = {
            name: table.sum(table.modality == self._places.get(name, -1))
            for name in {n for t in (*self.tasks, *self.lacking) for n in t}
        }
        bits = np.zeros(len(table.starts) - 1, np.int64)
        for t, mentions in enumerate(self.tasks):
            fits = np.ones(len(bits), bool)
            for name in set(mentions):
                fits &= have[name] >= mentions.count(name)
            for name in self.lacking[t]:
                fits &= have[name] == 0
            bits |= fits.astype(np.int64) << t
        return bits

    def _lengths(self, table: PartTable, task: np.ndarray, dropped: np.ndarray) -> np.ndarray:
        part_task, part_dropped = np.repeat(task, table.counts), np.repeat(dropped, table.counts)
        is_host = table.modality == self._places.get(self.host, -1)
        drops = (part_dropped == ALL_GIVEN) | ((part_dropped == HOST_GIVEN) & is_host)
        used = self._used[table.modality]
        keep, generated = used.copy(), used & (part_task == AS_WRITTEN)
        for t, mentions in enumerate(self.tasks):
            in_task = part_task == t
            named = np.isin(table.modality, [self._places[m] for m in mentions if m in self._places])
            is_last = table.modality == self._places.get(mentions[-1], -1)
            predicted = in_task & is_last & (table.rank(is_last) >= mentions.count(mentions[-1]) - 1)
            keep &= ~in_task | (named & (predicted | ~drops))
            generated |= predicted
        # noised parts that later ones see as a clean copy stand there twice, but for a document's last part
        last = table.rank(generated) == np.repeat(table.sum(generated), table.counts) - 1
        copied = generated & (table.loss > 0) & ~last & self._copied[table.modality]
        tokens = table.length.astype(np.int64) * (1 + copied) + self._wrapped[table.modality]
        # features stand in the place of given parts that are read, or behind them
        read = self._read[table.modality] & ~(generated & (table.loss > 0))
        tokens = np.where(read, tokens * self._beside[table.modality] + table.features + 2, tokens)
        return EDGES + table.sum(np.where(keep, tokens, 0))


def _slice(part: Part, start: int, stop: int) -> Part:
    if start == 0 and stop == len(part):
        return part
    values = part.ids if part.ids is not None else part.latents
    field = "ids" if part.ids is not None else "latents"
    grid = (stop - start,) if len(part.grid) == 1 else ()
    return dataclasses.replace(part, grid=grid, **{field: values[start:stop]})
