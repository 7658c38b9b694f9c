"""How good a run is, as a table: each score beside what chance reaches and what the codec's round trip reaches.

Rows are made of the figures of summary.json by their names (`plait.evaluate.suite`), for the modalities that the run
has: of each path from what was given to what was made (`paths`), those of KINDS that were measured.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations
from typing import NamedTuple

from plait.evaluate.paths import prefix_of
from plait.report.numbers import percent, plain

ROUTE = "given → made"
"""Head of the column that says what a score is of."""
ALL = "all"
"""As a ceiling: everything right."""


def thousandths(value: float) -> str:
    return f"{value:.3f}"


def hundredths(value: float) -> str:
    return f"{value:.2f}"


def tenths(value: float) -> str:
    return f"{value:.1f}"


def whole(value: float) -> str:
    return plain(round(value))


class Kind(NamedTuple):
    """A score: what it is called, how it is written, and which figures stand beside it."""

    label: str
    written: Callable[[float], str]
    floor: str = ""
    """Figure of what chance reaches."""
    ceiling: str = ""
    """Figure of what the codec's round trip of real items reaches, or ALL."""
    beside: tuple[tuple[str, str], ...] = ()
    """Other figures of the same kind, and whose they are."""
    is_share: bool = False
    """Whether it lies between 0 and 1, so that it can be drawn."""


def _named(label: str, name: str) -> Kind:
    """Return a share of items that are right in something, by figures that begin with its name."""
    beside = ((f"{name}_originals", "real ones"), (f"{name}_nearest", "nearest training items"))
    return Kind(label, percent, f"{name}_chance", f"{name}_codec", beside, True)


def _happening(label: str, name: str) -> Kind:
    """Return the same of what happens, beside that in another document's item."""
    kind = _named(label, name)
    return kind._replace(beside=(*kind.beside, (f"{name}_shuffled", "another document’s")))


def _told(label: str, name: str) -> Kind:
    """Return a share of texts that are right in something."""
    return Kind(label, percent, f"{name}_chance", ALL, (), True)


def _distance(label: str, name: str, written: Callable[[float], str]) -> Kind:
    others = {"real": "real images", "blurred": "blurred images", "nearest": "nearest training images",
              "random": "noise"}  # fmt: skip
    beside = tuple((f"{name}_{end}", said) for end, said in others.items())
    return Kind(label, written, "", f"{name}_codec", beside)


def _of_scenes(distance: str, said: str) -> dict[str, Kind]:
    """Return the figures of sets of scenes by a distance."""

    def kind(label: str, name: str, written: Callable[[float], str]) -> tuple[str, Kind]:
        figure = f"{name}_{distance}"
        return figure, Kind(label, written, "", f"{figure}_codec", ((f"{figure}_training", "training scenes"),))

    return dict([
        kind(f"distance of a real scene to the nearest made one (MMD, {said}), lower is better", "mmd", thousandths),
        kind(f"real scenes that are nearest to a made one (COV, {said})", "coverage", percent),
        kind(f"told from real scenes by the nearest one (1-NNA, {said}), 50% is best", "one_nna", percent),
    ])  # fmt: skip


def _apart(label: str, name: str) -> Kind:
    """Return a distance of motions from the documents' own, beside guesses."""
    others = {
        "nearest": "nearest training motions",
        "still": "all stays as at first",
        "constant": "first velocity kept",
    }
    return Kind(f"{label}, lower is better", thousandths, f"{name}_shuffled", f"{name}_codec",
                tuple((f"{name}_{end}", said) for end, said in others.items()))  # fmt: skip


def _physical(label: str, name: str, written: Callable[[float], str], *, is_share: bool = False) -> Kind:
    """Return what a simulation or the cells alone say."""
    return Kind(label, written, "", f"{name}_codec", ((f"{name}_real", "real ones"),), is_share)


def _driven(name: str, who: str) -> dict[str, Kind]:
    """Return how a driver fares in what was made."""
    crashes, speed = f"{name}_crash_rate", f"{name}_speed"
    return {
        crashes: _physical(f"{who} crashes in it", crashes, percent),
        speed: _physical(f"mean speed of {who} in it, m/s", speed, tenths),
    }


