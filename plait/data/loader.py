"""Packed batches without end, built ahead in threads, with a state that resumes exactly on any number of ranks."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from plait.batch.assemble import pack_checked
from plait.batch.batch import Batch
from plait.batch.documents import Document
from plait.common.errors import ConfigError, DataError, require, unknown
from plait.config.run import RunConfig
from plait.config.settings import STREAM, check_same, identity
from plait.config.tasks import lacking, mentions_of
from plait.data.mixing import MixedOrder
from plait.data.packing import EDGES, PartSize, cut_document, plan_bins
from plait.data.recent import RecentDocuments
from plait.data.sources import TaskSource, documents_digest, folders, open_sources, resolve_vocabulary

WINDOW_BINS = 256
"""Bins that are planned together; a window ends with at most about one bin that is not full."""

_MAX_WINDOW_DOCUMENTS = 1 << 18
_BATCHES_AHEAD = 2  # for each thread
_COUNTS = ("batches", "tokens", "documents", "split", "truncated", "skipped", "parts_skipped", "empty")


@dataclass
class _Window:
    """A stretch of the order of documents, packed. E entries: documents, or pieces of those that were too long."""

    source: np.ndarray
    epoch: np.ndarray
    document: np.ndarray
    task: np.ndarray
    dropped: np.ndarray
    piece: np.ndarray
    """[E] which piece of its document an entry is, or -1 where it is all of it."""
    lengths: np.ndarray
    cuts: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)
    """For entries that are pieces: their (chosen part, start, stop)."""
    bins: list[list[int]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    taken_after: list[int] = field(default_factory=list)
    is_end: bool = False
    """Whether no document was left for it."""


class _Packer:
    """Turns documents with their drawn tasks into windows, and bins of windows into batches."""

    def __init__(self, config: RunConfig, sources: list[TaskSource]):
        self.config = config
        self.sources = sources
        self.budget = config.data.batch_tokens
        self.limit = document_limit(config)
        self.offsets = np.concatenate([[0], np.cumsum([len(s) for s in sources])]).tolist()
        self._whole = RecentDocuments(lambda k, i: sources[k].source.document(i, meta=False))

    def window(
        self, source: np.ndarray, epoch: np.ndarray, document: np.ndarray, *, only_tasks: bool = False
    ) -> _Window:
        """Draw the tasks, cut what is too long, and plan the bins; ``only_tasks`` leaves out documents without one."""
        n = len(source)
        task, dropped, lengths = np.empty(n, np.int16), np.empty(n, np.int8), np.empty(n, np.int64)
        for k in np.unique(source).tolist():
            of_source = np.flatnonzero(source == k)
            draw = self.sources[k].draw(document[of_source], epoch[of_source])
            task[of_source], dropped[of_source], lengths[of_source] = draw.task, draw.dropped, draw.lengths
        keep = task >= 0 if only_tasks else slice(None)
        drawn = (array[keep] for array in (source, epoch, document, task, dropped, np.full(n, -1), lengths))
        window = _Window(*drawn, counts=dict.fromkeys(_COUNTS, 0))
        self._cut_long(window)
        window.bins = plan_bins(window.lengths, self.budget)
        return window

    def batch(self, window: _Window, chosen: list[int]) -> Batch:
        """Read the documents of one bin and pack them."""
        entries, documents = np.array(chosen), {}
        for k, source in enumerate(self.sources):
            uncut = entries[(window.source[entries] == k) & (window.piece[entries] < 0)]
            documents |= zip(uncut.tolist(), source.source.documents(window.document[uncut], meta=False), strict=True)
        for e in entries[window.piece[entries] >= 0].tolist():
            documents[e] = self._whole.get(int(window.source[e]), int(window.document[e]))
        documents = [self._document(window, e, documents[e]) for e in chosen]
        return pack_checked(documents, self.config.model, self.config.data.pad_rows_to)

    def _document(self, window: _Window, e: int, written: Document) -> Document:
        k, i = int(window.source[e]), int(window.document[e])
        task, dropped, number = int(window.task[e]), int(window.dropped[e]), int(window.piece[e])
        document = self.sources[k].arrange(written, task, dropped, window.cuts.get(e))
        document.epoch = int(window.epoch[e])
        # pieces draw their own random numbers, so each has its own index
        document.index = self.offsets[k] + i + max(number, 0) * self.offsets[-1]
        return document

    def _cut_long(self, window: _Window) -> None:
        """Replace entries that are too long by their pieces, and leave out those without a part; count both."""
        long, empty = window.lengths > self.limit, window.lengths <= EDGES
        window.counts["empty"] += int(empty.sum())
        if not long.any() and not empty.any():
            return
        rows, numbers, lengths = [], [], []
        for e in np.flatnonzero(~empty).tolist():
            if not long[e]:
                rows.append(e), numbers.append(-1), lengths.append(int(window.lengths[e]))
                continue
            pieces, sizes = self._pieces(window, e)
            for number, piece in enumerate(pieces):
                window.cuts[len(rows)] = piece
                rows.append(e), numbers.append(number), lengths.append(TaskSource.piece_length(piece, sizes))
        chosen = np.array(rows, np.int64)
        for name in ("source", "epoch", "document", "task", "dropped"):
            setattr(window, name, getattr(window, name)[chosen])
        window.piece, window.lengths = np.array(numbers, np.int64), np.array(lengths, np.int64)

    def _pieces(self, window: _Window, e: int) -> tuple[list[list[tuple[int, int, int]]], list[PartSize]]:
        """Return the pieces that an entry is cut into with its parts' sizes, and count what was done."""
        arrays = (window.document, window.task, window.dropped)
        sizes = self.sources[int(window.source[e])].sizes(*(array[e].item() for array in arrays))
        cut = cut_document(sizes, self.limit, self.config.data.too_long)
        done = {"split": "split", "truncate": "truncated", "skip": "skipped"}[self.config.data.too_long]
        window.counts[done if cut.pieces else "skipped"] += 1
        window.counts["parts_skipped"] += cut.parts_skipped
        return cut.pieces, sizes


