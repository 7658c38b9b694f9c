"""A page on this machine that shows images as they are made: an endless stream of JPEGs, which any browser plays."""

import contextlib
import html
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

import numpy as np

from plait.common.errors import ConfigError

_BOUNDARY = "frame"
_WAIT = 0.5  # seconds after which a viewer that left is noticed
_PAGE = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>body {{ font: 16px/1.5 Georgia, serif; margin: 8vh auto; max-width: 560px; padding: 0 16px;
color: #222; background: #fbfaf7 }} img {{ width: 100%; image-rendering: auto; border-radius: 6px }}</style>
<h1 style="font-weight: 400">{title}</h1><img alt="{title}, live"><p id="said"></p><script>
addEventListener("load", () => setTimeout(() => document.querySelector("img").src = "/stream"));  // the page has loaded
setInterval(async () => {{ try {{ document.getElementById("said").textContent = await (await fetch("/said")).text() }}
catch {{}} }}, 300)</script>"""


class LivePage:
    """Serves what `show` was given last at http://127.0.0.1:PORT/, as long as it is open; port 0 takes a free one."""

    def __init__(self, title: str, port: int = 0):
        self._title, self._said, self._image, self._number = title, "", b"", 0
        self._changed, self._is_open = threading.Condition(), True
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        except OSError as error:
            raise ConfigError(f"--port: {port} is not allowed, it must be free ({error.strerror})") from None
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def show(self, image: np.ndarray, said: str = "") -> None:
        """Show an image uint8 [H, W, 3], and a line of text below it."""
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=90)
        with self._changed:
            self._image, self._said, self._number = buffer.getvalue(), said, self._number + 1
            self._changed.notify_all()

    def __enter__(self) -> "LivePage":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request: the page, its text, or the stream."""
        if request.path == "/stream":
            self._stream(request)
            return
        known = {"/": ("text/html", _PAGE.format(title=html.escape(self._title))), "/said": ("text/plain", self._said)}
        kind, text = known.get(request.path, ("", ""))
        request.send_response(200 if kind else 404)
        request.send_header("Content-Type", f"{kind or 'text/plain'}; charset=utf-8")
        request.end_headers()
        request.wfile.write(text.encode())

    def _stream(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
        request.end_headers()
        number = 0
        while self._is_open:
            with self._changed:
                if self._number == number:
                    self._changed.wait(_WAIT)
                image, number = self._image, self._number
            if image:
                head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
                request.wfile.write(head.encode() + image + b"\r\n")


def _handler(page: LivePage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the viewer left
                page.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler
