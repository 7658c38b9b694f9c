"""What the endpoints share: a model with its scheduler, how requests become jobs, and how answers come back."""

import asyncio
import copy
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import torch

from plait.batch.documents import Part
from plait.codecs import Encoded
from plait.codecs.chat_messages import read_conversation
from plait.common.errors import ConfigError, DataError, PlaitError, ResourceError, require, unknown
from plait.config.shipped import sampling_from
from plait.generate.engine import Generator
from plait.generate.pipeline import Pipeline
from plait.generate.prompts import MediaPart, read_messages
from plait.generate.request import Request, Score
from plait.serve.jobs import Ended, Event, Failed, Job
from plait.serve.media import check_size, sent_file
from plait.serve.metrics import Metrics
from plait.serve.protocol import CALLED, Message, Sampling, sampling_options
from plait.serve.scheduler import Scheduler

T = TypeVar("T")
LEAST_LOGPROB = -9999.0
"""What OpenAI says of an id that cannot come, in place of minus infinity, which JSON has not."""


@dataclass(frozen=True)
class Limits:
    """What a server takes."""

    max_queue: int = 256
    """Requests that may wait for a row."""
    timeout: float = 600.0
    """Seconds after which an answer that is not finished is given up."""
    max_body: int = 32_000_000
    """Bytes of a request."""
    max_pixels: int = 1 << 24
    """Pixels of an image."""
    max_seconds: float = 300.0
    """Seconds of a recording."""


class TimedOut(Exception):
    """An answer took longer than it may."""


