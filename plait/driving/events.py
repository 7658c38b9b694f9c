"""What happens in traffic, read from a scene and its track, and the sentence that says it.

The same rules read a drawn scene, of which they make the caption, and a generated one, which they judge: it is watched
(`plait.driving.simulate.watch`) while ego keeps its lane. A scene in which one of them is near its threshold is not
clear, and is not used as data.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from plait.codecs.traffic import KINDS, LANE_WIDTH, LENGTH, SPEED, Y, present

DENSITIES = ("empty", "light", "dense", "jam")
STATES = ("", "slow", "braking", "stopped")
"""What the vehicle ahead of ego does at first: it keeps on, is slow, brakes, stands."""
AHEAD = ("", *(f"{state} {kind}".strip() for state in STATES for kind in KINDS))
SIDES = ("left", "right")
CUT_INS = tuple(f"{kind} {side}" for kind in KINDS for side in SIDES)

MANY, SLOW_TRAFFIC = 6.5, 10.0
"""Other vehicles from which traffic is dense, and their mean speed below which dense traffic is a jam."""
SEEN = 100.0
"""How far ahead a vehicle is ahead of ego, in metres."""
SLOWER, BRAKED, STANDS = 6.0, 8.0, 1.0
"""How much slower than ego a slow vehicle is, how much speed one loses that brakes within `BRAKES_IN` seconds, and the
speed below which one stands; in m/s."""
BRAKES_IN = 3.0
IN_LANE, CUTS_IN = 2.0, 1.5
"""How far from ego's line a vehicle in its lane is at most, and how near to it one comes that cuts in; in metres."""
NEAR = 50.0
"""How far ahead a vehicle cuts in at most."""
_MARGINS = {"many": 1.0, "mean": 2.0, "seen": 5.0, "slower": 1.5, "stands": 0.5, "lane": 0.7, "near": 5.0, "by": 2.0}


@dataclass(frozen=True)
class Happening:
    """What happens in a scene, as ego sees it."""

    density: str
    """One of `DENSITIES`."""
    lane: int
    """Of ego at first, from the left."""
    ahead: str = ""
    """What is ahead in ego's lane, one of `AHEAD`."""
    cut_ins: tuple[str, ...] = ()
    """What comes into ego's lane ahead of it, of `CUT_INS` in their order."""
    overtaken: tuple[str, ...] = ()
    """The sides on which ego is overtaken, of `SIDES`."""

    @property
    def is_hard(self) -> bool:
        """Whether something is in ego's way."""
        return bool(self.cut_ins) or self.ahead.split(" ")[0] in STATES[1:]


def happening(scene: np.ndarray, track: np.ndarray) -> Happening:
    """Return what happens in a scene [V, 8] of the track [T, V, 4]."""
    return _Reader(scene, track).happening()


def clear_happening(scene: np.ndarray, track: np.ndarray) -> Happening | None:
    """Return what happens in a scene, None where that is near a threshold."""
    reader = _Reader(scene, track)
    what = reader.happening()
    return what if not any(reader.doubts()) and len({c.split()[1] for c in what.cut_ins}) == len(what.cut_ins) else None


