"""Traffic as a source of documents: scenes with what happens in them, and what an expert does in a scene.

What they show, and the splits, are in `plait.driving.world`. A document of a scene has the parts text (its caption) and
traffic. Where actions are wanted, every second document is a moment of an expert's drive: text (how it is told to
drive), traffic (what it sees) and actions (what it does from then on, twice a second).
"""

from collections.abc import Iterator, Sequence
from typing import Any

from plait.codecs import Codec
from plait.common.errors import require
from plait.config.run import PrepareConfig
from plait.driving.simulate import ACTIONS, LANES
from plait.driving.trials import DrivingTrials
from plait.driving.truths import DrivingTruths, meta_of
from plait.driving.world import CHUNK, SPLITS, VEHICLES, World
from plait.prepare.raw import RawDocument, Truths, check_keys

PARTS = ("text", "traffic", "actions")
"""Keys of the parts of documents."""

ONLY: dict[str, dict[str, Any]] = {
    "traffic": {"vehicles": VEHICLES, "lanes": LANES},
    "actions": {"choices": [a.lower() for a in ACTIONS], "steps": CHUNK},
}
"""What options of codecs have to be, by the key of their parts."""


class DrivingSource:
    """Documents of traffic, by split and index; a `plait.prepare.raw.RawSource`.

    ``parts`` names the parts that are made; ``driven`` says whether every second document is of an expert's drive.
    """

    def __init__(self, prepare: PrepareConfig, seed: int, *, parts: Sequence[str], driven: bool):
        self.parts, self.driven, self.world = tuple(p for p in PARTS if p in parts), driven, World(seed)
        self._rows = {"train": prepare.documents} | dict.fromkeys(SPLITS, prepare.validation_documents)

    def splits(self) -> dict[str, int]:
        """Return the number of documents of each split."""
        return dict(self._rows)

    @property
    def credit(self) -> str:
        """Simulated scenes carry no credit."""
        return ""

    @property
    def trials(self) -> DrivingTrials | None:
        """What a model that drives is tried in."""
        return DrivingTrials(self.world) if self.driven else None

    @property
    def truths(self) -> Truths:
        """What is true of them."""
        return DrivingTruths()

    def read(self, split: str, start: int, stop: int) -> Iterator[RawDocument]:
        """Make documents [start, stop) of a split."""
        for i in range(start, stop):
            if self.driven and i % 2:
                moment = self.world.moment(split, i // 2)
                media = {"text": moment.sentence, "traffic": moment.seen, "actions": moment.actions}
                meta = {"caption": moment.sentence}
            else:
                scene = self.world.scene(split, i)
                media = {"text": scene.caption, "traffic": scene.traffic}
                meta = meta_of(scene.happening)
            yield RawDocument([(part, media[part]) for part in self.parts if part in media], meta)


def open_driving(
    prepare: PrepareConfig, seed: int, codecs: dict[str, Codec], keys: Sequence[str] | None
) -> DrivingSource:
    """Open the traffic for ``codecs``; ``keys`` names the parts that are wanted (all that the codecs read, if None)."""
    check_keys(codecs, PARTS, "traffic has")
    for name, codec in codecs.items():
        for setting, only in ONLY.get(codec.key, {}).items():
            value = getattr(codec.options, setting, None)
            require(
                value == only, f"model.modalities.{name}.codec_options.{setting}", value, f"{only}, as in the traffic"
            )
    read = [codec.key for codec in codecs.values()]
    return DrivingSource(prepare, seed, parts=read if keys is None else keys, driven="actions" in read)
