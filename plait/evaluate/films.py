"""What a model did, as files: films to watch, and what a run's page shows of them beside the tables of how it fared."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from plait.codecs.animation import PAUSE
from plait.common.errors import ConfigError
from plait.common.files import atomic_file, write_json, write_text
from plait.prepare.raw import TABLES, TRIALS, TrialTable
from plait.prepare.video import VideoFile

GIF_RATE = 20.0
"""Most frames per second of a GIF: browsers slow down what is faster than 50."""
SHOWN = 8
"""Most films that a page shows."""
FAILURES = SHOWN // 2
"""Most of them that show a failure."""


@dataclass(frozen=True)
class Film:
    """An episode that a run's page shows."""

    name: str
    """Of its file, without its number and its suffix."""
    title: str
    said: str
    success: bool
    frames: Sequence[np.ndarray]
    """Images uint8 [H, W, 3]."""


def write_shown(folder: Path, tables: Sequence[TrialTable], films: Iterable[Film], rate: float) -> None:
    """Write what a run's page shows of trials: `TABLES`, films of ``rate`` frames per second as GIFs, and `TRIALS`.

    GIFs of an earlier evaluation are removed. ``films`` are taken one by one, so that frames of one alone are held.
    """
    write_json(folder / TABLES, [asdict(table) for table in tables])
    for old in folder.glob("*.gif"):
        old.unlink()
    records = []
    for number, film in enumerate(films):
        name = f"{number:02d}-{film.name}.gif"
        with atomic_file(folder / name) as temporary:
            renamed = temporary.with_suffix(".gif")
            write_film(film.frames, renamed, rate)
            renamed.replace(temporary)
        records.append({"title": film.title, "said": film.said, "file": name, "success": film.success})
    write_text(folder / TRIALS, "".join(json.dumps(record) + "\n" for record in records))


def write_film(frames: Sequence[np.ndarray], path: Path, rate: float) -> None:
    """Write images uint8 [H, W, 3] at ``rate`` per second as an animated GIF or an MP4, by the suffix of the path.

    A GIF has every n-th frame, at most `GIF_RATE` per second. Raises ConfigError for another suffix, ResourceError
    where the package for MP4 is missing.
    """
    if path.suffix == ".gif":
        _write_gif(frames, path, rate)
    elif path.suffix == ".mp4":
        height, width = frames[0].shape[:2]
        video = VideoFile(path, height, width, rate)
        video.append(np.stack(frames))
        video.close()
    else:
        raise ConfigError(f"films: {path.name!r} is not allowed as a video, it must end with .gif or .mp4")


def _write_gif(frames: Sequence[np.ndarray], path: Path, rate: float) -> None:
    """Write an animated GIF that repeats, with a pause at its end."""
    from PIL import Image

    every = max(1, round(rate / GIF_RATE))
    images = [Image.fromarray(frame) for frame in [*frames[:-1:every], frames[-1]]]
    durations = [round(1000 * every / rate)] * (len(images) - 1) + [round(1000 * PAUSE)]
    images[0].save(path, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
