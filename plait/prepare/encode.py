"""The worker processes of `plait prepare`: they read raw documents, and encode them to shards.

What a job does depends on its arguments alone, so results do not depend on how many workers there are. Workers start
fresh (never as a copy of a process that has used threads or a GPU), ignore Ctrl-C, and end when they are told to stop
or when their parent is gone.
"""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plait.batch.documents import Document, Part
from plait.codecs import ALLOWED, CODECS, Codec, Encoded, Media, codec_class, load_codec
from plait.codecs.chat import chat_of
from plait.common.cores import num_cores
from plait.common.errors import ConfigError, DataError, ResourceError, require
from plait.common.files import atomic_folder, clear_disk_errors, write_json
from plait.common.progress import Bar
from plait.config.run_records import ModalitySettings
from plait.data.document_table import MAX_GRID_AXES, save_table
from plait.data.shards import codec_folder, shard_name, write_shard
from plait.prepare.account import ShardAccount
from plait.prepare.formats import open_rows
from plait.prepare.manifest import ManifestSource, known_keys
from plait.prepare.raw import ROWS_AT_ONCE, BrokenRow, RawDocument, RawSource
from plait.prepare.raw_sources import Setup, open_source
from plait.prepare.remote import reason_of
from plait.prepare.row_index import scan

_GRACE_SECONDS = 2.0  # for what is under way when everything is stopped


def work_file(folder: Path, split: str, number: int) -> Path:
    """Return the note that a shard is done; it goes once everything is."""
    return folder / "work" / f"{split}-{number:05d}.json"


def table_file(folder: Path, split: str, number: int) -> Path:
    """Return where a shard's table waits until those of all shards are joined."""
    return folder / "work" / f"{split}-{number:05d}.table"


def build_codecs(modalities: dict[str, ModalitySettings], reads: Mapping[str, str] | None = None) -> dict[str, Codec]:
    """Build unfitted codecs from their settings. Raises ConfigError where two would read the same parts.

    ``reads`` names the modalities that read another one's parts beside that one's own codec.
    """
    codecs: dict[str, Codec] = {}
    reads = reads or {}
    for name, settings in modalities.items():
        where = f"model.modalities.{name}"
        if not settings.codec:
            raise ConfigError(f"{where}.codec: '' is not allowed, prepare needs one of {', '.join(sorted(CODECS))}")
        codec = codecs[name] = codec_class(settings.codec).from_options(
            settings.codec_options, f"{where}.codec_options"
        )
        codec.key = settings.key or codec.kind
        require(codec.key != "loss", f"{where}.key", codec.key, "another word: loss says whether a part is a target")
        for other in list(codecs)[:-1]:
            if codecs[other].key == codec.key and name not in reads and other not in reads:
                raise ConfigError(
                    f"{where}.codec: {settings.codec!r} reads the parts {codec.key!r}, which model.modalities.{other} "
                    f"reads already; each modality needs its own: set {where}.key, such as key: {name}"
                )
    tie(codecs, reads)
    return codecs


def tie(codecs: dict[str, Codec], reads: Mapping[str, str]) -> None:
    """Let codecs read the parts of other modalities. Raises ConfigError where these are of another kind."""
    for name, read in reads.items():
        if name in codecs and read in codecs:
            codec, other = codecs[name], codecs[read]
            require(codec.kind == other.kind, f"model.modalities.{name}.codec", codec.name,
                    f"one that reads the kind of {read!r} ({other.kind}); this one reads {codec.kind}")  # fmt: skip
            codec.reads, codec.key = read, other.key


