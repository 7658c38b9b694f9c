"""Files that a report shows, hostile ones among them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")


ImageDraw = pytest.importorskip("PIL.ImageDraw")


soundfile = pytest.importorskip("soundfile")


CAPTIONS = [
    "a fox left of a red apple on a blue background",
    "a large tulip on a yellow background",
    "a small violin above a teapot",
    "a lighthouse right of a green tree",
    "an octopus on a white background",
    "a snowman below a crescent moon",
]


HOSTILE = '</script><script>console.error("run")</script><img src=x onerror=console.error(1)>'


def write_image(path: Path, kind: int, noise: float):
    """Draw a 32 px scene, and the same one as a small model would make it."""
    ground = [(168, 205, 235), (250, 226, 140), (255, 255, 255), (200, 230, 200), (245, 245, 245), (90, 100, 150)][kind]
    image = Image.new("RGB", (32, 32), ground)
    draw = ImageDraw.Draw(image)
    inks = [(214, 96, 40), (200, 40, 90), (140, 80, 40), (220, 60, 50), (150, 70, 160), (250, 250, 255)]
    draw.ellipse((5 + kind, 7, 19 + kind, 23), fill=inks[kind], outline=(40, 35, 30))
    draw.polygon([(8, 9), (11, 2), (15, 8)], fill=inks[kind])
    draw.rectangle((22, 14 + kind % 3, 28, 24), fill=inks[(kind + 3) % 6], outline=(40, 35, 30))
    pixels = np.asarray(image, np.float32)
    if noise:
        blocks = np.random.default_rng(kind).normal(0, noise, (8, 8, 3)).repeat(4, 0).repeat(4, 1)
        pixels = pixels * 0.9 + np.roll(pixels, 1, 0) * 0.1 + blocks
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def write_clip(path: Path, kind: int, noise: float, seconds: float = 1.6):
    rate = 16000
    t = np.arange(int(rate * (seconds + 0.15 * kind))) / rate
    syllables = np.clip(np.sin(2 * math.pi * (3.1 + 0.2 * kind) * t), 0, 1) ** 0.7
    voice = sum(np.sin(2 * math.pi * (110 + 12 * kind) * n * t) / n for n in range(1, 7))
    rng = np.random.default_rng(kind)
    samples = 0.22 * voice * syllables * np.exp(-t / 3) + noise * rng.normal(size=len(t))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples.clip(-1, 1).astype(np.float32), rate)


def text(words):
    return {"modality": "text", "text": words}


def write_jsonl(path: Path, rows: list[dict]):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
