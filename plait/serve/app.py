"""The application: OpenAI's endpoints over one model, its health, its figures, and the page to play with."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from plait.common.errors import PlaitError
from plait.generate.pipeline import Pipeline
from plait.serve import media_api
from plait.serve.chat_api import start_chat, stream_chat, whole_chat
from plait.serve.gate import Gate, refused
from plait.serve.metrics import Metrics
from plait.serve.page import PAGES, add_page
from plait.serve.protocol import ChatRequest, EditFields, ImageRequest, Sampling, SpeechRequest, TranscriptionFields
from plait.serve.refusals import Refused, error_of, sentence_of
from plait.serve.service import Answers, Limits, Service

LOG = logging.getLogger("plait.serve")
T = TypeVar("T")
SECONDS_BETWEEN_LOOKS = 0.1
"""How often it is looked whether a client is still there."""
GONE = 499
"""Status of an answer whose client left, as nginx has it; nobody reads it."""


class Loaded:
    """The models of a server: not there at first, then there, or failed."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.is_ready = False
        self.error: Exception | None = None

    def now(self) -> dict[str, Service]:
        """Return the services by name, the default first. Raises Refused while models are loading."""
        if not self.is_ready:
            raise Refused(503, "the model is loading, try again in a moment", code="loading")
        return self.services

    def for_model(self, name: str) -> Service:
        """Return the service of the model that a request names; "" is the first."""
        services = self.now()
        name = name or next(iter(services))
        if name not in services:
            names = " or ".join(map(repr, services))
            raise Refused(404, f"model: {name[:100]!r} is not served here, it must be {names}",
                          param="model", code="model_not_found")  # fmt: skip
        return services[name]


Load = Callable[[], Pipeline]
"""Returns a model with its codecs."""


def create_app(
    models: Mapping[str, Load], *, limits: Limits | None = None, key: str = "", run: Path | None = None,
    on_failed: Callable[[], None] = lambda: None,
) -> FastAPI:  # fmt: skip
    """Return the application for models by their names, which are loaded when the server starts, in a thread.

    ``key``: what clients have to send; "" lets everybody in. ``run``: the folder whose samples the page shows.
    ``on_failed`` is called where loading failed, with the reason in `app.state.loaded.error`.
    """
    limits, metrics, loaded = limits or Limits(), Metrics(), Loaded()

    def load_now() -> None:
        try:
            for name, load in models.items():
                pipeline = load()
                service = Service(name, pipeline, limits, metrics)
                adapters = filter(None, pipeline.model.adapters.names)
                loaded.services |= {name: service} | {adapter: service.with_adapter(adapter) for adapter in adapters}
            loaded.is_ready = True
        except Exception as error:
            loaded.error = error
            on_failed()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = ThreadPoolExecutor(1, "plait-load")
        task = asyncio.get_running_loop().run_in_executor(loading, load_now)
        loading.shutdown(wait=False)  # once it has loaded the thread ends, and its pool of OpenMP with it: see Service
        yield
        await task
        for service in loaded.services.values():
            await asyncio.to_thread(service.close)

    app = FastAPI(title="plait", description=__doc__, lifespan=lifespan, docs_url="/docs", redoc_url=None)
    app.state.loaded = loaded
    app.add_middleware(Gate, key=key, max_body=limits.max_body, metrics=metrics, pages=PAGES)
    _add_handlers(app)
    _add_state(app, loaded, metrics)
    _add_endpoints(app, loaded)
    add_page(app, loaded.now, run)
    return app


def _add_handlers(app: FastAPI) -> None:
    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        body = request.scope["route"].body_field if "route" in request.scope else None
        known = getattr(getattr(body, "field_info", None), "annotation", None)
        message, param = sentence_of(error.errors(), known=getattr(known, "model_fields", ()))
        return refused(Refused(400, message, param=param))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = {404: f"there is no {request.url.path}", 405: f"{request.method} is not allowed here"}
        return refused(Refused(error.status_code, what.get(error.status_code, str(error.detail))))

    async def failed(request: Request, error: Exception) -> Response:
        return refused(error)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    for kind in (Refused, PlaitError):
        app.add_exception_handler(kind, failed)


