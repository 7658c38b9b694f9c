"""A LeRobotDataset v3 as a source of documents: `prepare.source: lerobot:FOLDER`.

The feature action is the part "actions", observation.state is "state", the sentence of the task is "text". A single
camera is "image"; of several, observation.images.X is "X". What no codec reads is left out: such cameras, depth maps,
and all other features (rewards, ends of episodes, times); `plait prepare` names them. Documents are in the order of the
episodes; what an episode becomes is in `plait.prepare.episodes`. Whole episodes are held out for validation.
"""

import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from plait.codecs import Codec
from plait.codecs.images import resize_image
from plait.common.errors import ConfigError, DataError, printable, require
from plait.common.randomness import uniforms
from plait.config.episodes import EpisodesConfig
from plait.config.run import PrepareConfig
from plait.prepare.episodes import ACTIONS, STATE, TEXT, Episode, document, for_world, starts
from plait.prepare.lerobot_files import ACTION_FEATURE, OWN_FEATURES, STATE_FEATURE, Camera, LeRobotFiles
from plait.prepare.raw import BadRow, BrokenRow, RawDocument

PREFIX = "lerobot:"
_DECODED_EPISODES = 2


@dataclass
class _Read:
    """An episode as its documents need it: without images where no document shows them."""

    episode: Episode
    tasks: list[str]
    """The sentence of each step."""


class LeRobotSource:
    """Documents of a LeRobotDataset, by split and index; a `plait.prepare.raw.RawSource`.

    ``keys`` names the parts that are wanted. Images are made as small as ``codecs`` want them, so that many can be
    held. A document that cannot be read is a `BrokenRow` whose file is the episode and whose line is the step.
    """

    credit, truths, trials = "", None, None

    def __init__(
        self, folder: str | Path, prepare: PrepareConfig, seed: int, codecs: dict[str, Codec], keys: Sequence[str]
    ):
        self.dataset = LeRobotFiles(folder)
        self.files = [str(path) for path in self.dataset.paths]
        """All that decides the documents, in a fixed order."""
        self._settings, self._seed, self._keys = prepare.episodes, seed, keys
        self._cameras = {key: camera for key, camera in self.dataset.cameras.items() if key in keys}
        self._sizes = {key: _size_for([c for c in codecs.values() if c.key == key]) for key in self._cameras}
        self._episodes = _split(self.dataset.numbers, prepare.validation_share)
        counts = [len(starts(int(length), self._settings)) for length in self.dataset.lengths]
        self._edges = {split: np.cumsum([0, *(counts[i] for i in of)]) for split, of in self._episodes.items()}
        self._read_episode = functools.lru_cache(maxsize=_DECODED_EPISODES)(self._read_or_error)

    @property
    def robot(self) -> str:
        """The type of robot that the dataset names; "" where it names none."""
        return str(self.dataset.info.get("robot_type") or "")

    def parts(self) -> list[str]:
        """Return the keys of all parts that there are."""
        return parts_of(self.dataset)

    def splits(self) -> dict[str, int]:
        """Return the number of documents of each split."""
        return {split: int(edges[-1]) for split, edges in self._edges.items()}

    def read(self, split: str, start: int, stop: int) -> Iterator[RawDocument | BrokenRow]:
        """Read documents [start, stop) of a split."""
        rows = np.arange(start, min(stop, self.splits()[split]))
        world = for_world(self._settings, rows, seed=self._seed, split=split)
        for row, is_world in zip(rows.tolist(), world.tolist()):
            i, step = self._locate(split, row)
            found = self._read_episode(i)
            try:
                if isinstance(found, DataError):
                    raise found
                episode = replace(found.episode, task=found.tasks[step])
                made = document(episode, step, self._settings, is_world)
                made.parts = [(key, item) for key, item in made.parts if key in self._keys]
                yield made
            except (BadRow, DataError) as error:
                yield self.broken(split, row, str(error))

    def broken(self, split: str, row: int, reason: str) -> BrokenRow:
        """Return a row of a split as a broken one."""
        i, step = self._locate(split, row)
        return BrokenRow(step, printable(reason), self._name(i))

    def kept(self, split: str, broken: Collection[tuple[str, int]]) -> np.ndarray:
        """Return the numbers of a split's rows but for broken ones, given by the name of their episode and the step."""
        places = [self._locate(split, row) for row in range(self.splits()[split])]
        return np.array([row for row, (i, step) in enumerate(places) if (self._name(i), step) not in broken], np.int64)

    def episodes(self, split: str) -> Iterator[Episode]:
        """Yield the episodes of a split whole, with all cameras as they are. Raises DataError."""
        for i in self._episodes[split]:
            steps = range(int(self.dataset.lengths[i]))
            yield self._decode(i, {key: (camera, steps, 0) for key, camera in self.dataset.cameras.items()}).episode

    def scan(self) -> dict[str, Any]:
        """Return how many rows and parts there are, and what became of the features, as the account needs it."""
        splits, settings = self.splits(), self._settings
        rows = sum(splits.values())
        worlds = sum(
            int(for_world(settings, np.arange(n), seed=self._seed, split=split).sum()) for split, n in splits.items()
        )
        images = rows * (settings.history + 1) + worlds
        counts = dict.fromkeys(self._cameras, images) | {TEXT: rows - worlds, STATE: rows - worlds, ACTIONS: rows}
        features = {camera.feature: key for key, camera in self._cameras.items()}
        features |= {ACTION_FEATURE: ACTIONS, STATE_FEATURE: STATE}
        read = {name: key for name, key in features.items() if key in self._keys and name in self._features}
        given = {key: n for key, n in counts.items() if key in self._keys and key in self.parts()}
        left_out = [name for name in self._features if name not in read and name not in OWN_FEATURES]
        columns = {"parts": read, "meta": [], "left out": left_out}
        form = f"LeRobotDataset {self.dataset.info['codebase_version']}"
        return {**splits, "given": given, "account": {"form": form, "columns": columns}}

    @property
    def _features(self) -> Collection[str]:
        return self.dataset.info["features"]

    def _locate(self, split: str, row: int) -> tuple[int, int]:
        """Return the place of a row's episode, and the step at which its document starts."""
        edges = self._edges[split]
        at = int(np.searchsorted(edges, row, side="right")) - 1
        return self._episodes[split][at], (row - int(edges[at])) * self._settings.stride

    def _name(self, i: int) -> str:
        return f"episode {self.dataset.numbers[i]}"

    def _read_or_error(self, i: int) -> "_Read | DataError":
        """Read an episode with the images that its documents show; or return why it cannot be read."""
        length, settings = int(self.dataset.lengths[i]), self._settings
        begins = np.array(starts(length, settings))
        shown = {step for back in range(settings.history + 1) for step in (begins - back).clip(0).tolist()}
        if settings.next_share:
            # documents of a world model that would reach beyond the end start earlier
            ends = begins + settings.chunk
            last = max(length - 1 - settings.chunk, 0)
            shown |= {*ends.clip(max=length - 1).tolist(), *range(max(last - settings.history, 0), last + 1)}
        steps = sorted(shown)
        try:
            return self._decode(i, {key: (c, steps, self._sizes[key]) for key, c in self._cameras.items()})
        except DataError as error:
            return error

    def _decode(self, i: int, cameras: dict[str, tuple[Camera, Sequence[int], int]]) -> _Read:
        """Read an episode; of each camera, by key, the images of some steps, at most so many pixels a side (0: all)."""
        dataset = self.dataset
        features = [ACTION_FEATURE, *([STATE_FEATURE] if dataset.state_size else [])]
        features += [camera.feature for camera, _, _ in cameras.values() if not camera.is_video]
        table = dataset.rows(i, features)
        actions = dataset.vectors(table, ACTION_FEATURE, dataset.action_size)
        state = np.zeros((len(table), 0), np.float32)
        if dataset.state_size:
            state = dataset.vectors(table, STATE_FEATURE, dataset.state_size)
        images = {}
        for key, (camera, steps, size) in cameras.items():
            small = size and min(camera.height, camera.width) > size
            # steps that are not read stay zeros, which take no memory
            images[key] = np.zeros(
                (len(table), *((size, size) if small else (camera.height, camera.width)), 3), np.uint8
            )
            for step, image in zip(steps, dataset.frames(i, table, camera, steps), strict=True):
                images[key][step] = resize_image(image, size) if small else image
        tasks = dataset.texts(table)
        meta = {"episode": int(dataset.numbers[i])}
        return _Read(Episode(tasks[0], images, state, actions, dataset.rate, meta), tasks)