class Workers:
    """The worker processes, as a context; they start when there is work and stay until the end."""

    def __init__(self, setup: Setup):
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            context.set_forkserver_preload(["plait.prepare.encode"])
        self._queue, self._stop = context.SimpleQueue(), context.Event()
        count = setup.prepare.num_workers or num_cores()
        arguments = (setup, self._queue, self._stop)
        self._pool = ProcessPoolExecutor(count, context, initializer=_start_worker, initargs=arguments)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()  # so that what is under way is not waited for long
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, function: Callable, jobs: Sequence[tuple], bar: Bar, check: Callable | None = None) -> list:
        """Call ``function(*job)`` for every job; return the results in the order of the jobs.

        ``check(job, result)`` is called as soon as a job is done; if it raises, the other jobs are given up.
        """
        try:
            futures = {self._pool.submit(function, *job): job for job in jobs}
            pending = set(futures)
            while pending:
                done, pending = wait(pending, timeout=0.2)
                while not self._queue.empty():
                    bar.advance(*self._queue.get())
                for future in done:
                    result = future.result()
                    if check:
                        check(futures[future], result)
        except BrokenProcessPool:
            message = "prepare: a worker process died (out of memory?); set prepare.num_workers lower"
            raise ResourceError(message) from None
        return [future.result() for future in futures]


def scan_file(number: int) -> dict[str, int]:
    """Job: find the rows of one of the manifests' files; return how many each split has."""
    file, options = _worker.setup.files[number], _worker.setup.prepare
    keys = known_keys(_worker.codecs)
    rows = open_rows(file, options.columns, keys, chat_of(_worker.codecs))

    def advance(count: int) -> None:
        if _worker.stop.is_set():
            raise _Stopped
        _advance(0, f"{file.rsplit('/', 1)[-1]}: {count:,} rows")

    folder = _worker.setup.folder / "work" / "rows"
    counts = scan(rows, folder, number, options.validation_share, advance, keys)
    _advance(1)
    return counts


def make_codec(name: str, blocks: list[tuple[str, int, int]], num_threads: int) -> list[BrokenRow]:
    """Job: train a modality's codec on the blocks' media and save it; return the rows that are broken.

    Codecs are trained beside each other, each with its own share of the cores: small networks gain little from more.
    """
    import torch

    codec, known = build_codecs({name: _worker.setup.modalities[name]})[name], _worker.codecs[name]
    codec.key, codec.reads = known.key, known.reads
    media, broken = _read_media(blocks, name, codec)
    broken_share = len(broken) / max(sum(stop - start for _, start, stop in blocks), 1)
    if media and broken_share <= _worker.setup.prepare.max_broken_share:
        torch.set_num_threads(num_threads)
        scratch = _worker.setup.folder / "work" / f"fit-{name}"
        scratch.mkdir(parents=True, exist_ok=True)
        with clear_disk_errors(scratch):
            codec.fit(media, minutes=_worker.setup.prepare.codec_minutes, seed=_worker.setup.seed, folder=scratch,
                      progress=lambda share, text: _report_share(name, share, text))  # fmt: skip
        torch.set_num_threads(1)
        save_codec(codec, codec_folder(_worker.setup.folder, name))
    return broken


def _report_share(name: str, share: float, text: str) -> None:
    if _worker.stop.is_set():
        raise _Stopped
    _worker.queue.put((share, f"{name}: {text}"))


def _read_media(blocks: list[tuple[str, int, int]], name: str, codec: Codec) -> tuple[list, list[BrokenRow]]:
    """Return the raw media of a modality in rows [start, stop) of splits, and the rows that are broken."""
    media, broken = [], []
    for split, start, stop in blocks:
        if _worker.stop.is_set():
            raise _Stopped
        for row in _worker.source_for([codec.key]).read(split, start, stop):
            if isinstance(row, BrokenRow):
                broken.append(row)
            else:
                media += [item for _, item in _items_of(row, name, codec)]
    return media, broken


def _items_of(row: RawDocument, name: str, codec: Codec) -> list[tuple[int, Media]]:
    """Return the items of a row that a modality's codec reads, with their places."""

    def item(p: int) -> Media:
        if not codec.reads:
            return row.parts[p][1]
        if (p, name) in row.also:
            return row.also[p, name]
        return codec.taken_from(row.parts[p][1], _worker.codecs[codec.reads])

    return [(p, item(p)) for p, (key, _) in enumerate(row.parts) if key == codec.key]