KINDS: dict[str, Kind] = {
    "object_accuracy": _named("shows the right thing, by a reference classifier", "object"),
    "ground_accuracy": _named("right background", "ground"),
    "exact_accuracy": Kind("whole caption right, one thing", percent, "exact_chance", ALL, (), True),
    "exact_several_accuracy": Kind("whole caption right, several things", percent, "", ALL, (), True),
    "relation_accuracy": Kind("right relation of two things", percent, "relation_chance", ALL, (), True),
    "colour_accuracy": _named("right colour", "colour"),
    "event_accuracy": _happening("what happens is what the caption says", "event"),
    "density_accuracy": _happening("as much traffic as the caption says", "density"),
    "lane_accuracy": _happening("ego is in the lane that the caption says", "lane"),
    "ahead_accuracy": _happening("what the caption says is ahead of ego", "ahead"),
    "cut_ins_accuracy": _happening("those that the caption names cut in", "cut_ins"),
    "overtaken_accuracy": _happening("ego is overtaken as the caption says", "overtaken"),
    "no_overlap": _physical("no vehicles overlap", "no_overlap", percent, is_share=True),
    "no_collision": _physical("no vehicles collide in a simulation", "no_collision", percent, is_share=True),
    **_driven("idm", "highway-env’s own driver (IDM and MOBIL)"),
    **_driven("idle", "a driver that keeps lane and speed"),
    "error": _apart("distance from the document’s own", "error"),
    "error_second": _apart("distance of the body that is hit from the document’s own", "error_second"),
    "ends": _apart("distance from the document’s own at the last step", "ends"),
    "penetration": _physical("deepest overlap of bodies, lower is better", "penetration", thousandths),
    "again": _physical("distance from a simulation of the same start, lower is better", "again", thousandths),
    "stands": _physical("stands in a simulation", "stands", percent, is_share=True),
    "loose_voxels": _physical("loose cells, lower is better", "loose_voxels", percent),
    "recognised": Kind("understood by a recogniser", percent, "recognised_chance", "recognised_ceiling",
                       (("codec_recognised_originals", "originals"),), True),
    "clip": Kind("CLIP score", tenths, "clip_shuffled", "clip_codec",
                 (("clip_real", "real images"), ("clip_nearest", "nearest training images"))),
    "match": Kind("likeness to the document’s own", hundredths, "match_shuffled", "match_codec",
                  (("match_nearest", "nearest training items"),), True),
    "wer": Kind("word error rate, lower is better", percent, "", "wer_codec", (("wer_real", "real speech"),)),
    "cer": Kind("character error rate, lower is better", percent, "", "cer_codec", (("cer_real", "real speech"),)),
    "exact": Kind("text is the document’s own, letter by letter", percent, "", ALL, (), True),
    "cider": Kind("CIDEr-D against the document’s own text", hundredths),
    "bleu": Kind("BLEU", tenths),
    "chrf": Kind("chrF", tenths),
    "rouge_l": Kind("ROUGE-L", percent),
    "sentence": Kind("sentence similarity to the document’s own text", hundredths, "sentence_shuffled", ALL, (), True),
    "frechet": _distance("Fréchet distance to real images, lower is better", "frechet", whole),
    "kid": _distance("kernel distance to real images (KID x 1,000), lower is better", "kid", tenths),
    "precision": _distance("precision: images that lie among real ones", "precision", percent),
    "recall": _distance("recall: real images that lie among them", "recall", percent),
    **_of_scenes("chamfer", "Chamfer"),
    **_of_scenes("iou", "IoU"),
    "seconds": Kind("length in seconds", hundredths, "", "", (("seconds_real", "real speech"),)),
    "mos": Kind("naturalness by DNSMOS, 1 to 5", hundredths, "", "mos_codec", (("mos_real", "real speech"),)),
    "neighbour": Kind("likeness to the nearest training item", hundredths, "",
                      "neighbour_codec", (("neighbour_real", "real ones"),)),
    "copied": Kind("nearer to a training item than 95% of real ones are", percent, "", "",
                   (("copied_real", "real ones"),)),
    "in_training": Kind("is a training text to the letter", percent, "", "",
                        (("in_training_real", "the documents’ own"),)),
    "valid": Kind("ends by itself, in an order of modalities that training has", percent, "", ALL, (), True),
}  # fmt: skip
"""Scores in the order of the page, by the names of their figures."""

CAPTIONS = {
    "object_accuracy": _told("names the right thing", "object"),
    "colour_accuracy": _told("says the right colour", "colour"),
    "size_accuracy": _told("says the right size, one thing", "size"),
    "event_accuracy": _told("says what happens", "event"),
    "density_accuracy": _told("says how much traffic there is", "density"),
    "lane_accuracy": _told("says in which lane ego is", "lane"),
    "ahead_accuracy": _told("says what is ahead of ego", "ahead"),
    "cut_ins_accuracy": _told("says what cuts in", "cut_ins"),
    "overtaken_accuracy": _told("says where ego is overtaken", "overtaken"),
    "exact_event_accuracy": Kind("whole caption right, of what happens", percent, "", ALL, (), True),
}
"""What is called otherwise where it is said of a text."""