class Service:
    """One model that answers many clients. Codecs work in one thread beside the engine's."""

    def __init__(self, name: str, pipeline: Pipeline, limits: Limits, metrics: Metrics):
        self.name, self.pipeline, self.limits = name, pipeline, limits
        self.adapter = ""
        """Name of the adapter that answers are made with."""
        self.created = int(time.time())
        self.scheduler = Scheduler(
            lambda: Generator(pipeline.model, **pipeline.engine_settings), max_queue=limits.max_queue, metrics=metrics
        )
        self._codecs = ThreadPoolExecutor(1, "plait-codecs")
        num_threads = torch.get_num_threads()
        self._codecs.submit(_keep_to_one_thread).result()
        torch.set_num_threads(num_threads)  # of threads to come
        metrics.watch(name, {
            "queue": ("Requests that wait for a row.", lambda: self.scheduler.num_waiting),
            "rows": ("Requests under way.", lambda: self.scheduler.num_running),
            "cache_share": ("Share of the cache's slots in use.", lambda: self.scheduler.cache_share),
        })  # fmt: skip

    def with_adapter(self, name: str) -> "Service":
        """Return the same model's service with one of its adapters, which has the adapter's name."""
        service = copy.copy(self)
        service.name = service.adapter = name
        return service

    def close(self) -> None:
        """Finish what is under way, and end the threads."""
        self.scheduler.close()
        self._codecs.shutdown()

    # -- what the model can do ----------------------------------------------------------------------------------

    @property
    def host(self) -> str:
        """The modality that documents open with: text."""
        return self.pipeline.model.config.layout.host

    @property
    def kinds(self) -> dict[str, str]:
        """Each modality that the model makes, by the word that requests have for it: its key (text, image, audio)."""
        records = self.pipeline.model.config.modalities
        return {c.key: n for n, c in self.pipeline.codecs.items() if records[n].objective != "input"}

    @property
    def denoises(self) -> bool:
        """Whether it makes something by denoising."""
        return any(m.objective == "diffusion" for m in self.pipeline.model.config.modalities.values())

    def modality(self, kind: str, field: str) -> str:
        """Return the modality of a kind. Raises ConfigError where the model has none, or several."""
        codecs = self.pipeline.codecs
        names = [n for n in self.kinds.values() if codecs[n].kind == kind]
        require(len(names) == 1, field, kind, f"a kind of media that this model makes: {', '.join(self.kinds)}")
        return names[0]

    def output(self, modalities: Sequence[str]) -> str | None:
        """Return the modality to answer in; None, the model's own choice, where several are named."""
        kinds = self.kinds
        for word in modalities:
            if word not in kinds and word not in kinds.values():
                raise ConfigError(unknown("modalities", word, kinds))
        return kinds.get(modalities[0], modalities[0]) if len(set(modalities)) == 1 else None

    # -- requests -----------------------------------------------------------------------------------------------

    async def with_codecs(self, function: Callable[..., T], *given: Any) -> T:
        """Call a function in the thread of the codecs."""

        def call() -> T:
            with torch.no_grad():
                return function(*given)

        return await asyncio.get_running_loop().run_in_executor(self._codecs, call)

    async def read_chat(self, messages: Sequence[Message]) -> tuple[list[MediaPart], list[Part]]:
        """Read a conversation as the model's chat template writes it; without one, the one message is the prompt.

        Returns the media, and the same encoded.
        """
        rows = [m.model_dump(exclude_none=True) for m in messages]

        def read() -> tuple[list[MediaPart], list[Part]]:
            media = self._media_of_chat(rows)
            return media, self.pipeline.encode(media)

        return await self.with_codecs(read)

    def _media_of_chat(self, rows: list[dict[str, Any]]) -> list[MediaPart]:
        for row in rows:
            if isinstance(row["content"], list):
                row["content"] = [self._by_its_kind(i) if i["type"] == "file" else i for i in row["content"]]
        words = {codec.key: codec.key for codec in self.pipeline.codecs.values()} | {"image": "image", "audio": "audio"}
        conversation = read_conversation(rows, words)  # refuses what is no data: address by a sentence
        for message in conversation.messages:
            for item in message.content:
                if not isinstance(item, str):
                    self._check_data(item.key, item.value)
        return read_messages(rows, self.pipeline.codecs, self.host)

    def _by_its_kind(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return a file as an item of the first modality that can read it. Raises DataError where none can."""
        file, reasons = sent_file(item["file"]), []
        for codec in self.pipeline.codecs.values():
            if codec.reads or not codec.names_files:
                continue
            self.check_file(codec.kind, file["bytes"])
            try:
                codec.read_bytes(file["bytes"], file["path"])
            except ResourceError:
                raise  # a missing package is no fault of the file
            except PlaitError as error:
                reasons.append(str(error))
                continue
            return {"type": codec.key, codec.key: file}
        why = "; ".join(reasons) or "it reads text alone"
        raise DataError(f"file: {file['path']!r} is nothing that this model reads ({why})")

    def _check_data(self, kind: str, value: Any) -> None:
        """Refuse media that are no data of the request itself, or too large."""
        if not isinstance(value, dict):
            raise DataError(f"{kind}: {str(value)[:40]!r} is not allowed, it must be data:TYPE;base64,...: no file of "
                            "the server is read")  # fmt: skip
        self.check_file(kind, value["bytes"])

    def check_file(self, kind: str, data: bytes) -> None:
        """Refuse a file that unpacks to more than the server takes."""
        check_size(kind, data, max_pixels=self.limits.max_pixels, max_seconds=self.limits.max_seconds)

    async def read(self, prompt: list[Any]) -> list[Part]:
        """Read a prompt of texts and files ({kind: {"bytes", "path"}})."""
        return await self.with_codecs(lambda: self.pipeline.encode(self.pipeline.read(prompt)))

    def start(
        self, prompt: list[Part], output: str | None, fields: Sampling, *, n: int = 1, max_tokens: int | None = None,
        stops: Sequence[str] = (), streams: bool = False, previews: int = 0, logprobs: int | None = None,
    ) -> "Answers":  # fmt: skip
        """Begin to answer. Raises ConfigError for what cannot be made, QueueFull where too many wait."""
        config, model = self.pipeline.config, self.pipeline.model.config
        sampling = sampling_from(config.sampling, model, sampling_options(fields), lambda n: CALLED.get(n, n))
        most = config.max_tokens | ({} if max_tokens is None else {self.host: max_tokens})
        seed = secrets.randbits(31) if fields.seed is None else fields.seed
        requests = [
            Request(
                prompt,
                output,
                sampling,
                most,
                seed=seed,
                number=i,
                num_snapshots=previews,
                logprobs=logprobs,
                adapter=self.adapter,
            )
            for i in range(n)
        ]
        answers = Answers(self, seed, self.limits.timeout)
        jobs = [Job(r, answers.deliver_to(i), self._text_of, stops, streams) for i, r in enumerate(requests)]
        answers.begin(jobs)
        return answers

    def _text_of(self, ids: np.ndarray) -> str:
        return str(self.pipeline.codecs[self.host].decode([Encoded(ids.astype(np.int32))])[0])

    def tokens_of(self, scores: Sequence[Score]) -> list[dict[str, Any]]:
        """Return scores as OpenAI has them: each token with its bytes and log-probability, and the likeliest beside."""

        def entry(token: int, logprob: float) -> dict[str, Any]:
            layout = self.pipeline.model.config.layout
            local = token - layout.offsets[self.host]
            is_text = 0 <= local < self.pipeline.codecs[self.host].vocab_size
            text = self._text_of(np.array([local])) if is_text else layout.name_of(token)
            return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": list(text.encode())}

        return [entry(s.id, s.logprob) | {"top_logprobs": [entry(*t) for t in s.top]} for s in scores]

    async def decoded(self, parts: Sequence[Part]) -> list[MediaPart]:
        """Return parts as media."""
        return await self.with_codecs(self.pipeline.decode, parts)


def _keep_to_one_thread() -> None:
    """Have this thread compute by itself.

    Each thread that computes in parallel has a pool of OpenMP of its own, and with more threads than cores all of these
    sleep between products where they would wait awake: the engine then takes an eighth longer (docs/experiments.md).
    """
    torch.get_num_threads()  # a thread takes the common number at its first question, and keeps what is set after it
    torch.set_num_threads(1)


class Answers:
    """The answers to one request while they are made: `async with answers: async for index, event in answers`.

    Whoever leaves the block, by a client that is gone or an error, lets the jobs go.
    """

    def __init__(self, service: Service, seed: int, timeout: float):
        self.seed, self._service = seed, service
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()
        self._deadline = self._loop.time() + timeout
        self._jobs: list[Job] = []
        self._left: set[int] = set()
        self.prompt_tokens = 0
        self.given: list[MediaPart] = []
        """The prompt as media, where items of the answer are shown among them."""

    def deliver_to(self, index: int) -> Callable[[Event], None]:
        """Return what the engine's thread calls with the events of one answer."""

        def deliver(event: Event) -> None:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, event))

        return deliver

    def begin(self, jobs: list[Job]) -> None:
        """Hand the jobs to the scheduler."""
        self._service.scheduler.submit(jobs)
        self._jobs, self._left = jobs, set(range(len(jobs)))
        self.prompt_tokens = sum(len(part) for part in jobs[0].request.prompt)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for index in self._left:
            self._service.scheduler.cancel(self._jobs[index])

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        while self._left:
            try:
                async with asyncio.timeout_at(self._deadline):
                    index, event = await self._queue.get()
            except TimeoutError:
                raise TimedOut from None
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Ended):
                self._left.discard(index)
            yield index, event

    async def all(self) -> list[Ended]:
        """Return how all answers ended."""
        ended = {index: event async for index, event in self if isinstance(event, Ended)}
        return [ended[i] for i in range(len(self._jobs))]