class Loader:
    """Iterates ``(Batch, state)``: for ever, unless no source repeats or one stops (data.sources, when_exhausted).

    Where the data end, they end on all ranks after the same step; fewer bins than ranks that are left stay unread.
    ``state`` is what to hand to a new Loader so that it goes on with the next batch; it is plain JSON and the same on
    every rank, and its ``ended`` says that no batch comes after. Which documents are seen in which order does not
    depend on ``world_size``: step t takes the next ``world_size`` bins of one global plan, and rank r the r-th of them.
    """

    def __init__(
        self, config: RunConfig, split: str = "train", *, rank: int = 0, world_size: int = 1, state: dict | None = None,
        finish: Callable[[Batch], Batch] | None = None,
    ):  # fmt: skip
        """``finish`` is applied to each batch, ahead of time in the loader's threads."""
        require(0 <= rank < world_size, "rank", rank, f"between 0 and world_size - 1 ({world_size - 1})")
        self.config = resolve_vocabulary(config)
        """The config with the codecs' vocabularies filled in."""
        self.split = split
        self.rank, self.world_size, self.finish = rank, world_size, finish
        self.wait_seconds = 0.0
        """Seconds that the consumer has waited for batches so far."""
        data = config.data
        sources = open_task_sources(self.config, split, drop_condition=data.drop_condition, drop_host=data.drop_host)
        mixture = [folders(config)[s.source.folder] for s in sources]
        for source in sources:
            if not len(source):
                raise DataError(f"data: {source.source.folder!r} has no document in its split {split!r}")
        self._packer = _Packer(self.config, sources)
        self._order = MixedOrder([len(s) for s in sources], mixture, config.seed)
        self._window_documents = self._choose_window(self._order.shares)
        self._settings = self._identity()
        self.state = state or self._first_state()
        """Where the last batch that was handed out ended."""
        self._check_state()

    def __iter__(self) -> Iterator[tuple[Batch, dict]]:
        workers = self.config.data.num_workers
        if workers == 0:
            return self._iterate(None)
        return self._iterate(ThreadPoolExecutor(workers, thread_name_prefix="plait-loader"))

    def statistics(self) -> dict[str, float]:
        """Return what was packed so far, over all ranks: counts, and the share of positions that were filled."""
        counts = self.state["counts"]
        filled = counts["tokens"] / max(counts["batches"] * self._packer.budget, 1)
        return {**counts, "packing_efficiency": filled, "wait_seconds": self.wait_seconds}

    def _iterate(self, pool: ThreadPoolExecutor | None) -> Iterator[tuple[Batch, dict]]:
        steps = self._steps(pool)
        ahead: deque[tuple[Future, dict]] = deque()

        def submit() -> None:
            for window, chosen, state in itertools.islice(steps, 1):
                ahead.append((_submit(pool, self._batch, window, chosen), state))

        try:
            for _ in range(_BATCHES_AHEAD * self.config.data.num_workers):
                submit()
            while True:
                started = time.perf_counter()
                if pool is None:
                    submit()
                if not ahead:
                    return  # the data end here
                future, state = ahead.popleft()
                batch = future.result()
                if pool is not None:
                    submit()
                self.wait_seconds += time.perf_counter() - started
                self.state = state
                yield batch, state
        finally:
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def _batch(self, window: _Window, chosen: list[int]) -> Batch:
        batch = self._packer.batch(window, chosen)
        return self.finish(batch) if self.finish else batch

    def _steps(self, pool: ThreadPoolExecutor | None) -> Iterator[tuple[_Window, list[int], dict]]:
        """Yield this rank's bin of every step, and the state after the step, which says whether it is the last."""
        steps = self._plain_steps(pool)
        step = next(steps, None)
        while step is not None:
            following = next(steps, None)
            window, chosen, state = step
            yield window, chosen, {**state, "ended": following is None}
            step = following

    def _plain_steps(self, pool: ThreadPoolExecutor | None) -> Iterator[tuple[_Window, list[int], dict]]:
        number, taken, bin_number = self.state["window"], list(self.state["taken"]), self.state["bin"]
        counts = dict(self.state["counts"])
        window = self._plan(taken)
        following = _submit(pool, self._plan, window.taken_after)
        while True:
            own_bin: list[int] = []
            own_window = window
            for r in range(self.world_size):
                while bin_number == len(window.bins):
                    if window.is_end:
                        return
                    number, taken, bin_number = number + 1, window.taken_after, 0
                    window = following.result()
                    following = _submit(pool, self._plan, window.taken_after)
                if bin_number == 0:
                    counts = {name: counts[name] + window.counts[name] for name in _COUNTS}
                chosen = window.bins[bin_number]
                counts["batches"] += 1
                counts["documents"] += len(chosen)
                counts["tokens"] += int(window.lengths[chosen].sum())
                if r == self.rank:
                    own_bin, own_window = chosen, window
                bin_number += 1
            state = {"window": number, "bin": bin_number, "taken": list(taken), "counts": dict(counts)}
            yield own_window, own_bin, {**state, "settings": self._settings}

    def _plan(self, taken: list[int]) -> _Window:
        source, epoch, document, after = self._order.take(taken, self._window_documents)
        window = self._packer.window(source, epoch, document)
        window.taken_after, window.is_end = after, not len(source)
        if len(source) == self._window_documents and not window.bins:
            raise DataError(
                f"data.max_document_tokens: {self._packer.limit} tokens hold none of {self._window_documents} "
                f"successive documents (data.too_long: {self.config.data.too_long}; {window.counts['empty']} have no "
                "part of the model's modalities); set it higher, or data.too_long: split"
            )
        return window

    def _choose_window(self, shares: np.ndarray) -> int:
        means = [source.mean_length(self._packer.limit) for source in self._packer.sources]
        mean = float(np.dot(means, shares))
        return int(min(max(np.ceil(WINDOW_BINS * self._packer.budget / mean), 1), _MAX_WINDOW_DOCUMENTS))

    def _first_state(self) -> dict:
        taken = [0] * len(self._packer.sources)
        counts = dict.fromkeys(_COUNTS, 0)
        return {"window": 0, "bin": 0, "taken": taken, "counts": counts, "ended": False, "settings": self._settings}

    def _identity(self) -> dict:
        """Return all that the order and the plan follow from: a state is good for the same alone."""
        documents = [documents_digest(source.source) for source in self._packer.sources]
        return {**identity(self.config, (STREAM,)), "data.path": documents}

    def _check_state(self) -> None:
        saved, now = self.state["settings"], self._settings
        cure = "use the old setting, or start a new run with another name or --out"
        check_same({n: v for n, v in saved.items() if n != "data.path"}, now, "the run's order of documents", cure)
        if saved["data.path"] != now["data.path"]:
            where = ", ".join(folders(self.config))
            raise ConfigError(
                f"data.path: the documents in {where!r} ({', '.join(now['data.path'])}) are not those the run started "
                f"with ({', '.join(saved['data.path'])}); use the old data, or start a new run with another name or "
                "--out"
            )


