"""Examples of an evaluation on a page: of each path from given to made the best, the median and the worst item."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from plait.codecs import Codec
from plait.evaluate.examples import FILE, FOLDER
from plait.evaluate.suite import FOLDER as EVALUATION
from plait.report.media import Media, clean
from plait.train.metrics import read_jsonl


def examples(
    run: Path, codec_of: Callable[[str], Codec | None], scripts: dict[str, None] | None = None
) -> list[dict[str, Any]]:
    """Return groups with ``path``, ``by`` and ``rows``; each row has its rule, score, prompt, output and truth.

    What the page needs to show them is added to ``scripts`` (`Media`).
    """
    folder = run / EVALUATION / FOLDER
    media = Media(folder, codec_of, scripts)
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for record in read_jsonl(folder / FILE) if (folder / FILE).is_file() else []:
        path = tuple(clean(name) for name in record.get("path", []))
        group = groups.setdefault(path, {"path": path, "by": clean(record.get("by", "")), "rows": [],
                                         "is_round_trip": len(path) > 2})  # fmt: skip
        prompt = record.get("prompt")
        views = {"prompt": media.views(prompt)}
        views |= {part: media.views(record.get(part), prompt) for part in ("output", "truth")}
        score = record.get("score")
        said = f"{score:.2f}" if isinstance(score, int | float) else ""
        group["rows"].append({"rule": clean(record.get("rule", "")), "score": said, **views})
    return list(groups.values())