def open_lerobot(
    prepare: PrepareConfig, seed: int, codecs: dict[str, Codec], keys: Sequence[str] | None
) -> LeRobotSource:
    """Open the dataset for ``codecs``; ``keys`` names the parts that are wanted (all that the codecs read, if None)."""
    for name in ("tasks", "max_steps"):
        value, default = getattr(prepare.episodes, name), getattr(EpisodesConfig(), name)
        require(value == default, f"prepare.episodes.{name}", value, "left out for a dataset")
    folder = Path(str(prepare.source).removeprefix(PREFIX)).expanduser()
    read = [codec.key for codec in codecs.values()]
    source = LeRobotSource(folder, prepare, seed, codecs, read if keys is None else keys)
    for name, codec in codecs.items():
        if codec.key not in source.parts():
            raise ConfigError(
                f"model.modalities.{name}.key: {codec.key!r} is not allowed, {str(folder)!r} has the parts "
                f"{', '.join(source.parts())}"
            )
    return source


def parts_of(dataset: LeRobotFiles) -> list[str]:
    """Return the keys of the parts that a dataset's documents can have, in their order."""
    return [TEXT, *dataset.cameras, *([STATE] if dataset.state_size else []), ACTIONS]


def _split(numbers: np.ndarray, share: float) -> dict[str, list[int]]:
    """Return the places of the episodes of each split: those are held out whose numbers have the least hashes.

    They are so many as the share says, one at least where it is above 0 and there are several episodes.
    """
    wanted = min(max(round(share * len(numbers)), 1), len(numbers) - 1) if share else 0
    held_out = {*np.argsort(uniforms(0, "lerobot: validation", item=numbers), kind="stable")[:wanted].tolist()}
    places = range(len(numbers))
    return {"train": [i for i in places if i not in held_out], "validation": sorted(held_out)}


def _size_for(codecs: Sequence[Codec]) -> int:
    """Return the side of the squares that the codecs of a camera cut images to, the largest; 0 where one does not."""
    sizes = [getattr(codec, "size", 0) or getattr(codec.options, "size", 0) for codec in codecs]
    square = all(getattr(codec.options, "aspect", "square") == "square" for codec in codecs)
    return max(sizes) if sizes and all(sizes) and square else 0
