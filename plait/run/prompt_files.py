"""`plait generate RUN --prompts FILE`: many prompts at once, into the folders that scorers of images look for.

A file holds a prompt a line, as plain text or, as GenEval's does, as JSON with a ``prompt`` and what else a scorer has
to know. Prompt n becomes ``OUT/{n:05d}``: ``metadata.jsonl``, the line as it was, and ``samples/0000.png`` and so on.
What is there already stays, so that the same command goes on where it was stopped.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.common.errors import ConfigError, DataError, require, shown
from plait.common.files import atomic_folder, read_json, write_json, write_text
from plait.common.locks import one_writer
from plait.common.progress import Progress
from plait.generate.pipeline import Pipeline, Sample

AT_ONCE = 64
"""Samples that are made together, about."""
KEY = "key.json"


@dataclass(frozen=True)
class Prompt:
    """A line of a file: its text, and all that it says."""

    text: str
    fields: dict[str, Any]


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read the prompts of a file; lines without a letter are passed over. Raises DataError."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"--prompts: {str(path)!r} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"--prompts: {str(path)!r} is not UTF-8") from None
    prompts = [_prompt(line.strip(), number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise DataError(f"--prompts: {str(path)!r} holds no prompt")
    return prompts


def _prompt(line: str, number: int) -> Prompt:
    if not line.startswith("{"):
        return Prompt(line, {"prompt": line})
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"--prompts: line {number} is not JSON ({error.msg})") from None
    if not isinstance(fields.get("prompt"), str) or not fields["prompt"]:
        raise DataError(f"--prompts: line {number} has the prompt {shown(fields.get('prompt'))}, it must be text")
    return Prompt(fields["prompt"], fields)


def answer(
    pipeline: Pipeline, prompts: Sequence[Prompt], output: str, *, count: int, out: Path, key: dict[str, Any],
    progress: Progress, **settings: Any,
) -> int:  # fmt: skip
    """Make ``count`` samples of ``output`` for each prompt; return how many prompts were answered before.

    ``key`` is what the samples depend on. Raises ConfigError for a folder of another one.
    """
    require(output in pipeline.codecs, "--output", output, f"one of {', '.join(pipeline.codecs)}, to answer prompts in")
    with one_writer(out, "--out"):
        _check_key(out, key | {"prompts": [p.fields for p in prompts]})
        places = [out / f"{n:05d}" for n in range(len(prompts))]
        left = [n for n, place in enumerate(places) if not place.is_dir()]
        size = max(1, AT_ONCE // count)
        with progress.stage(f"{output} of {len(prompts)} prompts", total=len(prompts)) as bar:
            bar.resume(len(prompts) - len(left))
            for start in range(0, len(left), size):
                some = left[start : start + size]
                numbers = [n * count + k for n in some for k in range(count)]
                media = [pipeline.read(prompts[n].text) for n in some for _ in range(count)]
                samples = pipeline.generate_from_media(media, [output] * len(media), numbers=numbers, **settings)
                for i, n in enumerate(some):
                    _save(samples[i * count : (i + 1) * count], prompts[n], places[n])
                bar.advance(len(some))
    return len(prompts) - len(left)


def _check_key(out: Path, key: dict[str, Any]) -> None:
    path = out / KEY
    if not path.exists():
        others = [p.name for p in out.iterdir() if not p.name.startswith(".")] if out.is_dir() else []
        require(not others, "--out", str(out), "an empty folder, or one that the same command began")
        write_json(path, key)
    elif read_json(path, "--out") != json.loads(json.dumps(key)):
        raise ConfigError(f"--out: {str(out)!r} was begun with other prompts or settings, name another folder")


def _save(samples: Sequence[Sample], prompt: Prompt, place: Path) -> None:
    with atomic_folder(place) as folder:
        write_text(folder / "metadata.jsonl", json.dumps(prompt.fields, ensure_ascii=False) + "\n")
        (folder / "samples").mkdir()
        for k, sample in enumerate(samples):
            for name, media in sample.output[:1]:
                codec = sample.codecs[name]
                codec.write(media, folder / "samples" / f"{k:04d}{codec.suffix}")
