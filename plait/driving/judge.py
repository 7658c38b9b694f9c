"""Scenes of traffic: does in them happen what was said, can they be, and are they as hard to drive in as real ones?

- event_accuracy: the share of scenes in which all that the caption says happens, and nothing else, when they are
  simulated; density, lane, ahead, cut_ins and overtaken: the share in which each of its parts does.
- no_overlap: the share in which no vehicles overlap; no_collision: in which none do as long as the scene is watched.
- idm_crash_rate, idm_speed, idle_crash_rate, idle_speed: how highway-env's IDM driver and one that keeps lane and speed
  fare in the scenes (`plait.driving.simulate.drive`); speeds are in m/s.

Beside them stand what the documents' own scenes have (real, of events: originals), the codec's round trip of them
(codec), the training scene whose caption is nearest (nearest) and another document's scene (shuffled).
"""

import functools
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from plait.codecs import Media
from plait.codecs.traffic import ordered, scaled
from plait.driving.drivers import DRIVERS
from plait.driving.simulate import drive, overlaps, watch
from plait.evaluate.held import Held
from plait.evaluate.judge import Found, Judge, known_hits
from plait.evaluate.measures import mean_of, share_of
from plait.evaluate.neighbours import likeness

Arrays = dict[str, np.ndarray]
ENDS = {"real": "originals", "codec": "codec", "nearest": "nearest", "shuffled": "shuffled"}
"""Sets of scenes beside the made ones, and how their figures of events end."""
DRIVEN = ("idm", "idle")
"""Drivers that are put into scenes."""
SHARES = ("no_overlap", "no_collision", *(f"{name}_crash_rate" for name in DRIVEN))
FIGURES = (*SHARES, *(f"{name}_speed" for name in DRIVEN))


class TrafficJudge(Judge):
    """Measures scenes of traffic, float32 [V, 8]."""

    modules: ClassVar = ("scipy.stats", "highway_env")

    def measure(self, made: Sequence[Media], held: Held) -> Found:
        """Measure scenes."""
        beside = self._beside(held)
        own = self._judged(made, held)
        real, codec = (torch.from_numpy(beside[name]["features"]) for name in ("real", "codec"))
        training = held.training_features("traffic", features)
        nearness, figures, match = likeness(torch.from_numpy(own["features"]), real, codec, training)
        found = Found(nearness, figures, match, "likeness to the document's own scene")
        for name in FIGURES:
            values = own[name].tolist()
            found.measures[name] = share_of([v > 0 for v in values]) if name in SHARES else mean_of(values)
            found.beside |= {
                f"{name}_{end}": float(arrays[name].mean()) for end, arrays in beside.items() if name in arrays
            }
        for name in (n for n in own if n.startswith("hit_")):
            self._named(name, own, beside, held, found)
        return found

    def _beside(self, held: Held) -> dict[str, Arrays]:
        """Return what is judged of the sets of scenes beside the made ones, by their names."""
        sets: dict[str, Arrays] = {}
        for key, rows in held.references("traffic", functools.partial(self._references, held)).items():
            name, _, figure = key.partition("/")
            sets.setdefault(name, {})[figure] = rows
        return sets

    def _references(self, held: Held) -> Arrays:
        """Return it as arrays named SET/FIGURE, with a row for each document."""
        codec = held.codec.decode(held.codec.encode(held.real))
        sets = {"real": self._judged(held.real, held), "codec": self._judged(codec, held)}
        others = {"nearest": held.nearest(range(len(held.documents))), "shuffled": [*held.real[1:], *held.real[:1]]}
        sets |= {name: known_hits(scenes, held) for name, scenes in others.items() if scenes}
        return {f"{name}/{figure}": values for name, arrays in sets.items() for figure, values in arrays.items()}

    def _judged(self, scenes: Sequence[Media], held: Held) -> Arrays:
        """Return what is said of each scene, a row for each document."""
        touching = [overlaps(scene, watch(scene)) for scene in scenes]
        found = {
            "no_overlap": np.array([not t[0] for t in touching], float),
            "no_collision": np.array([not t.any() for t in touching], float),
            "features": features(scenes).numpy(),
        }
        for name in DRIVEN:
            drives = drive(scenes, DRIVERS[name])
            found[f"{name}_crash_rate"] = np.array([d.crashed for d in drives], float)
            found[f"{name}_speed"] = np.array([d.speed for d in drives])
        return found | known_hits(scenes, held)

    def _named(self, name: str, own: Arrays, beside: dict[str, Arrays], held: Held, found: Found) -> None:
        """Add how often scenes are right in something that the source of the data knows."""
        assert held.truths is not None, "hits are of truths"
        said = name.removeprefix("hit_")
        hits = {end: beside[key][name] for key, end in ENDS.items() if name in beside.get(key, {})}
        found.add_hits(said, own[name], hits, held.truths.chances.get(said))


def features(scenes: Sequence[Media]) -> Tensor:
    """Return float32 [B, V * 8]: scaled numbers of the vehicles in order."""
    return torch.from_numpy(np.stack([scaled(ordered(scene)).ravel() for scene in scenes]))
