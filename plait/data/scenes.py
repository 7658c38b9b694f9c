"""Scenes: drawings on a coloured ground, with a caption in text and in speech. Any number of them, from a seed.

Document ``i`` of a split depends on (seed, split, i) alone. Most scenes hold one large drawing ("a red apple on a
blue background"), some hold two in a relation ("a fox left of a key on a red background"), a few hold three.

Splits: ``train``; ``seen`` (training concepts, fresh scenes); ``unseen_concepts`` (families and groups of which
training sees nothing); ``unseen_combinations`` (two concepts seen apart, never together); ``other_voice``
(training concepts, a voice that training never hears). With `prepare.passages`, some of ``train`` are passages of text
alone, and ``passages`` is a split of others of them.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from plait.config import PrepareConfig
from plait.data import speaker
from plait.data.drawings import Concept, all_concepts, placed, rasterize, split_concepts
from plait.data.passages import Passage, first_passages
from plait.data.raw import RawDocument, Truths
from plait.errors import ResourceError
from plait.randomness import generator, uniforms

SAMPLE_RATE = 16_000
"""Of the spoken captions, in samples per second, unless another is asked for."""

BACKGROUNDS = {
    "white": "#ffffff",
    "gray": "#a3a3a3",
    "red": "#d8433b",
    "orange": "#f29a3a",
    "yellow": "#fbe04b",
    "green": "#6cb152",
    "blue": "#4f92dd",
    "purple": "#8a5bb5",
    "pink": "#f6a9cc",
    "brown": "#94653f",
}
"""Ground colours by name."""

RELATIONS = ("left of", "right of", "above", "below")
"""Where the first of two drawings is, seen from the second."""

VOICES = ("en-us", "en-us+f3", "en-us+f5", "en-us+m3", "en-us+m7")
"""eSpeak's voices in every split but ``other_voice``."""

OTHER_VOICE = "en-gb-x-rp"
"""eSpeak's voice of ``other_voice``."""

PARTS = ("text", "image", "audio")
"""Parts of a document, in their order."""

_SPOKEN_TOGETHER = 64  # clips that one eSpeak process speaks, always from a multiple of this on
_TWO, _THREE = 0.12, 0.03  # shares of scenes with two and with three drawings
_APART = 0.1  # share of pairs of training concepts that never meet in training
_RATES, _PITCHES = (205, 235), (35, 65)  # words a minute; eSpeak's pitch, 0 to 99
_CONTRAST = 90  # least distance of a ground from a drawing's mean colour, in RGB
_SILENCE = 0.01  # of full scale: quieter ends are cut


@dataclass(frozen=True)
class Scene:
    """What one document shows and says, before drawing and speaking."""

    concepts: tuple[Concept, ...]
    relation: str | None
    background: str
    centers: tuple[tuple[float, float], ...]
    extents: tuple[float, ...]
    voice: str
    rate: int
    pitch: int

    @property
    def caption(self) -> str:
        """The sentence that describes the scene."""
        names = [with_article(c.name, c.group) for c in self.concepts]
        if self.relation:
            what = f"{names[0]} {self.relation} {names[1]}"
        else:
            what = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
        return f"{what} on {with_article(self.background)} background"

    def meta(self) -> dict:
        """The scene's truth in plain JSON types. ``concept`` is the drawing's code in OpenMoji."""
        return {
            "caption": self.caption,
            "objects": [{"name": c.name, "concept": c.code} for c in self.concepts],
            "background": self.background,
            "relation": self.relation,
            "voice": self.voice,
        }