def save_codec(codec: Codec, folder: Path) -> None:
    """Save a codec, whole or not at all."""
    with atomic_folder(folder) as temporary:
        codec.save_pretrained(temporary)


def encode_shard(split: str, number: int, start: int, stop: int, records: dict[str, dict]) -> None:
    """Job: encode rows [start, stop) of a split to one shard, then note that it is done and which rows are broken.

    ``records`` are the modalities' records of the index; their codecs lie in the folder.
    """
    _worker.load_codecs()
    documents: list[Document] = []
    broken: list[BrokenRow] = []
    account, keys = ShardAccount(), [codec.key for codec in _worker.codecs.values()]
    for at in range(start, stop, ROWS_AT_ONCE):
        if _worker.stop.is_set():
            raise _Stopped
        source = _worker.source_for(None)
        rows = list(source.read(split, at, min(at + ROWS_AT_ONCE, stop)))
        files = source.files_of(split, at, at + len(rows)) if isinstance(source, ManifestSource) else [0] * len(rows)
        lines = [row.line if isinstance(row, BrokenRow) else None for row in rows]
        for k, result in enumerate(_encode_rows(rows)):
            is_broken = isinstance(result, BrokenRow)
            account.add(files[k], rows[k], keys, broken=is_broken)
            if is_broken:
                broken.append(result if lines[k] else _located(result.reason, split, at + k))
            else:
                documents.append(result)
        _advance(len(rows), split)
    folder = _worker.setup.folder
    counts = {name: {"parts": 0, "tokens": 0, "longest_image": 0} for name in records}
    for part in (p for d in documents for p in d.stored):
        counts[part.modality]["parts"] += 1
        counts[part.modality]["tokens"] += len(part)
        if len(part.grid) > 1:  # never cut
            longest = max(counts[part.modality]["longest_image"], len(part))
            counts[part.modality]["longest_image"] = longest
    entry = None
    if documents:
        entry, table = write_shard(folder, split, number, documents, records)
        save_table(table_file(folder, split, number), table)
    note = {
        "shard": entry,
        "broken": [asdict(row) for row in broken],
        "parts_left_out": sum(n for file_counts in account.files.values() for n in file_counts["left out"].values()),
        "files": account.files,
        "modalities": counts,
    }
    write_json(work_file(folder, split, number), note)


def measure_quality(name: str, blocks: list[tuple[str, int, int]]) -> dict[str, float]:
    """Job: return the figures of a codec's round trip on rows [start, stop) of splits."""
    _worker.load_codecs()
    codec = _worker.codecs[name]
    source = _worker.source_for([codec.key])
    rows = [row for block in blocks for row in source.read(*block) if isinstance(row, RawDocument)]
    media = [item for row in rows for _, item in _items_of(row, name, codec)]
    figures = {k: float(v) for k, v in codec.quality(media).items()} if media else {}
    _advance(1, name)
    return figures