class _Reader:
    """A scene and its track, seen from ego: ``ahead`` [T, N] is how far each other vehicle is ahead of it along the
    road, ``aside`` [T, N] how far to the right of ego's first line."""

    def __init__(self, scene: np.ndarray, track: np.ndarray):
        there = present(scene)
        there[0] = False
        self.ego, self.others = scene[0], scene[there]
        self.ahead = track[:, there, 0] - track[:, :1, 0]
        self.aside = track[:, there, 1] - scene[0, Y]
        self.speeds = track[:, there, 2]
        self.kinds = [kind_of(row) for row in self.others]
        self.steps = round((len(track) - 1) * min(1.0, BRAKES_IN / 6.0))

    def happening(self) -> Happening:
        return Happening(self._density(), int(np.clip(round(float(self.ego[Y]) / LANE_WIDTH), 0, 3)), self._ahead(),
                         tuple(c for c in CUT_INS if c in set(self._cut_ins())), self._overtaken())  # fmt: skip

    def _density(self) -> str:
        count = len(self.others)
        if count < MANY:
            return "light" if count else "empty"
        return "jam" if self.others[:, SPEED].mean() < SLOW_TRAFFIC else "dense"

    @property
    def leader(self) -> int | None:
        """Which vehicle is ahead of ego in its lane at first."""
        places = np.where((abs(self.aside[0]) < IN_LANE) & (self.ahead[0] > 0), self.ahead[0], np.inf)
        return int(places.argmin()) if len(places) and places.min() < SEEN else None

    def _ahead(self) -> str:
        if (leader := self.leader) is None:
            return ""
        speed, lost = float(self.others[leader, SPEED]), self._lost(leader)
        state = ""
        if speed < STANDS:
            state = "stopped"
        elif self.ego[SPEED] - speed > SLOWER:
            state = "slow"
        elif lost > BRAKED:
            state = "braking"
        return f"{state} {self.kinds[leader]}".strip()

    def _lost(self, leader: int) -> float:
        """Return how much speed the vehicle ahead loses at first."""
        return float(self.others[leader, SPEED] - self.speeds[: self.steps + 1, leader].min())

    def _cut_ins(self) -> Iterator[str]:
        for k, kind in enumerate(self.kinds):
            entered = np.flatnonzero(abs(self.aside[:, k]) < CUTS_IN)
            if abs(self.aside[0, k]) > IN_LANE and len(entered) and 0 < self.ahead[entered[0], k] < NEAR:
                yield f"{kind} {SIDES[int(self.aside[0, k] > 0)]}"

    def _overtaken(self) -> tuple[str, ...]:
        passed = (self.ahead[0] < 0) & (self.ahead[-1] > 0)
        return tuple(
            side for side, sign in zip(SIDES, (-1, 1), strict=True) if (passed & (sign * self.aside[-1] > 0)).any()
        )

    def doubts(self) -> Iterator[bool]:
        """Yield of one rule after another whether what it says is in doubt."""
        count = len(self.others)
        yield abs(count - MANY) < _MARGINS["many"]
        if not count:
            return
        mean = float(self.others[:, SPEED].mean())
        yield count > MANY and abs(mean - SLOW_TRAFFIC) < _MARGINS["mean"]
        yield bool(abs(self.ego[Y] / LANE_WIDTH - round(float(self.ego[Y]) / LANE_WIDTH)) > 0.2)
        apart = abs(abs(self.aside[0]) - IN_LANE) < _MARGINS["lane"]
        yield bool((apart & (self.ahead[0] > 0)).any())
        yield bool(((abs(self.aside[0]) < IN_LANE) & (abs(self.ahead[0] - SEEN) < _MARGINS["seen"])).any())
        if (leader := self.leader) is not None:
            speed, lost = float(self.others[leader, SPEED]), self._lost(leader)
            yield abs(speed - STANDS) < _MARGINS["stands"]
            yield abs(self.ego[SPEED] - speed - SLOWER) < _MARGINS["slower"]
            yield self.ego[SPEED] - speed < SLOWER and abs(lost - BRAKED) < _MARGINS["slower"]
        yield from map(self._may_cut_in, range(count))
        beside = abs(self.aside[-1]) > IN_LANE
        by = _MARGINS["by"]
        yield bool((beside & (self.ahead[0] < by) & (abs(self.ahead[-1]) < by)).any())
        yield bool((beside & (abs(self.ahead[0]) < by) & (self.ahead[-1] > -by)).any())

    def _may_cut_in(self, k: int) -> bool:
        """Return whether it is in doubt that a vehicle cuts in."""
        aside, ahead = abs(self.aside[:, k]), self.ahead[:, k]
        if aside[0] < IN_LANE:
            return False
        entered = np.flatnonzero(aside < CUTS_IN)
        if not len(entered):
            return bool(((aside < CUTS_IN + _MARGINS["lane"]) & (ahead > 0)).any())
        at = ahead[entered[0]]
        return bool(-_MARGINS["near"] < at < _MARGINS["near"] or abs(at - NEAR) < _MARGINS["near"])


def kind_of(row: np.ndarray) -> str:
    """Return the kind of a vehicle whose length is nearest to its own."""
    return min(KINDS, key=lambda kind: abs(KINDS[kind][0] - float(row[LENGTH])))


LANE_NAMES = ("left", "second", "third", "right")
_TRAFFIC = {"empty": "an empty road", "light": "light traffic", "dense": "dense traffic", "jam": "a traffic jam"}
_LANES = {lane: f"ego in the {name} lane" for lane, name in enumerate(LANE_NAMES)}
_AHEAD = {what: f"a {what} ahead" if what else "nothing ahead" for what in AHEAD}
_CUT_INS = {f"{kind} {side}": f"a {kind} cuts in from the {side}" for kind in KINDS for side in SIDES}
_OVERTAKEN = {side: f"overtaken on the {side}" for side in SIDES}


def sentence(what: Happening) -> str:
    """Return the sentence of what happens."""
    said = [_TRAFFIC[what.density], _LANES[what.lane], _AHEAD[what.ahead]]
    return ", ".join([*said, *(_CUT_INS[c] for c in what.cut_ins), *(_OVERTAKEN[side] for side in what.overtaken)])


def read_sentence(text: str) -> Happening | None:
    """Undo `sentence`; None where it is no such sentence."""
    phrases = " ".join(text.split()).split(", ")
    tables = (_TRAFFIC, _LANES, _AHEAD, _CUT_INS, _OVERTAKEN)
    found: list[list] = [
        [key for phrase in phrases for key, said in table.items() if said == phrase] for table in tables
    ]
    density, lane, ahead, cut_ins, overtaken = found
    if not len(density) == len(lane) == len(ahead) == 1:
        return None
    what = Happening(density[0], lane[0], ahead[0], tuple(cut_ins), tuple(overtaken))
    return what if sentence(what).split(", ") == phrases else None