class SceneSource:
    """Documents of the embedded scenes, by split and index; a `plait.data.raw.RawSource`.

    ``parts`` names the parts that are made (text, image, audio); leaving out what no codec needs saves its time.
    ``sample_rate`` is that of the speech codec.
    """

    def __init__(
        self, prepare: PrepareConfig, seed: int, *, parts: Sequence[str] = PARTS, sample_rate: int = SAMPLE_RATE
    ):
        self.image_size = prepare.image_size
        self.seed = seed
        self.sample_rate = sample_rate
        self.parts = tuple(p for p in PARTS if p in parts)
        held_out = [
            "seen",
            "unseen_concepts",
            "unseen_combinations",
            *(["other_voice"] if "audio" in self.parts else []),
        ]
        self._rows = {"train": prepare.documents} | {name: prepare.validation_documents for name in held_out}
        self._passages = self._draw_passages(prepare) if prepare.passages else {}
        self._rows |= {name: len(drawn) for name, drawn in self._passages.items() if name not in self._rows}

    def splits(self) -> dict[str, int]:
        """Return the number of documents of each split."""
        return dict(self._rows)

    @property
    def truths(self) -> Truths:
        """What is true of the scenes; passages have no truths."""
        from plait.data.scene_truths import SceneTruths

        return SceneTruths(self.seed)

    def _draw_passages(self, prepare: PrepareConfig) -> dict[str, dict[int, Passage]]:
        """Return the documents of each split that are passages."""
        draws = uniforms(self.seed, "scenes: passages", item=np.arange(prepare.documents))
        chosen = np.flatnonzero(draws < prepare.passages).tolist()
        train = first_passages(self.seed, len(chosen), held_out=False)
        other = first_passages(self.seed, prepare.validation_documents, held_out=True)
        return {"train": dict(zip(chosen, train, strict=True)), "passages": dict(enumerate(other))}

    def scene(self, split: str, index: int) -> Scene:
        """Draw what document ``index`` of a split shows and says."""
        return draw_scene(self.seed, split, index)

    def read(self, split: str, start: int, stop: int) -> Iterator[RawDocument]:
        """Make documents [start, stop) of a split. Raises ResourceError where a package is missing."""
        for first in range(start - start % _SPOKEN_TOGETHER, stop, _SPOKEN_TOGETHER):
            last = min(first + _SPOKEN_TOGETHER, stop)
            scenes = [self.scene(split, i) for i in range(first, last)]
            skipped = max(start - first, 0)
            # all are spoken, because what eSpeak says depends on what it said before
            clips = (
                speak_scenes(scenes, self.sample_rate)[skipped:]
                if "audio" in self.parts
                else [None] * (last - first - skipped)
            )
            passages = self._passages.get(split, {})
            for i, scene, clip in zip(range(max(first, start), last), scenes[skipped:], clips):
                passage = passages.get(i)
                yield passage.document(self.parts) if passage else self._document(scene, clip)

    def _document(self, scene: Scene, clip: np.ndarray | None) -> RawDocument:
        picture = draw(scene, self.image_size) if "image" in self.parts else None
        media = {"text": scene.caption, "image": picture, "audio": clip}
        return RawDocument([(part, media[part]) for part in self.parts], scene.meta())


def concepts(seed: int) -> dict[str, list[str]]:
    """Return the names of the concepts: ``train`` (all splits but one) and ``unseen`` (``unseen_concepts``)."""
    return {split: [c.name for c in members] for split, members in split_concepts(seed).items()}


def reference(concept: str, size: int) -> np.ndarray:
    """Draw one concept (an OpenMoji code) large on white, uint8 [size, size, 3]: what judges compare with."""
    drawing = _by_code()[concept]
    return rasterize(placed(drawing, center=(0.5, 0.5), extent=0.84), size=size, background=BACKGROUNDS["white"])


def draw(scene: Scene, size: int) -> np.ndarray:
    """Draw a scene, uint8 [size, size, 3]."""
    places = zip(scene.concepts, scene.centers, scene.extents)
    elements = "".join(placed(c, center=center, extent=extent) for c, center, extent in places)
    return rasterize(elements, size=size, background=BACKGROUNDS[scene.background])


def speak_scenes(scenes: Sequence[Scene], sample_rate: int = SAMPLE_RATE) -> list[np.ndarray]:
    """Speak the captions in one fresh process; float32 [samples], silent ends cut."""
    try:
        import soxr
    except ImportError:
        message = "scenes: package 'soxr' is not installed, install it: pip install 'plait[media,scenes]'"
        raise ResourceError(message) from None
    sentences = [
        {"text": s.caption, "voice": s.voice, "rate": s.rate, "pitch": s.pitch, "variation": 50} for s in scenes
    ]
    clips = []
    for samples in speaker.speak(sentences):
        wave = np.frombuffer(samples, "<i2").astype(np.float32) / 32768
        loud = np.flatnonzero(np.abs(wave) > _SILENCE)
        wave = wave[loud[0] : loud[-1] + 1] if len(loud) else wave
        clips.append(soxr.resample(wave, speaker.SAMPLE_RATE, sample_rate).astype(np.float32))
    return clips


