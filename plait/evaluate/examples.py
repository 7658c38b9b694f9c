"""Examples of what a model makes, chosen by a rule: the best, the median and the worst by the judge's ranking."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.codecs import Media
from plait.common.files import atomic_folder, write_text
from plait.evaluate.held import Held, asked_of
from plait.evaluate.judge import Found
from plait.generate.pipeline import save_media

FOLDER = "examples"
"""Where they lie, with FILE, one record to a line."""
FILE = "examples.jsonl"


@dataclass
class Example:
    """An item that was made, and why it was chosen."""

    rule: str
    place: int
    """Which of the held-out documents it was made from."""
    item: Media
    score: float
    by: str
    held: Held

    def save(self, folder: Path, name: str) -> dict[str, Any]:
        """Write its media below ``folder`` and return its record."""
        held, pipeline = self.held, self.held.library.pipeline
        document = held.documents[self.place]
        given = pipeline.decode(asked_of(document, held.given, held.path[1], held.together)[0])
        is_text = held.codec.kind == "text"
        true = held.texts[self.place] if is_text else held.raw([self.place])[0]

        def saved(part: tuple[str, Media], what: str) -> dict[str, str]:
            return save_media(pipeline.codecs[part[0]], part, folder, f"{name}-{what}")

        return {
            "path": list(held.path), "split": held.split, "document": document.index, "rule": self.rule,
            "score": self.score, "by": self.by,
            "prompt": [saved(part, f"prompt{i}") for i, part in enumerate(given)],
            "output": [saved((held.made, self.item), "output")], "truth": [saved((held.made, true), "truth")],
        }  # fmt: skip


def chosen(held: Held, made: Sequence[Media], found: Found) -> list[Example]:
    """Return the best, the median and the worst item, as many as are different ones."""
    if found.ranking is None or not made:
        return []
    order = np.argsort(-np.array(found.ranking), kind="stable")
    places = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    taken = {int(place): rule for rule, place in reversed(places.items())}
    return [
        Example(rule, place, made[place], float(found.ranking[place]), found.ranked_by, held)
        for rule, place in ((rule, int(p)) for rule, p in places.items())
        if taken[place] == rule
    ]


def write_examples(examples: Sequence[Example], folder: Path) -> None:
    """Write examples into ``folder``/FOLDER, in place of earlier ones."""
    with atomic_folder(folder / FOLDER) as temporary:
        records = [example.save(temporary, f"{i:03d}") for i, example in enumerate(examples)]
        write_text(temporary / FILE, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
