"""The same things drawn by others: a package of the Iconify collection in place of OpenMoji's drawings.

A folder of such a package, unpacked, holds ``icons.json`` (SVG by the icon's name), ``chars.json`` (its name by Unicode
code) and ``info.json`` (author and licence). Names, families, splits and captions of the scenes stay as they are.
"""

import functools
from pathlib import Path
from typing import Any

from plait.common.errors import ConfigError
from plait.common.files import read_json
from plait.scenes.drawings import CANVAS, Concept, redrawn

WHERE = "prepare.drawings"


class Drawings:
    """Another set of drawings. Raises ConfigError for a folder that is none."""

    def __init__(self, folder: str | Path):
        self.folder = str(folder)
        for name in ("icons.json", "chars.json"):
            if not (Path(folder) / name).is_file():
                raise ConfigError(
                    f"{WHERE}: {self.folder!r} holds no {name}, it must be the folder of an Iconify package, such as "
                    "`npm pack @iconify-json/twemoji` unpacked"
                )
        self._icons = _mapping(Path(folder) / "icons.json")
        self._names = _mapping(Path(folder) / "chars.json")
        self._bodies: dict[str, Any] = self._icons.get("icons", {})
        self.of = functools.cache(self._of)

    @property
    def credit(self) -> str:
        """The line that a page which shows them has to carry."""
        path = Path(self.folder) / "info.json"
        info = _mapping(path) if path.is_file() else {}
        author, licence = (info.get(key) or {} for key in ("author", "license"))
        return (f"Drawings: {info.get('name', self.folder)} by {author.get('name', '?')} ({author.get('url', '?')}), "
                f"licence {licence.get('title', '?')} ({licence.get('url', '?')}).")  # fmt: skip

    def missing(self, concepts: tuple[Concept, ...]) -> list[str]:
        """Return the names of those things that are not drawn here."""
        return [concept.name for concept in concepts if self._body(concept) is None]

    def _body(self, concept: Concept) -> dict[str, Any] | None:
        code = concept.code.lower()
        for spelling in (code, code.replace("-fe0f", "")):
            icon = self._bodies.get(self._names.get(spelling, ""))
            if isinstance(icon, dict) and isinstance(icon.get("body"), str):
                return icon
        return None

    def _of(self, concept: Concept) -> Concept:
        """Return a thing as it is drawn here; raises ConfigError where it is not."""
        icon = self._body(concept)
        if icon is None:
            raise ConfigError(f"{WHERE}: {self.folder!r} has no drawing of {concept.name!r} ({concept.code})")
        side = max(icon.get(key, self._icons.get(key, 16)) for key in ("width", "height"))
        # ids are those of one drawing: two of them may meet in a scene
        body = icon["body"].replace("svgID", f"svgID{concept.code}-")
        return redrawn(concept, f'<g transform="scale({CANVAS / side:.6f})">{body}</g>')


def _mapping(path: Path) -> dict[str, Any]:
    values = read_json(path, WHERE)
    if not isinstance(values, dict):
        raise ConfigError(f"{WHERE}: {str(path)!r} is not a mapping")
    return values
