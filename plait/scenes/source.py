"""Scenes: drawings on a coloured ground, with a caption in text and in speech. Any number of them, from a seed.

What they show, and the splits, are in `plait.scenes.world`. With `prepare.passages`, some of ``train`` are passages
of text alone, and ``passages`` is a split of others of them.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from plait.codecs import Codec
from plait.common.errors import ConfigError, ResourceError, require
from plait.common.randomness import uniforms
from plait.config.run import PrepareConfig
from plait.prepare.raw import RawDocument, Truths, check_keys
from plait.scenes import speaker
from plait.scenes.drawings import CREDIT, everyday_things, placed, rasterize
from plait.scenes.passages import Passage, first_passages
from plait.scenes.restyle import Drawings
from plait.scenes.truths import SceneTruths
from plait.scenes.world import BACKGROUNDS, Scene, World

SAMPLE_RATE = 16_000
"""Of the spoken captions, in samples per second, unless another is asked for."""

PARTS = ("text", "image", "audio")
"""Parts of a document, in their order."""

_SPOKEN_TOGETHER = 64  # clips that one eSpeak process speaks, always from a multiple of this on
_SILENCE = 0.01  # of full scale: quieter ends are cut


class SceneSource:
    """Documents of the embedded scenes, by split and index; a `plait.prepare.raw.RawSource`.

    ``parts`` names the parts that are made (text, image, audio); leaving out what no codec needs saves its time.
    ``sample_rate`` is that of the speech codec.
    """

    def __init__(
        self, prepare: PrepareConfig, seed: int, *, parts: Sequence[str] = PARTS, sample_rate: int = SAMPLE_RATE
    ):
        self.image_size = prepare.image_size
        self.seed = seed
        self.world = world_of(prepare, seed)
        self.drawings = Drawings(prepare.drawings) if prepare.drawings else None
        if self.drawings:
            _check_drawings(self.drawings, self.world)
        self.sample_rate = sample_rate
        self.parts = tuple(p for p in PARTS if p in parts)
        held_out = self.world.splits(spoken="audio" in self.parts)
        self._rows = {"train": prepare.documents} | {name: prepare.validation_documents for name in held_out}
        self._passages = self._draw_passages(prepare) if prepare.passages else {}
        self._rows |= {name: len(drawn) for name, drawn in self._passages.items() if name not in self._rows}

    def splits(self) -> dict[str, int]:
        """Return the number of documents of each split."""
        return dict(self._rows)

    @property
    def credit(self) -> str:
        """The line that a page which shows them has to carry."""
        return self.drawings.credit if self.drawings else CREDIT

    @property
    def truths(self) -> Truths:
        """What is true of the scenes; passages have no truths."""
        return SceneTruths(self.world, self.drawings)

    trials = None

    def _draw_passages(self, prepare: PrepareConfig) -> dict[str, dict[int, Passage]]:
        """Return the documents of each split that are passages."""
        draws = uniforms(self.seed, "scenes: passages", item=np.arange(prepare.documents))
        chosen = np.flatnonzero(draws < prepare.passages).tolist()
        train = first_passages(self.seed, len(chosen), held_out=False)
        other = first_passages(self.seed, prepare.validation_documents, held_out=True)
        return {"train": dict(zip(chosen, train, strict=True)), "passages": dict(enumerate(other))}

    def read(self, split: str, start: int, stop: int) -> Iterator[RawDocument]:
        """Make documents [start, stop) of a split. Raises ResourceError where a package is missing."""
        for first in range(start - start % _SPOKEN_TOGETHER, stop, _SPOKEN_TOGETHER):
            last = min(first + _SPOKEN_TOGETHER, stop)
            scenes = [self.world.scene(split, i) for i in range(first, last)]
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
        image = draw(scene, self.image_size, self.drawings) if "image" in self.parts else None
        media = {"text": scene.caption, "image": image, "audio": clip}
        return RawDocument([(part, media[part]) for part in self.parts], scene.meta())


def open_scenes(prepare: PrepareConfig, seed: int, codecs: dict[str, Codec], keys: Sequence[str] | None) -> SceneSource:
    """Open the scenes for ``codecs``; ``keys`` names the parts that are wanted (all that the codecs read, if None)."""
    check_keys(codecs, PARTS, "the scenes have")
    keys = [codec.key for codec in codecs.values()] if keys is None else keys
    rate = next((c.sample_rate for c in codecs.values() if c.kind == "audio"), Codec.sample_rate)
    return SceneSource(prepare, seed, parts=keys, sample_rate=rate)


def world_of(prepare: PrepareConfig, seed: int) -> World:
    """Return the world that a config's scenes are of. Raises ConfigError for more things than there are,
    and for so few that scenes of two cannot be made of them."""
    if prepare.concepts == "all":
        return World(seed)
    count = int(prepare.concepts)
    most = len(everyday_things())
    require(count <= most, "prepare.concepts", count, f"at most {most}, or all")
    world = World(seed, count)
    world.check()
    return world


def _check_drawings(drawings: Drawings, world: World) -> None:
    missing = drawings.missing((*world.train, *world.unseen))
    if missing:
        raise ConfigError(
            f"prepare.drawings: {drawings.folder!r} has no drawing of {len(missing)} things of this world, "
            f"such as {missing[0]!r}; take another set, or fewer prepare.concepts"
        )


def draw(scene: Scene, size: int, drawings: Drawings | None = None) -> np.ndarray:
    """Draw a scene, uint8 [size, size, 3], by OpenMoji's drawings or others."""
    concepts = [drawings.of(c) for c in scene.concepts] if drawings else scene.concepts
    places = zip(concepts, scene.centers, scene.extents)
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
