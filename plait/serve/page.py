"""The page to play with, at /, and the samples of the run that it shows."""

import mimetypes
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import FileResponse, JSONResponse, Response

from plait.serve.media import base64_of
from plait.train.metrics import read_jsonl
from plait.web.html import TEMPLATES

HERE = Path(__file__).parent / "templates"
FILES = {"/": HERE / "playground.html", "/style.css": TEMPLATES / "style.css"}
FILES |= {f"/{name}": HERE / name for name in ("playground.css", "clips.js", "playground.js")}
POLICY = ("default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
          "connect-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")  # fmt: skip
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
           "Cache-Control": "no-cache"}  # fmt: skip
MOST_SAMPLES = 24


def add_page(app: FastAPI, kinds: Callable[[], dict[str, str]], run: Path | None) -> None:
    """Add the page and its files to an application; ``kinds()`` says of which kind each modality is."""
    for path, file in FILES.items():
        app.add_api_route(path, _sender(file), include_in_schema=False)

    @app.get("/samples", include_in_schema=False)
    async def samples() -> Response:
        """Return samples of the run's evaluation, files as data: addresses."""
        return JSONResponse({"samples": gallery(run, kinds()) if run else []})


def _sender(file: Path) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return FileResponse(file, headers=HEADERS)

    return send


def gallery(run: Path, kinds: dict[str, str]) -> list[dict[str, Any]]:
    """Return samples of a run's report ({prompt, output}, each a list of {kind, text or url}), of all tasks in turn."""
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
        {side: [_shown(part, path.parent, kinds) for part in record[side]] for side in ("prompt", "output")}
        for record in turns[:MOST_SAMPLES]
    ]


def _shown(part: dict[str, str], folder: Path, kinds: dict[str, str]) -> dict[str, str]:
    kind = kinds.get(part["modality"], part["modality"])
    if "text" in part:
        return {"kind": kind, "text": part["text"]}
    file = folder / part["file"]
    media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return {"kind": kind, "url": f"data:{media_type};base64,{base64_of(file.read_bytes())}"}
