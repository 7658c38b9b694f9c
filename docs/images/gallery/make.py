"""Make the gallery's images from trained runs, with seed 0 and nothing chosen: `python docs/images/gallery/make.py`.

A run that is not there leaves its images as they are: `plait quickstart` makes the first, with `--setting worlds`,
`--setting robot` and `--config driving` the others. `gallery.gif`, README's, is made of all that is there.
"""

import argparse
import functools
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import plait
from plait.codecs.animation import frames_of
from plait.codecs.views import view_cells
from plait.data.sources import open_sources
from plait.generate.actor import Actor
from plait.prepare.video import pyav
from plait.robots.metaworld_tasks import SENTENCES
from plait.run.load import load_run, run_config
from plait.run.rollout import trials_of

FOLDER = Path(__file__).parent
FONTS = Path(matplotlib.get_data_path()) / "fonts/ttf"
SIZE, GAP, LINE = 232, 14, 17
INK, QUIET, PAPER = "#1e293b", "#64748b", "#ffffff"
FRAMES, RATE = 36, 10
"""Of a film, and per second."""
DONE = ["door-open-v3", "drawer-open-v3", "faucet-close-v3", "window-close-v3"]

SHOWN = 4
"""Scenes and motions; twice as many images."""

Film = Sequence[np.ndarray]
"""Images uint8 [H, W, 3]."""
Panel = tuple[str, Film]
"""What is written below a film, and the film."""


def held_out(run: Path, pipeline: plait.Pipeline, split: str, count: int, number: int) -> list[list[tuple[str, Any]]]:
    """Return the first parts of the first documents that training never showed, each its kind and the item."""
    (source,) = open_sources(run_config(run), split)
    parts = [source.document(place).parts[:number] for place in range(count)]
    media = iter(pipeline.decode([part for document in parts for part in document]))
    return [list(itertools.islice(media, number)) for _ in range(count)]


def drawn(run: Path) -> list[Panel]:
    """Return images of captions, and what the model says of each image it made."""
    pipeline = plait.load(run)
    asked = [words for ((_, words),) in held_out(run, pipeline, "unseen_grounds", 2 * SHOWN, 1)]
    images = [sample.output[0][1] for sample in pipeline.generate(asked, output="image")]
    said = [sample.output[0][1] for sample in pipeline.generate([{"image": image} for image in images], output="text")]
    return [(f"{words}\n→ “{caption}”", [image]) for words, image, caption in zip(asked, images, said, strict=True)]


def built(run: Path) -> list[Panel]:
    """Return scenes of captions, turning once."""
    pipeline = plait.load(run)
    asked = [words for ((_, words),) in held_out(run, pipeline, "unseen_combinations", SHOWN, 1)]
    scenes = [sample.output[0][1] for sample in pipeline.generate(asked, output="scene3d")]
    turns = np.linspace(0, 360, FRAMES, endpoint=False)
    films = [[view_cells(scene, SIZE, turn=turn) for turn in turns] for scene in scenes]
    return list(zip(asked, films, strict=True))


def moved(run: Path) -> list[Panel]:
    """Return motions of captions and scenes."""
    pipeline = plait.load(run)
    given = held_out(run, pipeline, "unseen_motions", SHOWN, 2)
    made = pipeline.generate_from_media(given, ["motion"] * SHOWN)
    return [(words, frames_of(sample.output[0][1], scene, SIZE))
            for ((_, words), (_, scene)), sample in zip(given, made, strict=True)]  # fmt: skip


def done(run: Path) -> list[Panel]:
    """Return the first episode of each of some tasks."""
    config = run_config(run)
    pipeline = load_run(config, "auto")
    act = functools.partial(Actor(pipeline).chunks, seed=0)
    trials, panels = trials_of(config.data.path, config, pipeline.codecs), []
    with tempfile.TemporaryDirectory() as folder:
        for task, success, _ in trials.watch(act, tasks=DONE, episodes=1, seed=0, videos=Path(folder), show=None):
            with pyav().open(str(Path(folder) / f"{task}-0.mp4")) as file:
                film = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
            panels.append((SENTENCES[task] + ("" if success else " (fails)"), film))
    return panels


def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONTS / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"), size)


