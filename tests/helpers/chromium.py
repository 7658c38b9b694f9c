"""A real browser for tests of pages, without any package: Chromium's debugging protocol over a pipe."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SOFTWARE_WEBGL = "--enable-unsafe-swiftshader --use-angle=swiftshader"


class Browser:
    """A headless Chromium, spoken to over its debugging pipe (file descriptors 3 and 4)."""

    def __init__(self, program: str, folder: Path, *, webgl: bool = False):
        to_child, self.write = os.pipe()
        self.read, from_child = os.pipe()
        flags = (
            f"--headless --no-sandbox {SOFTWARE_WEBGL if webgl else '--disable-gpu'} --disable-quic --no-first-run "
            "--disable-background-networking --disable-component-update --disable-sync --disable-dev-shm-usage "
            "--hide-scrollbars --remote-debugging-pipe "
            # a microphone that beeps, and that pages may hear
            "--use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
        )
        command = f'exec "$0" {flags} --user-data-dir="$1" about:blank 3<&{to_child} 4>&{from_child}'
        self.process = subprocess.Popen(
            ["bash", "-c", command, program, str(folder)],
            pass_fds=(to_child, from_child),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self.buffer, self.number, self.events = b"", 0, []
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                chunk = os.read(self.read, 1 << 20)
                assert chunk, "Chromium went away"
                self.buffer += chunk
            line, _, self.buffer = self.buffer.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def run(self, script: str):
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, page: Path | str, width: int = 1280, dark: bool = False, calm: bool = False):
        """Open a file, or an address. ``calm`` asks for no movement."""
        self.events.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"}
        self.call("Emulation.setEmulatedMedia", features=[scheme, motion])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        self.run(
            """new Promise(done => document.readyState === "complete" ? done() : addEventListener("load", done))"""
        )

    def until(self, condition: str, seconds: float = 30.0):
        """Wait for a condition of the page, and return its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.run(condition):
                return value
            time.sleep(0.03)
        raise AssertionError(f"never true: {condition}; the page says {self.run('document.body.innerText')[:2000]}")

    def drag(self, selector: str, across: int, down: int = 0):
        """Drag an element with the mouse, from its middle, by some pixels."""
        x, y = self.run(f"""(() => {{ const node = document.querySelector({json.dumps(selector)});
            node.scrollIntoView({{block: "center", behavior: "instant"}}); const b = node.getBoundingClientRect();
            return [b.left + b.width / 2, b.top + b.height / 2]; }})()""")
        for kind, move in (("mousePressed", 0), ("mouseMoved", 0.5), ("mouseMoved", 1), ("mouseReleased", 1)):
            self.call("Input.dispatchMouseEvent", type=kind, x=x + move * across, y=y + move * down, button="left",
                      buttons=1, clickCount=1)  # fmt: skip

    def choose(self, selector: str, file: Path):
        """Choose a file in an input."""
        document = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def problems(self, *own: str) -> list[str]:
        """Return console errors and warnings, uncaught exceptions and requests to anywhere but this page.

        ``own`` are beginnings of addresses that the page may call.
        """
        self.run("new Promise(done => setTimeout(done, 300))")
        found = []
        for event in self.events:
            params, method = event.get("params", {}), event.get("method")
            if method == "Runtime.exceptionThrown" or (
                method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning")
            ):
                found.append(json.dumps(params))
            if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
            if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(
                ("data:", "file:", "blob:", *own)
            ):
                found.append(params["request"]["url"])
        return found

    def screenshot(self, path: Path):
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        with contextlib.suppress(OSError):
            self.call("Browser.close")
        os.close(self.write)
        os.close(self.read)
        self.process.wait(timeout=30)


@contextlib.contextmanager
def webgl_browser() -> Iterator[Browser]:
    """Give a headless Chromium that draws WebGL without a graphics card; skip the test where there is no Chromium."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine (for example: apt-get install chromium)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(program, Path(folder), webgl=True)
        yield browser
        browser.close()
