"""`plait prepare`: raw documents to codecs and encoded shards, in stages that each go on where they were stopped.

1. codecs: each is trained on some raw training documents, or taken as it is, and saved in ``codecs/<modality>``;
2. encode: all splits, shard by shard, in worker processes;
3. quality: the codecs' round trip on held-out documents;
4. ``report.json`` (figures, counts, times), ``broken.jsonl`` (line and reason of every broken row) and, last,
   ``index.json``.

A folder belongs to the settings that it was begun with; other settings are refused by name.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from plait.codecs import Codec, load_codec
from plait.codecs.chat import chat_of
from plait.common.cores import num_cores
from plait.common.errors import CheckpointError, ConfigError, DataError, require
from plait.common.files import clear_disk_errors, write_json, write_text
from plait.common.locks import one_writer
from plait.common.progress import Bar, Progress, QuietProgress
from plait.config.modality import ModalityConfig
from plait.config.run import RunConfig
from plait.data.document_table import Table, load_table
from plait.data.shards import INDEX_NAME, codec_folder, split_record, write_index
from plait.data.sources import data_seed
from plait.data.targets import too_long_item
from plait.prepare.account import account_lines, account_of, report_of
from plait.prepare.claim import BROKEN_NAME, REPORT_NAME, check_folder, claim_folder, prepared_settings, read_if_there
from plait.prepare.encode import (
    Workers,
    build_codecs,
    encode_shard,
    finished_shard,
    make_codec,
    measure_quality,
    save_codec,
    scan_file,
    table_file,
)
from plait.prepare.formats import open_rows
from plait.prepare.manifest import known_keys
from plait.prepare.raw import ROWS_AT_ONCE, BrokenRow, RawSource
from plait.prepare.raw_sources import MADE, READ, folder_of, is_made, kind_of, open_source, rows_folder, setup_of
from plait.prepare.row_index import FILES_NAME, join, scanned, scans_of, sources_of

QUALITY_DOCUMENTS = 256
"""Held-out documents on which the codecs' round trip is measured."""

_BROKEN_SHOWN = 3