def wrapped(words: str, size: int) -> list[str]:
    """Break words into lines of a panel's width."""
    lines = []
    for paragraph in words.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if font(size).getlength(longer) > SIZE and line:
                lines, longer = [*lines, line], word
            line = longer
        lines.append(line)
    return lines


def pasted(panels: Sequence[Panel], number: int, titles: Sequence[str] = ()) -> Image.Image:
    """Return one frame: panels side by side, at most four in a row, titles above and words below."""
    columns = min(4, len(panels))
    head, foot = (26 if titles else 0), LINE * max(len(wrapped(words, 13)) for words, _ in panels) + 8
    high = head + SIZE + foot
    canvas = Image.new("RGB", (columns * (SIZE + GAP) + GAP, -(-len(panels) // columns) * (high + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for place, (words, film) in enumerate(panels):
        left, top = GAP + place % columns * (SIZE + GAP), GAP + place // columns * (high + GAP)
        if titles:
            draw.text((left, top), titles[place], INK, font(14, bold=True))
        image = Image.fromarray(film[min(number, len(film) - 1)])
        small = image.width < SIZE
        canvas.paste(
            image.resize((SIZE, SIZE), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS),
            (left, top + head),
        )
        draw.rectangle((left, top + head, left + SIZE - 1, top + head + SIZE - 1), outline="#dbe2ea")
        for row, line in enumerate(wrapped(words, 13)):
            draw.text((left, top + head + SIZE + 5 + LINE * row), line, QUIET, font(13))
    return canvas


def stretched(film: Film, count: int) -> Film:
    """Return a film with another number of frames, at the same ends."""
    return [film[round(place)] for place in np.linspace(0, len(film) - 1, count)]


def write(path: Path, frames: Sequence[Image.Image], rate: float = RATE) -> None:
    """Write a PNG, or a GIF of one palette."""
    if len(frames) == 1:
        frames[0].quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        return
    palette = pasted_palette(frames)
    small = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    small[0].save(path, save_all=True, append_images=small[1:], duration=round(1000 / rate), loop=0, optimize=True)


def pasted_palette(frames: Sequence[Image.Image]) -> Image.Image:
    """Return 256 colours for all frames."""
    some = frames[:: max(1, len(frames) // 8)]
    sheet = Image.new("RGB", (some[0].width, some[0].height * len(some)))
    for place, frame in enumerate(some):
        sheet.paste(frame, (0, place * frame.height))
    return sheet.quantize(256, method=Image.Quantize.FASTOCTREE)


def films(panels: Sequence[Panel], titles: Sequence[str] = (), frames: int = FRAMES) -> list[Image.Image]:
    even = [(words, stretched(film, frames)) for words, film in panels]
    return [pasted(even, number, titles) for number in range(frames)]


def hero(shown: dict[str, list[Panel]]) -> list[Image.Image]:
    """Return README's film: a panel of each kind, the second half with another one of each."""
    places = {"builds in 3-D": (2, 1)}
    halves = [[panels[places.get(kind, (0, 1))[half]] for kind, panels in shown.items()] for half in (0, 1)]
    lines = max(len(wrapped(words, 13)) for half in halves for words, _ in half)
    even = [[(words + "\n" * (lines - len(wrapped(words, 13))), film) for words, film in half] for half in halves]
    return [frame for half in even for frame in films(half, list(shown))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, run in (("mixed", "quickstart"), ("worlds", "quickstart-worlds"), ("robot", "quickstart-robot")):
        parser.add_argument(f"--{name}", type=Path, default=Path("runs") / run, help="the run's folder")
    chosen = parser.parse_args()
    shown: dict[str, list[Panel]] = {}
    if chosen.mixed.exists():
        shown["draws and describes"] = drawn(chosen.mixed)
        write(FOLDER / "images.png", [pasted(shown["draws and describes"], 0)])
    if chosen.worlds.exists():
        shown["builds in 3-D"] = built(chosen.worlds)
        write(FOLDER / "scenes.gif", films(shown["builds in 3-D"]))
        shown["moves things"] = moved(chosen.worlds)
        write(FOLDER / "motions.gif", films(shown["moves things"], frames=24))
    if chosen.robot.exists():
        shown["acts"] = done(chosen.robot)
        write(FOLDER / "robot.gif", films(shown["acts"], frames=24))
    if len(shown) == 4:
        write(FOLDER.parent / "gallery.gif", hero(shown))


if __name__ == "__main__":
    main()
