"""What happened in a motion, read from its poses alone, and the sentence that says it.

The same rules read a simulated motion, of which they make the caption, and a generated one, which they judge. A motion
in which one of them is near its threshold is not `clear`, and is not used as data. Body 0 is the one that acts: it
moves first, and a sentence names it first. Lengths are in sides of the cube, directions as the viewer has them.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from plait.codecs.motions import POSITION, corners, gaps, present, rotations

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "front": (0, -1), "back": (0, 1)}
_TOWARDS = {"left": "to the left", "right": "to the right", "front": "to the front", "back": "to the back"}
SIZES = {
    "slides": ("a little", "", "far"),
    "jumps": ("", "high"),
    "spins": ("a quarter turn", "half a turn"),
}
"""How far, how high, how much: of events that have several sizes, from the smallest."""

MOVED = 0.07
"""Least way along the floor that is a slide."""
LIMITS = {"slides": (0.21, 0.39), "jumps": (0.25,), "spins": (2.36,)}
"""Way along the floor, height and angle that part the sizes."""
RISEN, FALLEN = 0.08, 0.05
"""Least height of the lowest corner in a jump, and above the floor before a fall."""
TIPPED, TURNED = 0.5, 1.0
"""Vertical part of the up axis below which a box has tipped over; least turn (radians) about the vertical in a spin."""
TOUCHED = 0.03
"""Most gap between two boxes that touch."""
_MARGINS = {"slides": 0.03, "jumps": 0.03, "spins": 0.3, "gap": 0.02}

_MOST_TURNED = 3.9  # of a half turn, in radians
_LAST = 3  # steps whose mean is how a motion ends

WAYS = tuple(DIRECTIONS)
EVENTS = (
    "stays", *(f"slides {way}" for way in WAYS), *(f"tips {way}" for way in WAYS), "spins left", "spins right",
    "jumps", "jumps and tips", "falls", "falls and slides", "falls and tips", "falls onto", "slides and tips",
    "hits: stays", "hits: slides", "hits: tips",
)  # fmt: skip
"""Classes of what happened, as `event_of` names them: what the first body did, or what the one that it hits does."""


@dataclass(frozen=True)
class Event:
    """What one body does: a verb, where to, and how far."""

    verb: str
    """stays, slides, tips, spins, jumps, falls, or lands (on the other body)."""
    way: str = ""
    """left, right, front, back; of a spin left (counterclockwise from above) or right."""
    size: str = ""
    """One of `SIZES` of the verb."""


@dataclass(frozen=True)
class Happening:
    """What happens in a motion: events of the first body in order, whether it hits the second one, and its events."""

    first: tuple[Event, ...]
    hits: bool = False
    second: tuple[Event, ...] = ()
    """() where there is no second body."""

    def as_dict(self) -> dict[str, Any]:
        """Return it in plain JSON types."""
        return {**asdict(self), "first": [asdict(e) for e in self.first], "second": [asdict(e) for e in self.second]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Happening":
        """Undo `as_dict`."""
        first, second = (tuple(Event(**e) for e in values[name]) for name in ("first", "second"))
        return cls(first, values["hits"], second)


STAYS = Event("stays")


def happening(motion: np.ndarray) -> Happening:
    """Return what happened in a motion [T, 2, 15]; a motion without its first body is one in which it stays."""
    return _happening(_tracks(motion), motion)


def is_clear(motion: np.ndarray) -> bool:
    """Return whether nothing in a motion is near a threshold, so that its caption is beyond doubt."""
    return clear_happening(motion) is not None


def clear_happening(motion: np.ndarray) -> Happening | None:
    """Return what happened in a motion, None where it `is_clear` not."""
    tracks = _tracks(motion)
    if present(motion)[:1] != [0] or not all(track.is_clear() for track in tracks):
        return None
    what = _happening(tracks, motion)
    is_in_the_air = what.first[0].verb == "falls" and tracks[0].low[-1] > FALLEN / 2
    if event_of(what) not in EVENTS or is_in_the_air:
        return None
    if len(tracks) == 1:
        return what
    first, gap = [e.verb for e in what.first], float(_steadied(gaps(motion)).min())
    if first == ["lands"]:
        is_clear = what.second == (STAYS,) and bool(gaps(motion[-1:])[0] < TOUCHED - _MARGINS["gap"])
    elif what.hits:  # what moves was met, though perhaps between two steps
        is_clear = first == ["slides"] and (what.second != (STAYS,) or gap < TOUCHED - _MARGINS["gap"])
    else:
        is_clear = what.second == (STAYS,) and gap > TOUCHED + _MARGINS["gap"]
    return what if is_clear else None


def _happening(tracks: Sequence["_Track"], motion: np.ndarray) -> Happening:
    if len(tracks) == 1:
        return Happening(tracks[0].events())
    first, second = (track.events() for track in tracks)
    if first[0].verb == "falls" and tracks[0].low[-1] > FALLEN:
        return Happening((Event("lands"), *first[1:]), False, second)
    met = second != (STAYS,) or bool(_steadied(gaps(motion)).min() < TOUCHED)
    return Happening(first, met and first != (STAYS,), second)


class _Track:
    """What one body did, of its positions [T, 3], rotations [T, 3, 3] and corners [T, 8, 3]."""

    def __init__(self, position: np.ndarray, rotation: np.ndarray, corner: np.ndarray):
        self.position, self.up = position, rotation[:, :, 2]
        self.low = _steadied(corner[..., 2].min(-1))
        turn = np.unwrap(np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0]))
        self.turn = float(turn[-_LAST:].mean() - turn[0])
        self.last_up = self.up[-_LAST:].mean(0)
        self.tipped = bool(self.last_up[2] < TIPPED)
        self.way = (position[-_LAST:].mean(0) - position[0])[:2]
        self.over = ""
        if self.tipped:
            self.crossed = int(np.flatnonzero(self.up[:, 2] < TIPPED)[0])
            self.over = _way(self.up[self.crossed, :2])
            # to tip over moves the centre by itself: the lower edge, about which it turns, says how far it slid before
            below = np.argsort(corner[0, :, 2])[:4]
            lower = below[np.argsort(corner[0, below, :2] @ DIRECTIONS[self.over])[2:]]
            edge = corner[:, lower, :2].mean(1)
            self.way = edge[max(self.crossed - 1, 0) : self.crossed + 2].mean(0) - edge[0]
        self.fell = bool(self.low[0] > FALLEN and self.low[-1] < self.low[0] - FALLEN)
        self.rise = float(self.low.max() - self.low[0])

    def events(self) -> tuple[Event, ...]:
        """Return one or two events, in order."""
        found = [Event("falls")] if self.fell else []
        if not self.fell and self.rise > RISEN and self.low[-1] < FALLEN:
            found.append(_sized("jumps", "", self.rise))
        if self.slid and not (found and self.tipped):
            found.append(_sized("slides", _way(self.way), float(np.linalg.norm(self.way))))
        if self.tipped:
            found.append(Event("tips", self.over))
        elif not found and abs(self.turn) > TURNED:
            found.append(_sized("spins", "left" if self.turn > 0 else "right", abs(self.turn)))
        return tuple(found[:2]) or (STAYS,)

    @property
    def slid(self) -> bool:
        return bool(np.linalg.norm(self.way) > MOVED)

    def is_clear(self) -> bool:
        """Return whether it is at rest at last, upright or lying, and far from every threshold."""
        if np.linalg.norm(np.diff(self.position[-_LAST:], axis=0), axis=-1).max() > 0.01:
            return False
        verbs = [e.verb for e in self.events()]
        way, turned = float(np.linalg.norm(self.way)), abs(self.turn)
        if self.tipped:
            is_steady = abs(self.last_up[2]) < 0.1 and _way(self.last_up[:2]) == self.over
            if not is_steady or not _is_one_way(self.up[self.crossed, :2]):
                return False
        elif self.up[-1, 2] < 0.99 or self.up[:, 2].min() < 0.8:
            return False
        if "slides" in verbs:
            if not _is_one_way(self.way) or not _is_apart(way, "slides", MOVED):
                return False
        elif way > MOVED - _MARGINS["slides"] and not (self.tipped and len(verbs) > 1):
            return False
        if "jumps" in verbs:
            if not _is_apart(self.rise, "jumps", RISEN):
                return False
        elif self.rise > RISEN - _MARGINS["jumps"] or (abs(self.low[-1]) > FALLEN / 2 and not self.fell):
            return False
        if "spins" in verbs:
            return _is_apart(turned, "spins", TURNED) and turned < _MOST_TURNED
        return self.tipped or turned < TURNED - _MARGINS["spins"]


def _tracks(motion: np.ndarray) -> list[_Track]:
    motion = motion.astype(np.float64)
    turns, ends = rotations(motion), corners(motion)
    bodies = [0, 1] if 1 in present(motion) else [0]
    return [_Track(motion[:, b, POSITION], turns[:, b], ends[:, b]) for b in bodies]


def _steadied(values: np.ndarray) -> np.ndarray:
    """Return the running median of three, so that one step that is off says nothing: of values [T]."""
    padded = np.concatenate([values[:1], values, values[-1:]])
    return np.asarray(np.median([padded[:-2], padded[1:-1], padded[2:]], axis=0))


def _way(vector: np.ndarray) -> str:
    """Return the name of the direction nearest to a vector [2] along the floor."""
    return max(DIRECTIONS, key=lambda name: float(np.dot(vector, DIRECTIONS[name])))


def _is_one_way(vector: np.ndarray) -> bool:
    """Return whether a vector [2] points in one of the four directions rather than between two."""
    small, large = np.sort(abs(vector))
    return bool(small < 0.4 * large)


def _sized(verb: str, way: str, amount: float) -> Event:
    return Event(verb, way, SIZES[verb][sum(amount > limit for limit in LIMITS[verb])])


def _is_apart(amount: float, verb: str, least: float) -> bool:
    """Return whether an amount is far from the limits of a verb's sizes, and from what is none of it."""
    return all(abs(amount - limit) > _MARGINS[verb] for limit in (least, *LIMITS[verb]))