def finished_shard(folder: Path, split: str, number: int) -> dict | None:
    """Return the note of a shard that is done, or None."""
    try:
        note = json.loads(work_file(folder, split, number).read_text(encoding="utf-8"))
        entry = note["shard"]
        whole = entry is None or (
            (folder / shard_name(split, number)).stat().st_size == entry["bytes"]
            and table_file(folder, split, number).exists()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return note if whole else None


class _Stopped(Exception):
    """The parent wants no more."""


class _Worker:
    """This process's codecs and source, opened on first use."""

    def __init__(self, setup: Setup, queue: Any, stop: Any):
        self.setup, self.queue, self.stop = setup, queue, stop
        self._codecs: dict[str, Codec] | None = None
        self._loaded = False
        self._sources: dict[tuple | None, RawSource] = {}

    @property
    def codecs(self) -> dict[str, Codec]:
        """Good for reading only, until `load_codecs` was called."""
        if self._codecs is None:
            self._codecs = build_codecs(self.setup.modalities, self.setup.reads)
        return self._codecs

    def load_codecs(self) -> None:
        """Take the codecs that were made."""
        if not self._loaded:
            folder = self.setup.folder
            made = self.setup.modalities.items()
            self._codecs = {name: load_codec(codec_folder(folder, name), settings.key) for name, settings in made}
            tie(self._codecs, self.setup.reads)
            self._sources.clear()
            self._loaded = True

    def source_for(self, keys: list[str] | None) -> RawSource:
        name = None if keys is None else tuple(keys)
        if name not in self._sources:
            self._sources[name] = open_source(self.setup, self.codecs, keys)
        return self._sources[name]


_worker: _Worker


def _start_worker(setup: Setup, queue: Any, stop: Any) -> None:
    import torch

    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and tells us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threading.Thread(target=_end_when_stopped, args=(stop,), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    CODECS.update(setup.registry)
    os.environ[ALLOWED] = setup.allowed
    _worker = _Worker(setup, queue, stop)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _end_when_stopped(stop: Any) -> None:
    stop.wait()
    time.sleep(_GRACE_SECONDS)
    os._exit(1)  # files are written whole or not at all, so nothing is lost


def _advance(rows: int, text: str | None = None) -> None:
    _worker.queue.put((rows, text))


def _encode_rows(rows: list[RawDocument | BrokenRow]) -> Iterator[Document | BrokenRow]:
    """Encode rows; each codec gets the items of all rows at once."""
    encoded: dict[tuple[int, int], Part | str] = {}
    features: dict[tuple[int, int], Part | str] = {}
    for name, codec in _worker.codecs.items():
        items = {
            (r, p): item
            for r, row in enumerate(rows)
            if isinstance(row, RawDocument)
            for p, item in _items_of(row, name, codec)
        }
        results = features if codec.reads else encoded
        for index, result in zip(items, _encode_items(codec, [*items.values()]), strict=True):
            results[index] = result if isinstance(result, str) else _part(name, result)
    for index, read in features.items():
        part = encoded[index]
        if isinstance(part, Part) and isinstance(read, Part):
            part.features = read
        else:  # what is broken for one of them is broken
            encoded[index] = part if isinstance(part, str) else read
    for r, row in enumerate(rows):
        if isinstance(row, BrokenRow):
            yield row
            continue
        parts = [(p, encoded[r, p]) for p in range(len(row.parts)) if (r, p) in encoded]
        for p, part in parts:
            if p in row.without_loss and isinstance(part, Part):
                part.loss = 0.0
        reasons = [f"part {p + 1} ({row.parts[p][0]}): {part}" for p, part in parts if isinstance(part, str)]
        yield BrokenRow(0, reasons[0]) if reasons else Document([part for _, part in parts], meta=row.meta)


def _encode_items(codec: Codec, items: list) -> list[Encoded | str]:
    """Encode items, or say why one cannot be."""
    if not items:
        return []
    try:
        return list(codec.encode(items))
    except (ConfigError, ResourceError):
        raise  # no fault of the items
    except Exception as error:  # networks fail in many ways on odd items, and one item must not end all
        if len(items) == 1:
            kind = "" if isinstance(error, DataError) else f"it cannot be encoded: {type(error).__name__}: "
            return [kind + reason_of(error)]
        return [result for item in items for result in _encode_items(codec, [item])]


def _part(name: str, encoded: Encoded) -> Part | str:
    part = Part(name, encoded.ids, encoded.latents, tuple(encoded.grid))
    if len(part.grid) > MAX_GRID_AXES:
        raise ConfigError(f"model.modalities.{name}.codec: grid {part.grid} has more than {MAX_GRID_AXES} axes")
    return part if len(part) else "it is empty"


def _located(reason: str, split: str, index: int) -> BrokenRow:
    """Return a row that read well but could not be encoded, with its line."""
    locate = getattr(_worker.source_for(None), "broken", None)  # a user's own rows lie somewhere
    return locate(split, index, reason) if locate else BrokenRow(index + 1, reason)
