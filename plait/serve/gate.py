"""What every request passes first: its key, its size, and the time that it takes to come in (pure ASGI)."""

import asyncio
import hmac
import time
from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plait.serve.metrics import Metrics
from plait.serve.refusals import RETRY_SECONDS, Refused, error_of

SECONDS_TO_SEND = 60.0
"""Time that a client has to send its request."""
OPEN = ("/health",)
"""Paths that need no key."""


class Gate:
    """Refuses requests without the key, and larger ones than are taken; counts all."""

    def __init__(self, app: ASGIApp, *, key: str, max_body: int, metrics: Metrics, pages: Sequence[str] = ()):
        self._app, self._key, self._max_body, self._metrics = app, key.encode(), max_body, metrics
        self._open = {*OPEN, *pages}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), [500]

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
            await send(message)

        try:
            self._check_key(scope)
            body = await self._whole(scope, receive)
        except Refused as refusal:
            await refused(refusal)(scope, receive, told)
        else:
            await self._app(scope, body, told)
        finally:
            route = scope.get("route")
            endpoint = getattr(route, "path", "other")
            self._metrics.requests.labels(endpoint, str(status[0])).inc()
            self._metrics.seconds.labels(endpoint).observe(time.monotonic() - began)

    def _check_key(self, scope: Scope) -> None:
        if not self._key or scope["path"] in self._open:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, value = given.partition(b" ")
        if not hmac.compare_digest(value.strip() if kind.lower() == b"bearer" else b"", self._key):
            raise Refused(401, "the API key is missing or wrong, send it as Authorization: Bearer KEY",
                          code="invalid_api_key")  # fmt: skip

    async def _whole(self, scope: Scope, receive: Receive) -> Receive:
        """Read the body, at most as much as is taken, and return what gives it to the application."""
        too_large = Refused(413, f"the body is too large, at most {self._max_body:,} bytes are taken")
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > self._max_body:
            raise too_large
        pieces: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(SECONDS_TO_SEND):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        break
                    pieces.append(message.get("body", b""))
                    size += len(pieces[-1])
                    if size > self._max_body:
                        raise too_large
                    more = message.get("more_body", False)
        except TimeoutError:
            raise Refused(408, "the request took too long to come in") from None
        whole: list[Message] = [{"type": "http.request", "body": b"".join(pieces), "more_body": False}]

        async def body() -> Message:
            return whole.pop() if whole else await receive()

        return body


def refused(error: Exception) -> JSONResponse:
    """Return the answer that says no."""
    status, value = error_of(error)
    headers: dict[str, Any] = {}
    if status in (429, 503):
        headers["Retry-After"] = str(RETRY_SECONDS)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (408, 413):
        headers["Connection"] = "close"
    return JSONResponse({"error": value}, status, headers=headers)
