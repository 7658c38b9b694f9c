"""How good a run is, as a table: each score beside what chance reaches and what the codec's round trip reaches.

Rows are made of the figures of summary.json by their names (`plait.evaluate.suite`), for the modalities that the run
has. Shares are out of 1; a Fréchet distance has no chance, and lower is better.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from plait.report.numbers import percent, plain

CAPTIONS = {
    "object": "names the right thing",
    "exact": "whole caption right, one thing",
    "exact_several": "whole caption right, several things",
    "relation": "right relation of two things",
    "colour": "right background",
}
"""What a caption can say rightly, in the order of the page."""


TEXTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "wer": ("word error rate, lower is better", percent),
    "cer": ("character error rate, lower is better", percent),
    "exact": ("text is the document's own, letter by letter", percent),
    "cider": ("CIDEr-D against the document's own text", "{:.2f}".format),
    "bleu": ("BLEU", "{:.1f}".format),
    "chrf": ("chrF", "{:.1f}".format),
    "rouge_l": ("ROUGE-L", percent),
}
"""What a text is scored by: its label, and how a figure is written."""

SETS: dict[str, tuple[str, Callable[[float], str]]] = {
    "kid": ("kernel distance to real images (KID x 1,000), lower is better", "{:.1f}".format),
    "precision": ("precision: images that lie among real ones", percent),
    "recall": ("recall: real images that lie among them", percent),
}
"""What a set of images is scored by, besides its Fréchet distance."""
_SET_ENDS = ("", "_codec", "_blurred", "_nearest", "_low", "_high")

_DISTANCES = {"made": "", "codec": "_codec", "blurred": "_blurred", "count": "_count"}


class Score(NamedTuple):
    """A row of the table."""

    given: str
    """Modality that the model was given."""
    made: str
    """Modality that it made."""
    label: str
    value: str
    chance: str
    ceiling: str
    """What the same judge makes of the codec's round trip of real items, all for words; "" where it is not known."""
    bar: tuple[float, float, float] | None
    """Value, chance and ceiling between 0 and 1, for a drawing; None where the score is no share."""
    note: str = ""


def scores(numbers: Mapping[str, float], modalities: Sequence[str], aims: Mapping[str, float]) -> list[Score]:
    """Return the rows that a run's figures have; ``aims`` is the least that its config asks of some of them."""
    host = modalities[0] if modalities else ""
    rows: list[Score] = []
    for name in modalities[1:]:
        rows += _images(numbers, host, name, aims)
        rows += _likeness(numbers, host, name)
        rows += _speech(numbers, host, name, aims)
    for name in modalities[1:]:
        prefix = f"caption_{name}" if _has_own(numbers, name) else "caption"
        if prefix != "caption" or name == _captioned(numbers, modalities):
            rows += _captions(numbers, prefix, name, host, aims)
    return rows


def _captioned(numbers: Mapping[str, float], modalities: Sequence[str]) -> str:
    """Return the modality whose captions are scored under the bare name: the images."""
    others = [m for m in modalities[1:] if not _has_own(numbers, m)]
    return others[0] if others else ""


def _has_own(numbers: Mapping[str, float], name: str) -> bool:
    """Say whether captions of a modality are scored under its own name."""
    return any(f"caption_{name}_{score}" in numbers for score in ("object_accuracy", "bleu"))


