"""Continuous batching: one thread that owns the engine, which requests join and leave at every step.

Jobs wait in the order in which they came until the engine has room for them. After each step every job is told what is
new of it. Nothing else touches the model.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from plait.batch.documents import Part
from plait.common.errors import PlaitError
from plait.generate.engine import Generator
from plait.generate.request import Result, Score
from plait.generate.rows import Row
from plait.serve.jobs import Ended, Failed, Item, Job, Preview, TextPiece
from plait.serve.metrics import Metrics

LOG = logging.getLogger("plait.serve")


class QueueFull(Exception):
    """More jobs wait than may."""


class Closed(Exception):
    """The server is shutting down and takes nothing in."""


class Scheduler:
    """Runs jobs on a generator that ``make`` builds."""

    def __init__(self, make: Callable[[], Generator], *, max_queue: int, metrics: Metrics):
        self._make, self._engine = make, make()
        self.max_queue, self.metrics = max_queue, metrics
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._dropped: set[Job] = set()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="plait-engine", daemon=True)
        self._thread.start()

    # -- called by the server -----------------------------------------------------------------------------------

    def submit(self, jobs: list[Job]) -> None:
        """Take jobs in, all or none. Raises ConfigError where one cannot be made, QueueFull and Closed."""
        for job in jobs:
            self._engine.check(job.request)
        with self._changed:
            if self._closing:
                raise Closed
            if len(self._waiting) + len(jobs) > self.max_queue + self._num_free:
                raise QueueFull
            for job in jobs:
                job.added = time.monotonic()
                self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Let a job go, whether it waits or is under way; its row is free at the next step."""
        with self._changed:
            self._dropped.add(job)
            self._changed.notify()

    def close(self) -> None:
        """Take no more jobs in, finish those that are here, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def num_waiting(self) -> int:
        """Jobs that wait for a row."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Jobs that have a row."""
        return len(self._running)

    @property
    def cache_share(self) -> float:
        """Share of the cache's slots that hold keys."""
        cache = self._engine.cache
        return sum(cache.lengths) / max(1, cache.num_rows * cache.max_length)

    @property
    def _num_free(self) -> int:
        """Rows that jobs may take at once, those not counted that wait already."""
        return max(0, self._engine.max_rows - len(self._running))

    # -- the engine's thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._closing):
                    self._dropped.clear()
                    self._changed.wait()
                if self._closing and not (self._waiting or self._running):
                    return
                self._let_go()
                joining = self._joining()
            self._add(joining)
            self._step()

    def _let_go(self) -> None:
        for job in self._dropped:
            if job in self._waiting:
                self._waiting.remove(job)
            elif job.id is not None and job.id in self._running:
                del self._running[job.id]
                self._engine.cancel(job.id)
        self._dropped.clear()

    def _joining(self) -> list[Job]:
        """Take jobs out of the queue in order, as many as there are free rows."""
        joining: list[Job] = []
        while self._waiting and len(self._running) + len(joining) < self._engine.max_rows:
            joining.append(self._waiting.popleft())
        return joining

    def _add(self, joining: list[Job]) -> None:
        for k, job in enumerate(joining):
            if self._running and not self._engine.fits(job.request):
                with self._changed:
                    self._waiting.extendleft(reversed(joining[k:]))
                return
            try:
                job.id = self._engine.add(job.request)
                self._running[job.id] = job
            except PlaitError as error:
                job.deliver(Failed(error))

    def _step(self) -> None:
        if not self._running:
            return
        before, engine = self._engine.num_tokens, self._engine
        try:
            results = engine.step()
        except Exception as error:  # whatever it is, the server stays and all who wait hear of it
            LOG.exception("the engine failed in a step")
            for job in self._running.values():
                job.deliver(Failed(error))
            self._running.clear()
            self._engine = self._make()
            return
        self.metrics.tokens.inc(engine.num_tokens - before)
        ended = {id(result.request): result for result in results}
        rows = {row.id: row for row in engine.rows}
        for identity, job in list(self._running.items()):
            if identity in rows:
                self._tell(job, rows[identity])
            else:
                self._end(job, ended[id(job.request)])

    def _tell(self, job: Job, row: Row) -> None:
        """Tell what a step brought of a job that goes on."""
        host = self._engine.layout.host
        if row.tokens or row.parts:
            self._first(job)
        self._tell_parts(job, row.parts, row.scores)
        if row.span is None and (job.streams or job.stops):
            offset = self._engine.layout.offsets[host]
            self._say(job, job.writer.push([token - offset for token in row.tokens]), row.scores)
        elif row.canvas is not None:
            for level, latents in row.canvas.snapshots[job.num_snapshots :]:
                job.deliver(Preview(level, row.canvas.part(latents)))
            job.num_snapshots = len(row.canvas.snapshots)
        if row.canvas is None:
            job.num_snapshots = 0
        if job.writer.stopped:
            result = self._engine.cancel(row.id)
            assert result is not None
            self._finished(job, result, "stop")

    def _end(self, job: Job, result: Result) -> None:
        """Tell what is left of a job that is over, and that it is."""
        self._first(job)
        self._tell_parts(job, result.parts, result.scores)
        self._finished(job, result, "length" if result.stopped == "length" and not job.writer.stopped else "stop")

    def _tell_parts(self, job: Job, parts: list[Part], scores: list[Score]) -> None:
        """Tell of the parts that are finished since the last time."""
        for part in parts[job.num_parts :]:
            if part.modality == self._engine.layout.host and part.ids is not None:
                self._say(job, job.writer.end(part.ids.tolist()), scores)
            elif not job.writer.stopped:
                job.deliver(Item(part))
        job.num_parts = len(parts)

    def _say(self, job: Job, piece: str, scores: list[Score]) -> None:
        if piece:
            job.deliver(TextPiece(piece, tuple(scores[job.num_scores :])))
            job.num_scores = len(scores)

    def _first(self, job: Job) -> None:
        if not job.first:
            job.first = time.monotonic()
            self.metrics.first.observe(job.first - job.added)

    def _finished(self, job: Job, result: Result, reason: str) -> None:
        assert job.id is not None
        del self._running[job.id]
        job.deliver(Ended(result, reason))
