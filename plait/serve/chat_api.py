"""POST /v1/chat/completions: a whole answer, or a stream of pieces."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from plait.codecs import Encoded
from plait.common.errors import require
from plait.generate.prompts import MediaPart
from plait.generate.request import Score
from plait.serve.jobs import Ended, Item, Preview, TextPiece
from plait.serve.media import content_part
from plait.serve.protocol import ChatRequest
from plait.serve.refusals import error_of
from plait.serve.service import Answers, Service

AUDIO_SECONDS = 3600
"""How long OpenAI's clients may refer to a recording by its id; here nothing is kept."""


async def start_chat(service: Service, fields: ChatRequest) -> Answers:
    """Read a conversation and begin to answer it."""
    output = service.output(fields.modalities)
    require(fields.stream or not fields.previews, "previews", fields.previews, "left out unless stream is true")
    require(fields.top_logprobs is None or bool(fields.logprobs), "top_logprobs", fields.top_logprobs,
            "left out unless logprobs is true")  # fmt: skip
    require(fields.stream or fields.stream_options is None, "stream_options", {}, "left out unless stream is true")
    given, prompt = await service.read_chat(fields.messages)
    stops = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    answers = service.start(prompt, output, fields, n=fields.n, stops=stops, streams=fields.stream,
                            max_tokens=fields.max_completion_tokens or fields.max_tokens,
                            previews=fields.previews,
                            logprobs=(fields.top_logprobs or 0) if fields.logprobs else None)  # fmt: skip
    answers.given = given
    return answers


async def whole_chat(service: Service, fields: ChatRequest, answers: Answers) -> Response:
    """Return the answers once all of them are there."""
    contents: list[list[dict[str, Any]]] = [[] for _ in range(fields.n)]
    made = _Items(service, fields, answers)
    ends: dict[int, Ended] = {}
    scores: list[list[Score]] = [[] for _ in range(fields.n)]
    async for index, event in answers:
        content = contents[index]
        if isinstance(event, TextPiece):
            scores[index] += event.scores
            if not content or content[-1]["type"] != "text":
                content.append({"type": "text", "text": ""})
            content[-1]["text"] += event.text
        elif isinstance(event, Item):
            content.append(await made.item(index, event))
        elif isinstance(event, Ended):
            ends[index] = event
    choices = [
        {
            "index": i,
            "message": _message(contents[i]),
            "finish_reason": ends[i].reason,
            "logprobs": _logprobs(service, fields, scores[i]),
        }
        for i in range(fields.n)
    ]
    head = _head(service, answers, "chat.completion")
    return JSONResponse(head | {"choices": choices, "usage": _usage(answers, ends)})


class _Items:
    """Turns what answers make into parts of messages, each among those of its own document."""

    def __init__(self, service: Service, fields: ChatRequest, answers: Answers):
        self.service, self.html = service, fields.html
        self.sound = fields.audio.format if fields.audio else "wav"
        self.documents: list[list[MediaPart]] = [list(answers.given) for _ in range(fields.n)]

    async def item(self, index: int, event: Item | Preview) -> dict[str, Any]:
        """Return a part of the content of one answer."""
        ((name, media),) = await self.service.decoded([event.part])
        codecs = self.service.pipeline.codecs
        others = [(codecs[n].kind, item) for n, item in self.documents[index] if not isinstance(item, Encoded)]
        if isinstance(event, Item):
            self.documents[index].append((name, media))
        return await self.service.with_codecs(
            lambda: content_part(codecs[name], media, sound=self.sound, others=others, html=self.html)
        )

    async def segment(self, index: int, event: Item | Preview) -> dict[str, Any]:
        """Return an item as a stream has it: its kind, its data in base64 and their format."""
        item = await self.item(index, event)
        more = {"preview": True, "level": round(event.level, 4)} if isinstance(event, Preview) else {}
        if item["type"] == "image_url":
            data = item["image_url"]["url"].partition(",")[2]
            return {"kind": "image", "format": "png", "data": data} | more
        if item["type"] == "audio":
            return {"kind": "audio"} | item["audio"] | more
        if item["type"] == "file":
            kind, _, suffix = item["file"]["filename"].rpartition(".")
            data = item["file"]["file_data"].partition(",")[2]
            return {"kind": kind, "format": suffix, "data": data} | {k: item[k] for k in ("html",) if k in item} | more
        return {"kind": "text", "data": item["text"]} | more


def _message(content: list[dict[str, Any]]) -> dict[str, Any]:
    """Return an answer as a message: text alone as a string, else its parts in order; OpenAI's `audio` besides."""
    if all(item["type"] == "text" for item in content):
        return {"role": "assistant", "content": "".join(item["text"] for item in content)}
    message: dict[str, Any] = {"role": "assistant", "content": content}
    sounds = [item["audio"] for item in content if item["type"] == "audio"]
    if len(sounds) == 1:
        message["audio"] = {"id": f"audio-{uuid.uuid4().hex}", "data": sounds[0]["data"], "transcript": "",
                            "expires_at": int(time.time()) + AUDIO_SECONDS}  # fmt: skip
    return message


def stream_chat(service: Service, fields: ChatRequest, answers: Answers) -> Response:
    """Return the answers piece by piece, as server-sent events.

    Text comes as `delta.content`. An item comes whole as `delta.segment` ({index, kind, data, format}, and html where
    it is asked for), and on its way from noise as one with `preview` and its `level`.
    """
    return _Stream(answers, _events(service, fields, answers))


class _Stream(StreamingResponse):
    """Server-sent events of answers, which are let go when the client is."""

    def __init__(self, answers: Answers, events: AsyncIterator[bytes]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._answers:
            await super().__call__(scope, receive, send)


async def _events(service: Service, fields: ChatRequest, answers: Answers) -> AsyncIterator[bytes]:
    head = _head(service, answers, "chat.completion.chunk")
    numbers = [0] * fields.n
    made = _Items(service, fields, answers)
    ends: dict[int, Ended] = {}
    for index in range(fields.n):
        yield _chunk(head, index, {"role": "assistant", "content": ""})
    try:
        async for index, event in answers:
            if isinstance(event, TextPiece):
                logprobs = _logprobs(service, fields, event.scores)
                yield _chunk(head, index, {"content": event.text}, logprobs=logprobs)
            elif isinstance(event, Item | Preview):
                segment = await made.segment(index, event)
                yield _chunk(head, index, {"segment": segment | {"index": numbers[index]}})
                numbers[index] += isinstance(event, Item)
            else:
                assert isinstance(event, Ended)
                ends[index] = event
                yield _chunk(head, index, {}, event.reason)
    except Exception as error:  # the status was sent: the stream says it
        yield _event({"error": error_of(error)[1]})
        return
    if fields.stream_options and fields.stream_options.include_usage:
        yield _event(head | {"choices": [], "usage": _usage(answers, ends)})
    yield b"data: [DONE]\n\n"


def _head(service: Service, answers: Answers, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": service.name,
            "seed": answers.seed}  # fmt: skip


def _usage(answers: Answers, ends: dict[int, Ended]) -> dict[str, int]:
    made = sum(sum(len(part) for part in end.result.parts) for end in ends.values())
    return {"prompt_tokens": answers.prompt_tokens, "completion_tokens": made,
            "total_tokens": answers.prompt_tokens + made}  # fmt: skip


def _logprobs(service: Service, fields: ChatRequest, scores: Sequence[Score]) -> dict[str, Any] | None:
    return {"content": service.tokens_of(scores), "refusal": None} if fields.logprobs else None


def _chunk(
    head: dict[str, Any], index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None
) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
    return _event(head | {"choices": [choice]})


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()
