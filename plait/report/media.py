"""Parts of samples as something a page can show: the view is chosen by what a file is, never by its modality.

The page shows images and sound by itself, and any other file as its codec's `to_html_among` does.
"""

import base64
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plait.codecs import Codec
from plait.common.errors import PlaitError

LONGEST_SIDE = 512
"""Larger images are scaled down for the page, in pixels."""
LARGEST_MOVING = 2**21
"""Moving images up to this size are shown as they are, larger ones by their first frame, in bytes."""
LONGEST_CLIP = 30
"""Longer clips are cut for the page, in seconds."""
PIXEL_ART_SIDE = 160
"""Images up to this side are enlarged without smoothing, in pixels."""
WAVE_BARS = 72

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}
CLIPS = {".wav", ".flac", ".ogg", ".mp3"}


class Media:
    """Turns parts ({"modality", "text"} or {"modality", "file"}) into views, with files relative to ``folder``.

    A view is a mapping with ``kind`` (text, image, clip, html, live: HTML that needs a script, file, or missing with
    its ``reason``) and ``modality``. ``codec_of`` returns the codec of a modality, None where there is none. What live
    views need is added to ``scripts``, whose keys are sources.
    """

    def __init__(
        self,
        folder: Path,
        codec_of: Callable[[str], Codec | None] = lambda modality: None,
        scripts: dict[str, None] | None = None,
    ):
        self.folder, self.codec_of, self.scripts = folder, codec_of, {} if scripts is None else scripts
        self._views: dict[tuple[str, ...], dict] = {}
        self._items: dict[str, tuple[str, Any] | None] = {}

    def views(self, parts: Any, before: Any = ()) -> list[dict]:
        """Return the views of a list of parts; one part alone or none is accepted too. ``before`` are the parts that
        stand before them in their document."""
        parts, before = _listed(parts), _listed(before)
        return [self.view(part, [*before, *(p for p in parts if p is not part)]) for part in parts]

    def view(self, part: dict, others: Sequence[dict] = ()) -> dict:
        """Return the view of one part among the other parts of its document."""
        modality = str(part.get("modality", ""))
        if "text" in part:
            return {"kind": "text", "modality": modality, "text": clean(part["text"])}
        name = str(part.get("file", ""))
        key = (name, *(str(other.get("file", "")) for other in others)) if self._looks_around(modality) else (name,)
        if key not in self._views:
            self._views[key] = self._view_file(name, modality, others)
        return self._views[key] | {"modality": modality, "name": name}

    def _looks_around(self, modality: str) -> bool:
        """Say whether a modality's codec shows an item otherwise among others: else these need not be read."""
        codec = self.codec_of(modality)
        return codec is not None and type(codec).to_html_among is not Codec.to_html_among

    def _view_file(self, name: str, modality: str, others: Sequence[dict]) -> dict:
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            return _missing("it lies outside the samples")
        if not path.is_file():
            return _missing("the file is not there" if name else "no file is named")
        suffix = path.suffix.lower()
        if suffix in IMAGES:
            return _image(path)
        if suffix in CLIPS:
            return _clip(path)
        return self._by_codec(name, modality, others) or {"kind": "file", "bytes": path.stat().st_size}

    def _by_codec(self, name: str, modality: str, others: Sequence[dict]) -> dict | None:
        """Return what the codec of a modality makes of a file, None where it cannot."""
        codec, item = self.codec_of(modality), self._item({"modality": modality, "file": name})
        if codec is None or item is None:
            return None  # of another codec, or cut short: its name and size say so
        read = map(self._item, others) if self._looks_around(modality) else ()
        scripts = codec.page_scripts()
        self.scripts.update(dict.fromkeys(scripts))
        return {"kind": "live" if scripts else "html", "html": codec.to_html_among(item[1], [x for x in read if x])}

    def _item(self, part: dict) -> tuple[str, Any] | None:
        """Return kind and item of a part as its codec reads it, None where it cannot."""
        codec = self.codec_of(str(part.get("modality", "")))
        if codec is None or "text" in part:
            return codec and (codec.kind, part["text"])
        name = str(part.get("file", ""))
        if name not in self._items:
            path = (self.folder / name).resolve()
            try:
                inside = path.is_relative_to(self.folder.resolve())
                self._items[name] = (codec.kind, codec.read(path.name, path.parent)) if inside else None
            except (PlaitError, OSError, ValueError):
                self._items[name] = None
        return self._items[name]


def _listed(parts: Any) -> list[dict]:
    return [part for part in ([parts] if isinstance(parts, dict) else parts or []) if isinstance(part, dict)]


def clean(text: Any) -> str:
    """Return text without what HTML or UTF-8 cannot hold: lone surrogates and control characters."""
    text = str(text).encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c >= " " or c in "\n\t" else "�" for c in text)


def data_uri(data: bytes, kind: str) -> str:
    """Return bytes as a data URI of a media type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _missing(reason: str) -> dict:
    return {"kind": "missing", "reason": reason}


def _image(path: Path) -> dict:
    from PIL import Image

    try:
        with Image.open(path) as image:
            moves = getattr(image, "is_animated", False) and path.stat().st_size <= LARGEST_MOVING
            image.load()
            own, kind = image.size, Image.MIME.get(image.format or "", "")
            if image.mode not in ("L", "LA", "RGB", "RGBA", "P", "1"):
                image = image.convert("RGB")
            image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
            buffer = io.BytesIO()
            image.save(buffer, "PNG", optimize=True)
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return _missing("it cannot be read as an image")
    small = max(width, height) <= PIXEL_ART_SIDE
    source = data_uri(path.read_bytes(), kind) if moves else data_uri(buffer.getvalue(), "image/png")
    width, height = own if moves else (width, height)
    return {"kind": "image", "source": source, "width": width, "height": height, "small": small}


def _clip(path: Path) -> dict:
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            rate, seconds = file.samplerate, file.frames / file.samplerate
            samples = file.read(LONGEST_CLIP * rate, dtype="float32", always_2d=True)
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    except (OSError, RuntimeError, ValueError):
        return _missing("it cannot be read as sound")
    if not len(samples):
        return _missing("the clip is empty")
    return {
        "kind": "clip",
        "source": data_uri(buffer.getvalue(), "audio/wav"),
        "seconds": seconds,
        "cut": seconds > LONGEST_CLIP,
        "wave": _wave(abs(samples).max(axis=1)),
    }


def _wave(loudness) -> str:
    """Return the SVG path of a wave form: one vertical bar for each stretch of samples, in a box of 72 by 24."""
    edges = [len(loudness) * i // WAVE_BARS for i in range(WAVE_BARS + 1)]
    peaks = [float(loudness[a:b].max()) if b > a else 0.0 for a, b in itertools.pairwise(edges)]
    loudest = max(peaks) or 1.0
    bars = []
    for i, peak in enumerate(peaks):
        half = max(0.7, 11 * peak / loudest)
        bars.append(f"M{i + 0.5} {12 - half:.1f}V{12 + half:.1f}")
    return "".join(bars)