def _add_state(app: FastAPI, loaded: Loaded, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> Response:
        """Say whether the model is loaded: 200, or 503 until it is."""
        if not loaded.is_ready:
            return JSONResponse({"status": "loading"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def figures() -> Response:
        """Return figures for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> Response:
        """Say which models are served, and what they read and make."""
        return JSONResponse({"object": "list", "data": [_about(service) for service in loaded.now().values()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """Say what a model is."""
        service = loaded.for_model(name)
        return JSONResponse(_about(service))


def _about(service: Service) -> dict[str, Any]:
    codecs = service.pipeline.codecs
    reads = sorted({codec.kind for codec in codecs.values()}, key=_order)
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "plait",
            "input_modalities": reads, "output_modalities": sorted(service.kinds, key=_order),
            "makes_edits": service.pipeline.makes_edits, "denoises": service.denoises}  # fmt: skip


def _order(kind: str) -> tuple[int, str]:
    """Return where a kind of media stands in a list."""
    known = ("text", "image", "audio")
    return known.index(kind) if kind in known else len(known), kind


def _add_endpoints(app: FastAPI, loaded: Loaded) -> None:
    @app.post("/v1/chat/completions")
    async def chat(fields: ChatRequest, request: Request) -> Response:
        """Answer a conversation in text, images or sound, whole or as a stream."""
        service = loaded.for_model(fields.model)
        answers = await begun(start_chat(service, fields))
        if fields.stream:
            return stream_chat(service, fields, answers)
        return await answered(request, answers, whole_chat(service, fields, answers))

    @app.post("/v1/images/generations")
    async def images(fields: ImageRequest, request: Request) -> Response:
        """Make images from a text."""
        service = loaded.for_model(fields.model)
        answers = await begun(media_api.start_images(service, fields, []))
        return await answered(request, answers, media_api.images(service, fields, answers))

    @app.post("/v1/images/edits", openapi_extra=_form(EditFields, "image"))
    async def edits(request: Request) -> Response:
        """Make images from images and a text."""
        fields, given = await begun(media_api.edit_form(request))
        service = loaded.for_model(fields.model)
        answers = await begun(media_api.start_edit(service, fields, given))
        return await answered(request, answers, media_api.images(service, fields, answers))

    @app.post("/v1/audio/speech")
    async def speech(fields: SpeechRequest, request: Request) -> Response:
        """Speak a text."""
        service = loaded.for_model(fields.model)
        answers = await begun(media_api.start_speech(service, fields))
        return await answered(request, answers, media_api.speech(service, fields, answers))

    @app.post("/v1/audio/transcriptions", openapi_extra=_form(TranscriptionFields, "file"))
    async def transcriptions(request: Request) -> Response:
        """Write down a recording."""
        fields, given = await begun(media_api.transcription_form(request))
        service = loaded.for_model(fields.model)
        answers = await begun(media_api.start_transcription(service, fields, given))
        return await answered(request, answers, media_api.transcription(service, fields, answers))


async def begun(starting: Awaitable[T]) -> T:
    """Return what starting an answer returns; whatever goes wrong there becomes a refusal with its status."""
    try:
        return await starting
    except (PlaitError, Refused, HTTPException):
        raise
    except Exception as error:
        status, value = error_of(error)
        if status == 500:
            LOG.exception("a request failed")
        raise Refused(status, value["message"], param=value["param"], code=value["code"]) from error


async def answered(request: Request, answers: Answers, making: Coroutine[Any, Any, Response]) -> Response:
    """Return an answer, unless its client leaves before it is there: then its row is free at the next step."""
    task, gone = asyncio.create_task(making), asyncio.create_task(_until_gone(request))
    async with answers:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not task.done():
            task.cancel()
            return Response(status_code=GONE)
        return await begun(task)


async def _until_gone(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


def _form(record: type[Sampling], file: str) -> dict[str, Any]:
    """Return what OpenAPI says of a form with a file."""
    schema = record.model_json_schema()
    schema["properties"][file] = {"type": "string", "format": "binary"}
    schema["required"] = [*schema.get("required", []), file]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
