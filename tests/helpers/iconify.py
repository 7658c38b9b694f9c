"""A package of the Iconify collection, in little."""

import json
from pathlib import Path

from plait.scenes.drawings import everyday

BAR = '<rect x="4" y="8" width="16" height="8" fill="{}"/>'


def write_package(folder: Path, count: int = 64) -> Path:
    """Write a package that draws everyday things as bars of many colours, on a canvas of 24; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    things = everyday(count)
    colors = [f"#{3 * i:02x}80{255 - 3 * i:02x}" for i in range(count)]
    icons = {f"icon-{c.code}": {"body": BAR.format(color)} for c, color in zip(things, colors, strict=True)}
    chars = {c.code.lower().replace("-fe0f", ""): f"icon-{c.code}" for c in things}
    info = {"name": "Bars", "author": {"name": "A", "url": "u"}, "license": {"title": "MIT", "url": "v"}}
    for name, values in (("icons", {"icons": icons, "width": 24, "height": 24}), ("chars", chars), ("info", info)):
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder
