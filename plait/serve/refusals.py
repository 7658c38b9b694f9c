"""How a server says no: one sentence in OpenAI's form, with the status that fits."""

from typing import Any

from pydantic import ValidationError

from plait.common.errors import ConfigError, DataError, PlaitError, nearest, shown
from plait.serve.scheduler import Closed, QueueFull
from plait.serve.service import TimedOut

RETRY_SECONDS = 1


class Refused(Exception):
    """A request that is refused with its own status."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def error_of(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return the status and OpenAI's error object of whatever went wrong."""
    if isinstance(error, Refused):
        return error.status, _object(str(error), error.status, param=error.param, code=error.code)
    if isinstance(error, ValidationError):
        message, param = sentence_of(error.errors())
        return 400, _object(message, 400, param=param)
    if isinstance(error, QueueFull):
        return 429, _object("the queue is full, try again later", 429, code="queue_full")
    if isinstance(error, Closed):
        return 503, _object("the server is shutting down", 503)
    if isinstance(error, TimedOut):
        return 504, _object("the answer took longer than the server's time limit (--timeout)", 504, code="timeout")
    if isinstance(error, ConfigError | DataError):
        return 400, _object(str(error), 400)
    if isinstance(error, PlaitError):
        return 503, _object(str(error), 503)
    return 500, _object(f"the server failed ({type(error).__name__}); its log says more", 500)


def sentence_of(errors: Any, *, known: Any = ()) -> tuple[str, str]:
    """Return one sentence about the first error of a validation, and the field's name."""
    first = errors[0]
    place = [str(p) for p in first["loc"] if p not in ("body", "query")]
    # pydantic puts the chosen member of a union into the place
    field = ".".join(p for p in place if p not in ("text", "image_url-item", "str") or p == place[-1]) or "body"
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown field, take it out{nearest(place[-1], known)}", field
    if first["type"] == "missing":
        return f"{field}: it is missing, it must be given", field
    if first["type"] == "json_invalid":
        return "body: it is no JSON", "body"
    value = shown(first.get("input"))
    value = value if len(value) <= 100 else f"{value[:97]}..."
    return f"{field}: {value} is not allowed ({first['msg'][:1].lower()}{first['msg'][1:]})", field


def _object(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    if param is None and ": " in message:
        word = message.split(": ", 1)[0]
        param = word if word.replace(".", "").replace("_", "").isalnum() else None
    return {"message": message, "type": kind, "param": param, "code": code}
