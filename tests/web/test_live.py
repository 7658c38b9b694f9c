"""The page that shows images as they are made: the page, its text, and the stream, as a browser asks for them."""

import io
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from plait.common.errors import ConfigError
from plait.web.live import LivePage


def read(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.read().decode()


def test_what_was_shown_last_is_streamed():
    images = [np.full((32, 48, 3), shade, np.uint8) for shade in (40, 200)]
    with LivePage("robots & cars") as page:
        page.show(images[0], "step 1")
        assert "robots &amp; cars" in read(page.address) and read(f"{page.address}said") == "step 1"
        with urllib.request.urlopen(f"{page.address}stream", timeout=10) as stream:
            for number, image in enumerate(images):
                page.show(image, f"step {number}")
                seen = None
                while seen is None or abs(seen.mean() - image.mean()) > 3:  # the one before it may come once more
                    assert stream.readline() == b"--frame\r\n"
                    assert stream.readline() == b"Content-Type: image/jpeg\r\n"
                    length = int(stream.readline().split()[1])
                    stream.readline()
                    seen = np.asarray(Image.open(io.BytesIO(stream.read(length))))
                    assert stream.readline() == b"\r\n" and seen.shape == image.shape
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        read(page.address)


def test_other_paths_and_a_port_that_is_taken():
    with LivePage("one") as page:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            read(f"{page.address}other")
        port = int(page.address.rstrip("/").rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"--port: {port} is not allowed, it must be free"):
            LivePage("two", port)


def test_a_browser_shows_it(browser):
    """Chromium decodes the stream: the image has its own size, and the text stands below it."""
    with LivePage("robot") as page:
        page.show(np.full((60, 80, 3), 128, np.uint8), "open a drawer, step 3")
        browser.open(page.address)
        browser.until("document.querySelector('img').naturalWidth == 80")
        browser.until("document.getElementById('said').textContent.includes('step 3')")
        browser.open("about:blank")  # while there is a stream to end
