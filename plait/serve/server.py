"""`plait serve`: the application under uvicorn, until a signal asks it to end."""

import contextlib
import logging
import signal
import socket
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Mapping
from pathlib import Path

from plait.common.errors import ConfigError, DataError, ResourceError, first_line

try:
    import uvicorn

    from plait.serve.app import Load, create_app
    from plait.serve.service import Limits
except ImportError as error:
    raise ResourceError(
        f"serve: package {error.name!r} is not installed, install it: pip install 'plait[serve]'"
    ) from None

LOG = logging.getLogger("plait")
LOCAL = ("127.0.0.1", "localhost", "::1")


def read_key(path: str) -> str:
    """Return the API key that a file holds; "" for no file."""
    if not path:
        return ""
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise DataError(f"--api-key-file: there is no file {path!r}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--api-key-file: {path!r} cannot be read ({error})") from None
    if not key or not key.isascii() or len(key.split()) != 1:
        raise ConfigError(f"--api-key-file: {path!r} must hold one line of ASCII, the key, without spaces")
    return key


def serve(
    models: Mapping[str, Load], *, host: str, port: int, key: str, limits: Limits, run: Path | None = None,
    browse: bool = False,
) -> None:  # fmt: skip
    """Serve models until SIGTERM or SIGINT; answers under way are finished first, a second signal ends at once.

    ``browse`` opens the page to play with in a browser.
    """
    server: uvicorn.Server | None = None

    def stop() -> None:
        if server is not None:
            server.should_exit = True

    logging.getLogger("asyncio").setLevel(logging.ERROR)  # which warns of every client that left
    app = create_app(models, limits=limits, key=key, run=run, on_failed=stop)
    config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=30, backlog=2048)
    server = uvicorn.Server(config)
    listening = listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    LOG.info("serving %s at %s", " and ".join(models), address)
    if host not in LOCAL and not key:
        LOG.warning("anybody who can reach %s may use this server; --api-key-file asks for a key", host)
    if browse:
        threading.Thread(target=_browse, args=(address,), daemon=True).start()
    # uvicorn ends gently at a signal, and then sends it again to whoever would have had it
    signal.signal(signal.SIGTERM, lambda *_: None)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
    if app.state.loaded.error is not None:
        raise app.state.loaded.error


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address. Raises ResourceError where that cannot be had."""
    # asyncio sends at once, without waiting for the client's receipts, on sockets that say themselves that they are TCP
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ResourceError(
            f"--port: {port} at {host!r} cannot be used ({first_line(error)}); choose another one, or --host"
        ) from None
    return listening


def _browse(address: str) -> None:
    """Open the page once the models are loaded."""
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                webbrowser.open(address)
                return
        except OSError:  # not there yet
            time.sleep(0.5)
