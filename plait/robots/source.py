"""Demonstrations of Meta-World as a source of documents, each one moment of an episode.

Row r of a split is the document r % `DOCUMENTS` of episode r // `DOCUMENTS`: so many starts are drawn from each
episode, evenly spread with a shift by chance, whatever its length, among those from which on the expert was not led
astray for a chunk. Episodes come in runs of up to `RUN` of the same task, since opening an environment takes longer
than an episode; the order of tasks differs from turn to turn. So which task and episode a row belongs to follows from
its number alone, and a block of rows that are read together needs few episodes. `prepare.documents` decides how many
episodes there are.

Splits: ``train``, and ``unseen_starts``: the same tasks, other places of objects and goals.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

from plait.codecs import Codec
from plait.common.errors import require
from plait.common.randomness import generator
from plait.config.episodes import EpisodesConfig
from plait.config.run import PrepareConfig
from plait.prepare.episodes import ACTIONS, STATE, TEXT, Episode, document, for_world, starts
from plait.prepare.raw import RawDocument, Trials, check_keys
from plait.robots.camera import LARGEST
from plait.robots.demonstrations import episode
from plait.robots.metaworld_tasks import SENTENCES, tasks_of

IMAGE = "image"
PARTS = (TEXT, IMAGE, STATE, ACTIONS)
"""Keys of the parts of documents."""
DOCUMENTS = 16
"""Documents of one episode; it divides `plait.prepare.raw.ROWS_AT_ONCE`."""
RUN = 8
"""Most episodes of a task in a row."""
HELD_OUT = 2**32
"""Number of the first episode that is held out."""

_KEPT = 8  # episodes that are kept, 1.5 MB each at 64 x 64 pixels


class MetaworldSource:
    """Moments of demonstrations, by split and index; a `plait.prepare.raw.RawSource`.

    ``parts`` names the parts that are wanted: without images an episode takes a third of the time.
    """

    def __init__(self, prepare: PrepareConfig, seed: int, *, parts: Sequence[str]):
        self.seed, self.settings = seed, prepare.episodes
        self.tasks = tasks_of(prepare.episodes.tasks)
        self.parts, self.image_size = {*parts}, prepare.image_size if IMAGE in parts else 0
        self._rows = {"train": prepare.documents, "unseen_starts": prepare.validation_documents}
        self._kept: OrderedDict[tuple[str, int], tuple[Episode, list[int]]] = OrderedDict()

    def splits(self) -> dict[str, int]:
        """Return the number of documents of each split."""
        return dict(self._rows)

    @property
    def credit(self) -> str:
        """No page has to carry a line."""
        return ""

    @property
    def truths(self) -> None:
        """Nothing is known of single moments: policies are measured by acting (`plait.robots.rollouts`)."""
        return None

    @property
    def trials(self) -> Trials:
        """Its tasks from unseen starts."""
        from plait.robots.trials import MetaworldTrials  # which needs torch, and this file

        return MetaworldTrials(self)

    @property
    def sentences(self) -> list[str]:
        """What its tasks are called."""
        return list(dict.fromkeys(SENTENCES[task] for task in self.tasks))

    def read(self, split: str, start: int, stop: int) -> Iterator[RawDocument]:
        """Make documents [start, stop) of a split. Raises ResourceError where Meta-World is not installed."""
        worlds = for_world(self.settings, np.arange(start, stop), seed=self.seed, split=split)
        for row, world in zip(range(start, stop), worlds, strict=True):
            made, places = self._episode(split, row // DOCUMENTS)
            found = document(made, places[row % DOCUMENTS], self.settings, world=bool(world))
            yield RawDocument([(key, item) for key, item in found.parts if key in self.parts], found.meta)

    def task_of(self, split: str, number: int) -> tuple[str, int]:
        """Return the task of a split's episode, and its number among those of this task."""
        episodes = -(-self._rows[split] // DOCUMENTS)
        run = min(RUN, -(-episodes // len(self.tasks)))
        turn, place = divmod(number, run * len(self.tasks))
        order = generator(self.seed, "robots: order of tasks", item=turn).permutation(len(self.tasks))
        return self.tasks[order[place // run]], turn * run + place % run

    def episodes(self, split: str) -> Iterator[Episode]:
        """Make the whole episodes of a split, with all their images."""
        for number in range(-(-self._rows[split] // DOCUMENTS)):
            task, index = self.task_of(split, number)
            index += HELD_OUT if split != "train" else 0
            yield episode(task, self.seed, index, image_size=self.image_size, max_steps=self.settings.max_steps)

    def _episode(self, split: str, number: int) -> tuple[Episode, list[int]]:
        """Return an episode of a split, with the images that its documents show, and where they start; few are kept."""
        key = (split, number)
        if key not in self._kept:
            self._kept[key] = self._made(split, number)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _made(self, split: str, number: int) -> tuple[Episode, list[int]]:
        task, index = self.task_of(split, number)
        index += HELD_OUT if split != "train" else 0

        def places(was_led: np.ndarray) -> list[int]:
            chosen = _followed(was_led, self.settings)
            shift = generator(self.seed, f"robots: starts of {task}", item=index).random()
            return [chosen[int((k + shift) * len(chosen) / DOCUMENTS)] for k in range(DOCUMENTS)]

        def frames(was_led: np.ndarray) -> set[int]:
            return {step for start in places(was_led) for step in self._seen(start, len(was_led))}

        made = episode(task, self.seed, index, image_size=self.image_size, frames=frames,
                       max_steps=self.settings.max_steps)  # fmt: skip
        return made, places(np.isin(np.arange(len(made)), made.meta["astray"]))

    def _seen(self, start: int, length: int) -> set[int]:
        """Return the steps whose images a document may show that starts at a step."""
        chunk, last = self.settings.chunk, length - 1
        begins = {start, max(min(start, last - chunk), 0)} if self.settings.next_share else {start}
        steps = {begin - back for begin in begins for back in range(self.settings.history + 1)}
        steps |= {begin + chunk for begin in begins} if self.settings.next_share else set()
        return {int(np.clip(step, 0, last)) for step in steps}


def _followed(was_led: np.ndarray, settings: EpisodesConfig) -> list[int]:
    """Return the steps from which on the expert was followed for a chunk: what comes of its actions follows of them."""
    steps = starts(len(was_led), settings)
    return [step for step in steps if not was_led[step : step + settings.chunk - 1].any()] or steps


def open_metaworld(
    prepare: PrepareConfig, seed: int, codecs: dict[str, Codec], keys: Sequence[str] | None
) -> MetaworldSource:
    """Open the demonstrations for ``codecs``; ``keys`` names the parts that are wanted (what codecs read, if None)."""
    check_keys(codecs, PARTS, "episodes of Meta-World have")
    require(prepare.image_size <= LARGEST, "prepare.image_size", prepare.image_size, f"at most {LARGEST} (metaworld)")
    return MetaworldSource(prepare, seed, parts=[c.key for c in codecs.values()] if keys is None else keys)
