"""The page to play with, at /, and the samples of the run that it shows."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import FileResponse, JSONResponse, Response

from plait.codecs import Codec
from plait.common.errors import PlaitError
from plait.serve.media import PLAIN_KINDS, data_uri
from plait.serve.refusals import Refused
from plait.serve.service import Service
from plait.train.metrics import read_jsonl
from plait.web.html import TEMPLATES

HERE = Path(__file__).parent / "templates"
FILES = {"/": HERE / "playground.html", "/style.css": TEMPLATES / "style.css"}
FILES |= {f"/{name}": HERE / name for name in ("playground.css", "clips.js", "playground.js")}
ITEMS = "/items.js"
"""What shows items that the page cannot show by itself, of the codecs that are loaded."""
PAGES = (*FILES, ITEMS)
"""What anybody may ask for."""
POLICY = ("default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
          "connect-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")  # fmt: skip
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
           "Cache-Control": "no-cache"}  # fmt: skip
MOST_SAMPLES = 24


def add_page(app: FastAPI, services: Callable[[], Mapping[str, Service]], run: Path | None) -> None:
    """Add the page and its files to an application; ``services()`` returns the models that are loaded."""
    for path, file in FILES.items():
        app.add_api_route(path, _sender(file), include_in_schema=False)

    @app.get("/samples", include_in_schema=False)
    async def samples() -> Response:
        """Return samples of the run's evaluation, files as data: addresses, and the script that shows more of them."""
        first, *others = services().values()
        shown = await first.with_codecs(gallery, run, first.pipeline.codecs) if run else []
        return JSONResponse({"samples": shown, "script": ITEMS.lstrip("/") if _scripts([first, *others]) else None})

    @app.get(ITEMS, include_in_schema=False)
    async def items() -> Response:
        scripts = _scripts(services().values())
        if not scripts:
            raise Refused(404, "the models that are loaded need no script to show their items")
        return Response("\n".join(scripts), media_type="text/javascript", headers=HEADERS)


def _scripts(services: Iterable[Service]) -> list[str]:
    """Return what shows items of the models' codecs, each script once."""
    codecs = [codec for service in services for codec in service.pipeline.codecs.values()]
    return list(dict.fromkeys(script for codec in codecs for script in codec.page_scripts()))


def _sender(file: Path) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return FileResponse(file, headers=HEADERS)

    return send


def gallery(run: Path, codecs: Mapping[str, Codec]) -> list[dict[str, Any]]:
    """Return samples of a run's report ({prompt, output}, each a list of {kind, text or url, name, html}), of all tasks
    in turn."""
    path = run / "samples" / "samples.jsonl"
    by_task: dict[str, list[dict[str, Any]]] = {}
    for record in read_jsonl(path) if path.is_file() else []:
        if not record["task"].endswith("free"):
            by_task.setdefault(record["task"], []).append(record)
    # each task shows other documents, so that nothing stands there twice
    tasks = list(by_task.values())
    rows = max(1, min(map(len, tasks)) // len(tasks)) if tasks else 0
    turns = [records[(len(tasks) * i + k) % len(records)] for i in range(rows) for k, records in enumerate(tasks)]
    return [
        {side: [_shown(part, record, path.parent, codecs) for part in record[side]] for side in ("prompt", "output")}
        for record in turns[:MOST_SAMPLES]
    ]


def _shown(part: dict[str, str], record: dict[str, Any], folder: Path, codecs: Mapping[str, Codec]) -> dict[str, str]:
    codec = codecs.get(part["modality"])
    kind = codec.kind if codec else part["modality"]
    if "text" in part:
        return {"kind": kind, "text": part["text"]}
    file = folder / part["file"]
    shown = {"kind": kind, "url": data_uri(file.read_bytes(), file.name)}
    if codec is None or kind in PLAIN_KINDS:
        return shown
    shown["name"] = file.name
    others = [p for p in (*record["prompt"], *record["output"]) if p is not part and "file" in p]
    try:
        read = [(codecs[p["modality"]].kind, codecs[p["modality"]].read(p["file"], folder)) for p in others]
        return shown | {"html": codec.to_html_among(codec.read(part["file"], folder), read)}
    except (PlaitError, OSError, ValueError, KeyError):
        return shown  # written by another codec, or cut short: its name says so