def event_of(what: Happening) -> str:
    """Return the class of what happened, one of `EVENTS` where it is clear."""
    if what.hits:
        verbs = [e.verb for e in what.second]
        return "hits: " + ("tips" if "tips" in verbs else "slides" if "slides" in verbs else verbs[0])
    first, *then = what.first
    if first.verb == "lands":
        return "falls onto"
    if then:
        return f"{first.verb} and {then[0].verb}"
    return f"{first.verb} {first.way}".strip()


_PHRASES = {
    Event(verb, way, size): words
    for verb, ways in {"slides": WAYS, "tips": WAYS, "spins": ("left", "right"), "jumps": ("",)}.items()
    for way in ways
    for size in SIZES.get(verb, ("",))
    for words in [" ".join(filter(None, [verb, "over" if verb == "tips" else "", size, _TOWARDS.get(way, "")]))]
} | {STAYS: "stays", Event("falls"): "falls to the floor"}
_EVENT_OF = {words: event for event, words in _PHRASES.items()}
_ONE = "(?:" + "|".join(sorted(map(re.escape, _EVENT_OF), key=len, reverse=True)) + ")"
_SOME = rf"{_ONE}(?: and {_ONE})?"
_GRAMMARS = (
    rf"(?P<a>.+?) falls onto (?P<b>.+?)(?: and (?P<landed>{_ONE}))?(?:, which (?P<second>{_SOME}))?",
    rf"(?P<a>.+?) (?P<first>{_SOME}) and (?P<hits>hits) (?P<b>.+?), which (?P<second>{_SOME})",
    rf"(?P<a>.+?) (?P<first>{_SOME}), and (?P<b>.+?) (?P<second>{_SOME})",
    rf"(?P<a>.+?) (?P<first>{_SOME})",
)