def prepare(
    config: RunConfig,
    *,
    progress: Progress | None = None,
    restart: bool = False,
    on_accepted: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Prepare the run's data in ``config.data.path`` and return its figures, name to number.

    Stages and shards that an earlier call finished are kept; ``restart`` begins anew. ``on_accepted`` is called when
    the settings fit the folder, before anything else is written. Raises ConfigError where the folder was begun with
    other settings, DataError for an unusable manifest or too many broken rows, ResourceError for a full disk, and Held
    where another process prepares it.
    """
    with one_writer(config.data.path, "data.path"):
        return check_prepare(config, progress).run(restart, on_accepted)


def check_prepare(config: RunConfig, progress: Progress | None = None) -> "_Preparation":
    """Raise what `prepare` would refuse of a config, whatever its folder holds; writes nothing."""
    _check(config)
    return _Preparation(config, progress or QuietProgress())


def raw_source(config: RunConfig) -> RawSource:
    """Open the run's raw documents: what makes them, a dataset, or the manifests of a folder that is prepared."""
    setup = dataclasses.replace(setup_of(config), seed=data_seed(config))
    return open_source(setup, build_codecs(setup.modalities, setup.reads))


class _Bars:
    """Several stages as one bar: a text ``name: ...`` says whose share it is."""

    def __init__(self, bars: dict[str, Bar]):
        self.bars = bars

    def advance(self, share: float, text: str) -> None:
        """Set the share of the stage that the text names."""
        name, _, text = text.partition(": ")
        self.bars[name].to(share, text)


class _Preparation:
    """One call of `prepare`."""

    def __init__(self, config: RunConfig, progress: Progress):
        self.config = config
        self.options = config.prepare
        self.progress = progress
        self.setup = setup_of(config)
        self.folder = self.setup.folder
        self.codecs = build_codecs(self.setup.modalities, self.setup.reads)
        for name, codec in self.codecs.items():
            _check_vocabulary(name, config.model.modalities[name], codec)
        self.source: RawSource | None = None
        """What makes its documents, or reads a folder of its own form; None where there are manifests."""
        if not self.setup.files:  # refuse codecs that it cannot serve
            self.source = open_source(self.setup, self.codecs)
        else:  # refuse at once what is no manifest; the other files are opened by the workers
            open_rows(self.setup.files[0], self.options.columns, known_keys(self.codecs), chat_of(self.codecs))
        self._said: list[str] = []
        self.rows: dict[str, int] = {}
        """Rows of each split."""
        self.records: dict[str, dict] = {}
        """The index's record of each modality, once its codec is made."""
        self.seconds: dict[str, float] = {}

    def run(self, restart: bool, on_accepted: Callable[[], None]) -> dict[str, float]:
        """Run all stages that are not done yet and return the report's figures."""
        files = self.setup.files or getattr(self.source, "files", [])
        now = prepared_settings(self.config, files, kind_of(self.options.source) or "manifest")
        check_folder(self.config.data.path, now, restart)
        on_accepted()
        claim_folder(self.folder, now, restart)
        self._say_too_long({name: math.prod(codec.default_grid) for name, codec in self.codecs.items()})
        finished = read_if_there(self.folder / REPORT_NAME)
        if finished is not None and (self.folder / INDEX_NAME).exists():
            self.progress.print(f"{self.config.data.path}: already prepared")
            return finished["figures"]
        with Workers(self.setup) as self.workers:
            self.rows = self._count_rows()
            self._make_codecs()
            notes = self._encode()
            self._judge_broken([row for note in notes.values() for row in note["broken"]])
            quality = self._measure_quality()
        account = self._account(list(notes.values()))
        credit = self.source.credit if self.source else ""
        report = report_of(self.rows, notes, self.records, quality, self.seconds, account, credit)
        write_json(self.folder / REPORT_NAME, report)
        for line in account_lines(account, {name: codec.key for name, codec in self.codecs.items()}):
            self.progress.print(line)
        self._say_too_long(
            {
                name: max((note["modalities"][name]["longest_image"] for note in notes.values()), default=0)
                for name in self.codecs
            }
        )
        self._index(notes)
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        return report["figures"]

    def _account(self, notes: list[dict]) -> list[dict]:
        """Return what became of everything that a user's files hold; what is made has no account."""
        files, scans = self.setup.files, []
        if files:
            scans = scans_of(rows_folder(self.folder))
        elif folder := folder_of(self.options.source):
            files, scans = [folder], [self.source.scan()]
        return account_of(files, scans, notes)

    def _say_too_long(self, tokens: dict[str, int]) -> None:
        """Say which modalities have items, of so many tokens, that no batch of this config can hold."""
        for text in (too_long_item(name, count, self.config) for name, count in tokens.items()):
            if text and text not in self._said:
                self._said.append(text)
                self.progress.print(text)

    def _count_rows(self) -> dict[str, int]:
        """Find the manifests' rows, file by file in the workers, and return how many each split has."""
        folder, parts, files = rows_folder(self.folder), self.folder / "work" / "rows", self.setup.files
        if files and not (folder / FILES_NAME).exists():
            left = [(number,) for number in range(len(files)) if scanned(parts, number) is None]
            with self._stage("read", total=len(files)) as bar:
                bar.resume(len(files) - len(left))
                self.workers.run(scan_file, left, bar)
            join(parts, folder, len(files))
        rows = open_source(self.setup, self.codecs).splits()
        what = f"manifest {self.options.source!r}" if files else repr(self.options.source)
        if not any(rows.values()):
            raise DataError(f"prepare.source: {what} has no rows, it needs at least one document")
        if not rows["train"]:
            raise DataError(
                f"prepare.source: all {rows['validation']} rows of {what} fall within "
                f"prepare.validation_share {self.options.validation_share}, none is left to train on"
            )
        return rows

    # -- codecs -------------------------------------------------------------------------------------------------

    def _make_codecs(self) -> None:
        """Load or make every codec, and write down what the index says of it."""
        missing = [name for name in self.codecs if not codec_folder(self.folder, name).exists()]
        if self.options.codecs_from:
            for name in missing:
                self._copy_codec(name)
            missing = []
        untrained = [name for name in missing if not self.codecs[name].is_fitted]
        for name in missing:
            if name not in untrained:
                save_codec(self.codecs[name], codec_folder(self.folder, name))
        self._train_codecs(untrained)
        for name in self.codecs:
            folder = codec_folder(self.folder, name)
            codec = self.codecs[name] = load_codec(folder, self.codecs[name].key, self.codecs[name].reads)
            _check_vocabulary(name, self.config.model.modalities[name], codec)
            self.records[name] = {
                "codec": codec.name,
                "key": codec.key,
                "reads": codec.reads,
                "reads_only": codec.reads_only,
                "vocab_size": codec.vocab_size,
                "latent_channels": codec.latent_channels,
                "patch_size": codec.patch_size,
                "default_grid": list(codec.default_grid),
                "ends": codec.ends,
                "fingerprint": _sha256(sorted(p for p in folder.rglob("*") if p.is_file())),
            }

    def _train_codecs(self, names: list[str]) -> None:
        """Train codecs in the workers, beside each other, on blocks of rows spread evenly over the split."""
        if not names:
            return
        blocks = spread_blocks("train", self.rows["train"], self.options.codec_documents)
        threads = max(1, num_cores() // max(len([n for n in names if self.codecs[n].kind != "text"]), 1))
        with contextlib.ExitStack() as stack:
            stack.enter_context(clear_disk_errors(self.folder))
            bars = {name: stack.enter_context(self._stage(f"{name} codec", total=1.0)) for name in names}
            jobs = [(name, blocks, threads) for name in names]
            self.workers.run(make_codec, jobs, _Bars(bars), check=self._check_codec)

    def _check_codec(self, job: tuple, broken: list[BrokenRow]) -> None:
        """Raise DataError where there was nothing to train a codec on, before others have trained for minutes."""
        name = job[0]
        if not codec_folder(self.folder, name).exists():
            self._judge_broken([dataclasses.asdict(row) for row in broken], some=True)
            key, source = self.codecs[name].key, self.options.source
            raise DataError(
                f"prepare.source: {source!r} has no {key!r} part to make a codec from, add some or take {name!r} "
                "out of model.modalities and data.tasks"
            )

    def _copy_codec(self, name: str) -> None:
        folder = codec_folder(Path(self.options.codecs_from), name)
        try:
            codec = load_codec(folder)
        except CheckpointError as error:
            raise ConfigError(f"prepare.codecs_from: {error}") from None
        wanted = self.setup.modalities[name].codec
        require(codec.name == wanted, f"model.modalities.{name}.codec", wanted, f"{codec.name!r} as in {str(folder)!r}")
        save_codec(codec, codec_folder(self.folder, name))

    # -- encoding -----------------------------------------------------------------------------------------------

    def _encode(self) -> dict[tuple[str, int], dict]:
        """Encode all shards that are not done; return the note of each."""
        size = self.options.shard_documents
        jobs = {
            (split, number): (split, number, start, min(start + size, rows))
            for split, rows in self.rows.items()
            for number, start in enumerate(range(0, rows, size))
        }
        notes = {job: finished_shard(self.folder, *job) for job in jobs}
        left = [(*jobs[job], self.records) for job, note in notes.items() if note is None]
        with self._stage("encode", total=sum(self.rows.values())) as bar:
            bar.resume(sum(self.rows.values()) - sum(stop - start for _, _, start, stop, _ in left))
            self.workers.run(encode_shard, left, bar)
        return {job: note or finished_shard(self.folder, *job) for job, note in notes.items()}

    def _judge_broken(self, broken: list[dict], *, some: bool = False) -> None:
        """Write the list of broken rows, then stop if there are too many. ``some``: not all rows were read."""
        path = self.folder / BROKEN_NAME
        broken = [{k: v for k, v in row.items() if k != "file" or v} for row in broken]
        broken.sort(key=lambda row: (row.get("file", ""), row["line"]))
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in broken))
        rows = sum(self.rows.values())
        if len(broken) <= self.options.max_broken_share * rows:
            return
        unlike: dict[str, dict] = {}  # the first row of each reason
        for row in broken:
            unlike.setdefault(row["reason"], row)
        shown = [(f"{row['file']} " if "file" in row else "", row) for row in [*unlike.values()][:_BROKEN_SHOWN]]
        first = "; ".join(f"{file}line {row['line']}: {row['reason']}" for file, row in shown)
        counted = f"{'at least ' if some else ''}{len(broken)} of {rows} rows ({len(broken) / rows:.1%})"
        raise DataError(
            f"prepare.source: {counted} are broken, prepare.max_broken_share allows "
            f"{self.options.max_broken_share:.1%}; {first}; the list is in {str(path)!r}"
        )

    # -- what came out ------------------------------------------------------------------------------------------

    def _measure_quality(self) -> dict[str, dict[str, float]]:
        """Return each codec's figures on held-out documents, evenly from all splits but train."""
        splits = [name for name, rows in self.rows.items() if name != "train" and rows]
        share = -(-QUALITY_DOCUMENTS // max(len(splits), 1))
        blocks = [block for split in splits for block in spread_blocks(split, self.rows[split], share)]
        jobs = [(name, blocks) for name in self.codecs] if blocks else []
        with self._stage("codec quality", total=len(jobs)) as bar:
            return dict(zip(self.codecs, self.workers.run(measure_quality, jobs, bar), strict=False))

    def _index(self, notes: dict[tuple[str, int], dict]) -> None:
        """Join the tables of every split, and write the index."""
        splits = {}
        for split in self.rows:
            numbers = [number for (s, number), note in notes.items() if s == split and note["shard"]]

            def tables(split=split, numbers=numbers) -> Iterator[Table]:
                return (load_table(table_file(self.folder, split, number)) for number in numbers)

            shards = [notes[split, number]["shard"] for number in numbers]
            splits[split] = split_record(self.folder, split, shards, tables)
        write_index(self.folder, self.records, splits)

    @contextlib.contextmanager
    def _stage(self, title: str, total: float):
        """Open a stage of the progress and note how long it takes in all."""
        path = self.folder / "work" / "seconds.json"
        self.seconds = read_if_there(path) or {}
        started = time.monotonic()
        try:
            with self.progress.stage(title, total=total) as bar:
                yield bar
        finally:
            self.seconds[title] = self.seconds.get(title, 0.0) + time.monotonic() - started
            write_json(path, self.seconds)


def spread_blocks(split: str, rows: int, wanted: int) -> list[tuple[str, int, int]]:
    """Return (split, start, stop) of whole blocks with about ``wanted`` rows in all, spread evenly over a split."""
    blocks = -(-rows // ROWS_AT_ONCE)
    chosen = min(-(-wanted // ROWS_AT_ONCE), blocks)
    starts = [ROWS_AT_ONCE * (k * blocks // chosen) for k in range(chosen)]
    return [(split, start, min(start + ROWS_AT_ONCE, rows)) for start in starts]


def _check(config: RunConfig) -> None:
    options = config.prepare
    sources = sources_of(options.source)
    names = " or ".join([*map(repr, MADE), *(f"{kind}:FOLDER" for kind in READ)])
    require(bool(sources) and all(sources), "prepare.source", options.source, f"{names} or the path of a manifest")
    alone = isinstance(options.source, str) or not any(is_made(s) or kind_of(s) for s in sources)
    require(alone, "prepare.source", options.source, f"{names} alone, or manifests")


def _check_vocabulary(name: str, modality: ModalityConfig, codec: Codec) -> None:
    where = f"model.modalities.{name}"
    require(not codec.reads_only or modality.objective == "input", f"{where}.objective", modality.objective,
            f"input: codec {codec.name!r} only reads")  # fmt: skip
    if 0 < modality.vocab_size < codec.vocab_size:
        allowed = f"at least {codec.vocab_size} (codec {codec.name!r}), or 0 to take that"
        require(False, f"{where}.vocab_size", modality.vocab_size, allowed)
    if modality.latent_channels and codec.latent_channels and modality.latent_channels != codec.latent_channels:
        allowed = f"{codec.latent_channels} (codec {codec.name!r}), or 0 to take that"
        require(False, f"{where}.latent_channels", modality.latent_channels, allowed)


def _sha256(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