def draw_scene(seed: int, split: str, index: int) -> Scene:
    """Draw document ``index`` of a split: concepts, places, ground and voice."""
    rng = generator(seed, f"scenes: {split}", item=index)
    pool = split_concepts(seed)["unseen" if split == "unseen_concepts" else "train"]
    kind = rng.random()
    count = 3 if kind < _THREE else 2 if kind < _THREE + _TWO or split == "unseen_combinations" else 1
    if split == "unseen_combinations":
        count = 2
    # every concept leads equally often: one random order of all of them after the other
    first = pool[_order(seed, split, len(pool), index // len(pool))[index % len(pool)]]
    chosen = _companions(seed, split, pool, first, count, rng)
    relation = RELATIONS[rng.integers(len(RELATIONS))] if count == 2 else None
    centers, extents = _places(chosen, relation, rng)
    return Scene(
        chosen,
        relation,
        _background(chosen, rng),
        centers,
        extents,
        OTHER_VOICE if split == "other_voice" else VOICES[rng.integers(len(VOICES))],
        int(rng.integers(*_RATES)),
        int(rng.integers(*_PITCHES)),
    )


def meets_in_training(seed: int, a: Concept, b: Concept) -> bool:
    """Return whether two training concepts may share a training scene."""
    low, high = sorted((a.code, b.code))
    return generator(seed, f"scenes: pair {low} {high}").random() >= _APART


@functools.lru_cache(maxsize=32)
def _order(seed: int, split: str, count: int, epoch: int) -> np.ndarray:
    return generator(seed, f"scenes: order of {split}", epoch=epoch).permutation(count)


@functools.cache
def _by_code() -> dict[str, Concept]:
    return {c.code: c for c in all_concepts()}


def _companions(seed, split, pool, first: Concept, count: int, rng) -> tuple[Concept, ...]:
    """Return ``first`` and its companions, in random order, all of different names and allowed to meet."""
    wanted = split != "unseen_combinations"  # elsewhere, only pairs that training may show
    chosen = [first]
    while len(chosen) < count:
        other = pool[rng.integers(len(pool))]
        if other in chosen:
            continue
        if split == "unseen_concepts" or all(meets_in_training(seed, c, other) == wanted for c in chosen):
            chosen.append(other)
    return tuple(chosen[i] for i in rng.permutation(count))


def _background(chosen: Sequence[Concept], rng) -> str:
    """Return a ground on which every drawing can be seen: unlike its mean colour."""
    grounds = {name: np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) for name, code in BACKGROUNDS.items()}
    nearest = {name: min(np.linalg.norm(ground - c.color) for c in chosen) for name, ground in grounds.items()}
    visible = [name for name, distance in nearest.items() if distance > _CONTRAST]
    return visible[rng.integers(len(visible))]


def _places(chosen: Sequence[Concept], relation: str | None, rng):
    """Return centres and longer sides on the unit square, y downwards."""
    if len(chosen) == 1:
        extent = rng.uniform(0.82, 0.92)
        longest = max(chosen[0].box[2:])
        room = [max(0.98 - extent * side / longest, 0) / 2 for side in chosen[0].box[2:]]
        shift = rng.uniform(-1, 1, 2) * np.minimum(room, 0.05)
        return ((0.5 + float(shift[0]), 0.5 + float(shift[1])),), (extent,)
    if relation:
        near, far, drift = 0.26, 0.74, 0.1
        along = (near, far) if relation in ("left of", "above") else (far, near)
        across = 0.5 + rng.uniform(-drift, drift, 2)
        centers = [(a, float(c)) if relation.endswith("of") else (float(c), a) for a, c in zip(along, across)]
        return tuple(centers), tuple(rng.uniform(0.4, 0.47, 2).tolist())
    corners = [(0.27, 0.27), (0.73, 0.3), (0.5, 0.73)]
    return tuple(corners), tuple(rng.uniform(0.38, 0.44, 3).tolist())


# Names that are said without an article: proper names, stuff, plurals.
_PROPER = re.compile(r"^(Santa|Mrs\.|Mx|mount|Tokyo|T-Rex)\b")
_STUFF = """
bread bacon garlic butter salt ice rice sushi oden popcorn soap wood yarn thread coral fog fire mate sake tennis
bowling volleyball baseball basketball badminton softball rugby football confetti broccoli ginger milk
"""
_STUFF_WORDS = frozenset(_STUFF.split())
_AN = re.compile(r"(?!uni|e[uw]|one|US\b|UK\b)[aeiouAEIOU]|hour|x-ray|SOS|NG\b|L\b|M\b")


def with_article(name: str, group: str = "") -> str:
    """Return a name as it is said in a sentence: ``an ox``, ``the flag of Chad``, ``grapes``, ``Aries``."""
    if name.startswith("flag of "):
        return f"the {name}"
    head = re.split(r" (?:with|without|of|in|on|and|facing|under|at|for|showing) ", name)[0].split()
    plural = head[0] in ("men", "women", "people", "busts") or re.search(r"[^sui']s$", head[-1])
    if group == "zodiac" or _PROPER.match(name) or plural or head[-1] in _STUFF_WORDS:
        return name
    return f"{'an' if _AN.match(name) else 'a'} {name}"


def sentence_slots(names: Sequence[str]) -> list[list[str]]:
    """Return the choices that make up the captions of single drawings of these names, slot by slot."""
    groups = {c.name: c.group for c in all_concepts()}
    grounds = [f"{with_article(ground)} background" for ground in BACKGROUNDS]
    return [[with_article(name, groups[name]) for name in names], ["on"], grounds]
