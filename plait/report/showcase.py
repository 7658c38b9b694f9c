"""What the first screen of a page shows: the first samples of each kind, in their order, none chosen by hand."""

from collections.abc import Sequence
from typing import Any

NUM_IMAGES = 8
NUM_CLIPS = 2
NUM_CAPTIONS = 2
NUM_LIVE = 8


def shown(samples: Sequence[dict]) -> dict[str, list[Any]]:
    """Return the first images and clips that were made from text alone, captions of images and of live views, and live
    views, those of each modality together, that were made from text or from text and more.

    Samples are those of `plait.report.page`. A kind that the run does not make has an empty list.
    """

    def first(output_kind: str, prompt_kinds: tuple[str, ...], count: int) -> list[dict[str, Any]]:
        return [s for s in samples if _is(s["output"], output_kind) and any(_is(s["prompt"], k) for k in prompt_kinds)][
            :count
        ]

    live: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        if _is(sample["output"], "live") and any(view["kind"] == "text" for view in sample["prompt"]):
            live.setdefault(sample["output"][0]["modality"], []).append(sample)

    return {
        "images": first("image", ("text",), NUM_IMAGES),
        "captions": first("text", ("image", "live"), NUM_CAPTIONS),
        "clips": first("clip", ("text",), NUM_CLIPS),
        "live": [some[:NUM_LIVE] for some in live.values()],
    }


def _is(views: Sequence[dict], kind: str) -> bool:
    return len(views) == 1 and views[0]["kind"] == kind