class Score(NamedTuple):
    """A row of the table."""

    path: tuple[str, ...]
    """Modalities: what the model was given, what it made, and of a round trip what it made on the way between them; ()
    for documents from nothing."""
    label: str
    value: str
    chance: str
    ceiling: str
    """What the same judge makes of the codec's round trip of real items, all for words; "" where it is not known."""
    bar: tuple[float, float, float] | None
    """Value, chance and ceiling between 0 and 1, for a drawing; None where the score is no share."""
    interval: str = ""
    """The 95% interval, in words."""
    items: str = ""
    """How many items it is of."""
    note: str = ""
    """What others score, and which aim it falls short of."""

    @property
    def aside(self) -> str:
        """All that stands below a score."""
        return ", ".join(filter(None, (self.interval, self.items and f"of {self.items}", self.note)))

    @property
    def is_round_trip(self) -> bool:
        return len(self.path) > 2

    @property
    def route(self) -> str:
        """The path in words."""
        return route(self.path)


def scores(numbers: Mapping[str, float], modalities: Sequence[str], aims: Mapping[str, float]) -> list[Score]:
    """Return the rows that a run's figures have; ``aims`` is the least that its config asks of some of them."""
    numbers = dict(numbers)
    for name in modalities:  # the codec's share is relative to the originals'
        own, real = (numbers.get(f"{name}_codec_recognised{end}") for end in ("", "_originals"))
        if own is not None and real is not None:
            numbers[f"{name}_recognised_ceiling"] = own * real
    return [
        row for prefix, path in paths(numbers, modalities) for row in _rows(numbers, prefix, path, modalities, aims)
    ]


def paths(numbers: Mapping[str, float], modalities: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield how the figures of each path begin, and the path: one step, then round trips, then from nothing."""
    if not modalities:
        return
    host, others = modalities[0], modalities[1:]
    bare = [m for m in others if not any(f"caption_{m}_{score}" in numbers for score in ("object_accuracy", "bleu"))]
    known: list[tuple[str, ...]] = [
        *((host, name) for name in others), *((name, host) for name in (*others, host)), *permutations(others, 2),
        *((host, name, host) for name in others), *((name, host, name) for name in others),
    ]  # fmt: skip
    yield from ((prefix_of(path, host, bare[:1]), path) for path in known)
    yield "free", ()


def named(figure: str, numbers: Mapping[str, float], modalities: Sequence[str]) -> tuple[str, Kind] | None:
    """Return what a figure is of, in words, and of which kind it is; None where it stands in no table."""
    for prefix, path in paths(numbers, modalities):
        kind = _kinds(path, modalities).get(figure.removeprefix(f"{prefix}_"))
        if kind and figure.startswith(f"{prefix}_"):
            return route(path), kind
    return None


def route(path: Sequence[str]) -> str:
    """Return a path in words."""
    return " → ".join(path) or "from nothing"


def _kinds(path: tuple[str, ...], modalities: Sequence[str]) -> dict[str, Kind]:
    return KINDS | CAPTIONS if path and path[-1] == modalities[0] else KINDS


def _rows(
    numbers: Mapping[str, float], prefix: str, path: tuple[str, ...], modalities: Sequence[str],
    aims: Mapping[str, float],
) -> Iterator[Score]:  # fmt: skip
    for name, kind in _kinds(path, modalities).items():
        key = f"{prefix}_{name}"
        if key not in numbers:
            continue
        value, floor = numbers[key], numbers.get(f"{prefix}_{kind.floor}")
        ceiling = 1.0 if kind.ceiling == ALL else numbers.get(f"{prefix}_{kind.ceiling}")
        said, guessed, most = (kind.written(x) if x is not None else "" for x in (value, floor, ceiling))
        bar = (value, floor or 0.0, 1.0 if ceiling is None else ceiling) if kind.is_share else None
        low, high, count = (numbers.get(f"{key}_{end}") for end in ("low", "high", "count"))
        interval = f"{kind.written(low)} to {kind.written(high)}" if low is not None and high is not None else ""
        yield Score(path, kind.label, said, guessed, most, bar, interval, plain(count) if count is not None else "",
                    ", ".join(_notes(numbers, prefix, name, kind, aims)))  # fmt: skip


def _notes(
    numbers: Mapping[str, float], prefix: str, name: str, kind: Kind, aims: Mapping[str, float]
) -> Iterator[str]:
    """Yield what other items score, and how the score falls short."""
    key = f"{prefix}_{name}"
    for figure, whose in kind.beside:
        if f"{prefix}_{figure}" in numbers:
            yield f"{whose} {kind.written(numbers[f'{prefix}_{figure}'])}"
    if key in aims and numbers[key] < aims[key]:
        yield f"short of the {percent(aims[key])} aimed at"