def sentence(what: Happening, names: Sequence[str]) -> str:
    """Return the sentence of what happened; ``names`` have their article, and are as many as the bodies."""
    first, second = (" and ".join(_PHRASES[e] for e in events if e.verb != "lands") for events in
                     (what.first, what.second))  # fmt: skip
    if what.first[0].verb == "lands":
        reaction = "" if what.second == (STAYS,) else f", which {second}"
        return f"{names[0]} falls onto {names[1]}" + (f" and {first}" if first else "") + reaction
    if not what.second:
        return f"{names[0]} {first}"
    if what.hits:
        return f"{names[0]} {first} and hits {names[1]}, which {second}"
    return f"{names[0]} {first}, and {names[1]} {second}"


def read_sentence(text: str) -> tuple[Happening | None, tuple[str, ...]]:
    """Undo `sentence`: what is said to happen and the names of the bodies; (None, ()) where it is no such sentence."""
    for grammar in _GRAMMARS:
        if match := re.fullmatch(grammar, " ".join(text.split())):
            said = match.groupdict()
            names = tuple(said[name] for name in ("a", "b") if said.get(name))
            first, second = _events(said.get("first")), _events(said.get("second"))
            if "landed" in said:
                first, second = (Event("lands"), *_events(said["landed"])), second or (STAYS,)
            return Happening(first, bool(said.get("hits")), second), names
    return None, ()


def _events(words: str | None) -> tuple[Event, ...]:
    return tuple(_EVENT_OF[phrase] for phrase in re.findall(_ONE, words or ""))