def validation_batches(
    config: RunConfig, split: str, task: str = "", limit: int = 0, *, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Yield the packed batches of a validation split, the same ones every time.

    ``task`` such as "text,image" takes the documents that have its parts, nothing dropped; "" takes all as written.
    ``limit`` is the number of batches over all ranks; 0 means all. Rank r takes every world_size-th one.
    """
    config = resolve_vocabulary(config)
    for name in [*mentions_of(task), *lacking(task)] if task else []:
        if name not in config.model.modalities:
            raise ConfigError(unknown(f"task {task!r}", name, config.model.modalities))
    sources = open_task_sources(config, split, {task: 1.0} if task else {})
    packer, number = _Packer(config, sources), 0
    sizes = [len(s) for s in sources]
    first = np.concatenate([[0], np.cumsum(sizes)])
    for start in range(0, int(first[-1]), _MAX_WINDOW_DOCUMENTS):
        indices = np.arange(start, min(start + _MAX_WINDOW_DOCUMENTS, int(first[-1])))
        source = np.searchsorted(first, indices, side="right") - 1
        document = indices - first[source]
        window = packer.window(source, np.zeros_like(source), document, only_tasks=bool(task))
        for chosen in window.bins:
            if number == limit > 0:
                return
            if number % world_size == rank:
                yield packer.batch(window, chosen)
            number += 1


def open_task_sources(
    config: RunConfig, split: str, tasks: dict[str, float] | None = None, *, drop_condition: float = 0.0,
    drop_host: float = 0.0,
) -> list[TaskSource]:  # fmt: skip
    """Open one split of the run's prepared folders, with tasks drawn by the run's seed: those given, or the run's."""
    own = {folder: source.tasks or config.data.tasks for folder, source in folders(config).items()}
    return [
        TaskSource(
            s,
            config.model,
            own[s.folder] if tasks is None else tasks,
            drop_condition=drop_condition,
            drop_host=drop_host,
            seed=config.seed,
            number=k,
            given_loss=config.data.given_loss,
        )
        for k, s in enumerate(open_sources(config, split))
    ]


def document_limit(config: RunConfig) -> int:
    """Return the tokens that a document may have at most."""
    data, longest = config.data, min(config.data.batch_tokens, config.model.max_positions)
    allowed = f"0 or at most {longest} (the smaller one of data.batch_tokens and model.max_positions)"
    require(0 <= data.max_document_tokens <= longest, "data.max_document_tokens", data.max_document_tokens, allowed)
    limit = data.max_document_tokens or longest
    require(limit > 2 * EDGES, "data.max_document_tokens", limit, f"above {2 * EDGES}, to hold more than delimiters")
    return limit


def _submit(pool: ThreadPoolExecutor | None, function, *arguments) -> Future:
    """Call a function in the pool, or here and now where there is none."""
    if pool is not None:
        return pool.submit(function, *arguments)
    future: Future = Future()
    try:
        future.set_result(function(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future
