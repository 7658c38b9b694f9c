"""What the first screen of a page shows: the first samples of each kind, in their order, none chosen by hand."""

from collections.abc import Sequence
from typing import Any

NUM_IMAGES = 8
NUM_CLIPS = 2
NUM_CAPTIONS = 2


def shown(samples: Sequence[dict]) -> dict[str, list[dict[str, Any]]]:
    """Return the first images and clips that were made from text alone, and captions of images.

    Samples are those of `plait.report.page`. A kind that the run does not make has an empty list.
    """

    def first(output_kind: str, prompt_kind: str, count: int) -> list[dict[str, Any]]:
        return [s for s in samples if _is(s["output"], output_kind) and _is(s["prompt"], prompt_kind)][:count]

    return {
        "images": first("image", "text", NUM_IMAGES),
        "captions": first("text", "image", NUM_CAPTIONS),
        "clips": first("clip", "text", NUM_CLIPS),
    }


def _is(views: Sequence[dict], kind: str) -> bool:
    return len(views) == 1 and views[0]["kind"] == kind