def _images(numbers: Mapping[str, float], host: str, name: str, aims: Mapping[str, float]) -> Iterator[Score]:
    """Yield how often images made from text are right, and their distance to real ones."""
    count = numbers.get(f"{name}_object_trials")
    labels = {"object": "shows the right thing, by a reference classifier", "ground": "right background"}
    for score, label in labels.items():
        key = f"{name}_{score}_accuracy"
        if key in numbers:
            notes = [f"{plain(count)} images"] if score == "object" and count else []
            nearest = numbers.get(f"{name}_{score}_nearest")
            notes += [f"nearest training images {percent(nearest)}"] if nearest is not None else []
            ceiling = numbers.get(f"{name}_{score}_codec")
            yield _share(numbers, host, name, label, key, f"{name}_{score}_chance", ceiling, aims, notes)
    distances = {kind: numbers.get(f"{name}_frechet{end}") for kind, end in _DISTANCES.items()}
    said = {kind: "" if value is None else plain(round(value)) for kind, value in distances.items()}
    if said["made"]:
        notes = [f"blurred images {said['blurred']}"] if said["blurred"] else []
        notes += [f"{said['count']} images"] if said["count"] else []
        label = "Fréchet distance to real images, lower is better"
        yield Score(host, name, label, said["made"], "", said["codec"], None, ", ".join(notes))
    for score, (set_label, written) in SETS.items():
        key = f"{name}_{score}"
        if key not in numbers:
            continue
        shown = {end: written(numbers[key + end]) for end in _SET_ENDS if key + end in numbers}
        notes = [f"{shown['_low']} to {shown['_high']}"] if "_low" in shown else []
        notes += [f"blurred images {shown['_blurred']}", f"nearest training images {shown['_nearest']}"]
        yield Score(host, name, set_label, shown[""], "", shown["_codec"], None, ", ".join(notes))


def _likeness(numbers: Mapping[str, float], host: str, name: str) -> Iterator[Score]:
    """Yield how like made images are to the training image of the nearest text, beside what real ones are."""
    key = f"{name}_likeness"
    if f"{key}_real" in numbers:
        value, low, high, real, codec = (
            f"{numbers[key + end]:.2f}" for end in ("", "_low", "_high", "_real", "_codec")
        )
        label = "likeness to the training image of the nearest text; above that of real images it is memory"
        yield Score(host, name, label, value, "", codec, None, f"{low} to {high}, real images {real}")


def _speech(numbers: Mapping[str, float], host: str, name: str, aims: Mapping[str, float]) -> Iterator[Score]:
    """Yield how often speech made from text is understood."""
    key, trials = f"{name}_recognised", numbers.get(f"{name}_recognised_trials")
    if key in numbers:
        notes = [f"{plain(trials)} clips"] if trials else []
        original, relative = (numbers.get(f"{name}_codec_recognised{end}") for end in ("_originals", ""))
        ceiling = None
        if original is not None and relative is not None:
            notes.append(f"originals {percent(original)}")
            ceiling = original * relative
        yield _share(numbers, host, name, "understood by a recogniser", key, f"{key}_chance", ceiling, aims, notes)


def _captions(
    numbers: Mapping[str, float], prefix: str, name: str, host: str, aims: Mapping[str, float]
) -> Iterator[Score]:
    """Yield the scores of captions of a modality."""
    for score, label in CAPTIONS.items():
        key = f"{prefix}_{score}_accuracy"
        if key in numbers:
            yield _share(numbers, name, host, label, key, f"{prefix}_{score}_chance", 1.0, aims, [])
    for score, (label, written) in TEXTS.items():
        key = f"{prefix}_{score}"
        if f"{key}_low" in numbers:
            value, low, high = (written(numbers[key + end]) for end in ("", "_low", "_high"))
            notes = [f"{low} to {high}", f"{plain(numbers[f'{key}_count'])} texts"]
            if score == "exact" and f"{prefix}_in_training" in numbers:
                own, real = (percent(numbers[f"{prefix}_in_training{end}"]) for end in ("", "_real"))
                notes.append(f"{own} are a training text to the letter, of the documents' own {real}")
            yield Score(name, host, label, value, "", "", None, ", ".join(notes))


def _share(
    numbers: Mapping[str, float], given: str, made: str, label: str, key: str, chance: str, ceiling: float | None,
    aims: Mapping[str, float], notes: Sequence[str],
) -> Score:  # fmt: skip
    value, low = numbers[key], numbers.get(chance)
    if key in aims and value < aims[key]:
        notes = [*notes, f"short of the {percent(aims[key])} aimed at"]
    said, guessed, most = (percent(x) if x is not None else "" for x in (value, low, ceiling))
    bar = value, low or 0.0, 1.0 if ceiling is None else ceiling
    return Score(given, made, label, said, guessed, most, bar, ", ".join(notes))
