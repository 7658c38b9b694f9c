"""The files of a LeRobotDataset v3: what it holds, and where each episode is.

``meta/info.json`` says version, rate and features; ``meta/tasks.parquet`` the sentences of the tasks. ``meta/episodes``
has a row for each episode, which says where it is in ``data`` (a row for each step) and in ``videos`` (many episodes in
one file, one after another). Images are in the videos, or embedded in the data.
"""

import functools
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.common.errors import DataError, PlaitError, ResourceError, first_line, printable, shown
from plait.prepare.episodes import ACTIONS, STATE, TEXT
from plait.prepare.video import VideoFrames

INFO, TASKS, EPISODES = "meta/info.json", "meta/tasks.parquet", "meta/episodes"
ACTION_FEATURE, STATE_FEATURE, IMAGES = "action", "observation.state", "observation.images."
TIMESTAMP, EPISODE_INDEX, TASK_INDEX = "timestamp", "episode_index", "task_index"
OWN_FEATURES = (TIMESTAMP, "frame_index", EPISODE_INDEX, "index", TASK_INDEX)
"""Features that every dataset has."""
CONVERTER = "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30"
"""LeRobot 0.4's; later versions have it in lerobot.scripts."""


@dataclass(frozen=True)
class Camera:
    """A feature of images."""

    feature: str
    is_video: bool
    height: int
    width: int


class LeRobotFiles:
    """A dataset, opened; it is read when it is asked for. Raises DataError where something of it is missing."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.info = _read_info(self.folder)
        features: dict[str, dict[str, Any]] = self.info["features"]
        self.rate = float(self.info["fps"])
        self.action_size = self._size_of(ACTION_FEATURE)
        self.state_size = self._size_of(STATE_FEATURE) if STATE_FEATURE in features else 0
        self.cameras = _cameras(features)
        """Cameras by manifest key."""
        self.tasks = self._read_tasks()
        """The sentences by their number."""
        self._table = self._read_episodes()
        self.numbers: np.ndarray = self._table[EPISODE_INDEX]
        """The number of each episode."""
        self.lengths: np.ndarray = self._table["length"]
        """Steps of each episode."""
        self.paths = self._all_paths()
        """All files that are read, in a fixed order."""
        self._file = functools.lru_cache(maxsize=4)(self._open)
        self._group = functools.lru_cache(maxsize=2)(self._read_group)
        self._videos = VideoFrames()

    # -- what there is ------------------------------------------------------------------------------------------

    def _error(self, reason: str) -> DataError:
        return DataError(f"prepare.source: {str(self.folder)!r} {reason}")

    def _size_of(self, name: str) -> int:
        features = self.info["features"]
        if name not in features:
            raise self._error(f"has no feature {name!r}, only {', '.join(map(printable, features))}")
        shape = features[name]["shape"]
        if len(shape) != 1 or shape[0] < 1:
            raise self._error(f"has the feature {name!r} of shape {shape}, it must have one axis")
        return int(shape[0])

    def _read_tasks(self) -> dict[int, str]:
        table = self._read_table(self.folder / TASKS)
        texts = [
            n for n, kind in zip(table.column_names, table.schema.types) if str(kind) in ("string", "large_string")
        ]
        if TASK_INDEX not in table.column_names or not texts:
            raise self._error(f"has no tasks in {TASKS}, it needs the columns {TASK_INDEX} and the sentence")
        return dict(zip(table.column(TASK_INDEX).to_pylist(), table.column(texts[0]).to_pylist(), strict=True))

    def _read_episodes(self) -> dict[str, np.ndarray]:
        """Return the columns that are needed of the episodes' table, in the order of the episodes."""
        places = ["data", *(f"videos/{c.feature}" for c in self.cameras.values() if c.is_video)]
        names = [EPISODE_INDEX, "length", "dataset_from_index", "dataset_to_index"]
        names += [f"{place}/{kind}_index" for place in places for kind in ("chunk", "file")]
        names += [f"{place}/from_timestamp" for place in places[1:]]
        paths = sorted((self.folder / EPISODES).glob("*/*.parquet"))
        if not paths:
            raise self._error(f"has no episodes, there is no file {EPISODES}/chunk-000/file-000.parquet")
        tables = [self._read_table(path, names) for path in paths]
        columns = {name: np.concatenate([t.column(name).to_numpy() for t in tables]) for name in names}
        order = np.argsort(columns[EPISODE_INDEX], kind="stable")
        table = {name: column[order] for name, column in columns.items()}
        for name, column in table.items():
            if column.dtype.kind not in "iuf" or np.isnan(column.astype(float)).any():
                raise self._error(f"has an episode without {name!r} in {EPISODES}")
        numbers, lengths = table[EPISODE_INDEX], table["length"]
        for number in numbers[1:][np.diff(numbers) == 0]:
            raise self._error(f"has episode {number} twice in {EPISODES}")
        for number in numbers[lengths < 1]:
            raise self._error(f"has episode {number} without frames")
        for number in numbers[table["dataset_to_index"] - table["dataset_from_index"] != lengths]:
            raise self._error(f"has episode {number} whose length is not that of its rows in {EPISODES}")
        return table

    def _all_paths(self) -> list[Path]:
        """Return the files that episodes are in, after those of meta; raises DataError where one is missing."""
        first: dict[Path, int] = {}
        for i, number in enumerate(self.numbers.tolist()):
            places = [self._data_path(i)]
            places += [self._video_path(i, c.feature) for c in self.cameras.values() if c.is_video]
            for path in places:
                first.setdefault(path, number)
        for path, number in first.items():
            if not path.is_file():
                name = path.relative_to(self.folder).as_posix()
                raise self._error(f"has no file {name!r}, in which episode {number} is")
        meta = [self.folder / INFO, self.folder / TASKS, *sorted((self.folder / EPISODES).glob("*/*.parquet"))]
        return [*meta, *sorted(first)]

    def _data_path(self, i: int) -> Path:
        chunk, file = (int(self._table[f"data/{kind}_index"][i]) for kind in ("chunk", "file"))
        return self._path_of("data_path", chunk_index=chunk, file_index=file)

    def _video_path(self, i: int, feature: str) -> Path:
        chunk, file = (int(self._table[f"videos/{feature}/{kind}_index"][i]) for kind in ("chunk", "file"))
        return self._path_of("video_path", video_key=feature, chunk_index=chunk, file_index=file)

    def _path_of(self, name: str, **fields: Any) -> Path:
        template = self.info.get(name)
        try:
            path = Path(str(template).format(**fields))
        except (LookupError, ValueError, AttributeError):
            raise self._error(f"has the {name} {shown(template)}, which cannot be filled in") from None
        if path.is_absolute() or ".." in path.parts:
            raise self._error(f"has the {name} {shown(template)}, which leads out of its folder")
        return self.folder / path

    # -- tables -------------------------------------------------------------------------------------------------

    def _read_table(self, path: Path, columns: Sequence[str] | None = None) -> Any:
        """Return a Parquet file's columns, all by default."""
        file = self._open(path)
        for name in columns or ():
            if name not in file.schema_arrow.names:
                raise self._error(f"has no column {name!r} in {path.relative_to(self.folder).as_posix()!r}")
        return self._read(path, lambda: file.read(columns))

    def _open(self, path: Path) -> Any:
        try:
            import pyarrow.parquet
        except ImportError:
            message = "prepare.source: package 'pyarrow' is not installed, install it: pip install 'plait[media]'"
            raise ResourceError(message) from None
        return self._read(path, lambda: pyarrow.parquet.ParquetFile(path))

    def _read(self, path: Path, read: Callable[[], Any]) -> Any:
        name = path.relative_to(self.folder).as_posix()
        try:
            return read()
        except FileNotFoundError:
            raise self._error(f"has no file {name!r}") from None
        except Exception as error:  # pyarrow has many
            raise self._error(f"has the file {name!r}, which cannot be read ({first_line(error)})") from None

    def _read_group(self, path: Path, group: int, columns: tuple[str, ...]) -> Any:
        return self._read(path, lambda: self._file(path).read_row_group(group, columns))

    def rows(self, i: int, features: Sequence[str]) -> Any:
        """Return the rows of the i-th episode as a table with these features, and the columns of every dataset."""
        import pyarrow

        path, number = self._data_path(i), int(self.numbers[i])
        file = self._file(path)
        columns = (TIMESTAMP, EPISODE_INDEX, TASK_INDEX, *features)
        for name in columns:
            if name not in file.schema_arrow.names:
                raise self._error(f"has no column {name!r} in {path.relative_to(self.folder).as_posix()!r}")
        start, length = int(self._table["dataset_from_index"][i]) - self._first_row(i), int(self.lengths[i])
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        edges = np.cumsum([0, *sizes])
        if start + length > edges[-1]:
            raise self._error(
                f"has {edges[-1]:,} rows in {path.name!r}, where episode {number} ends at {start + length:,}"
            )
        low, high = (int(np.searchsorted(edges, at, side="right")) - 1 for at in (start, start + length - 1))
        table = pyarrow.concat_tables([self._group(path, g, columns) for g in range(low, high + 1)])
        table = table.slice(start - edges[low], length)
        if (table.column(EPISODE_INDEX).to_numpy() != number).any():
            raise self._error(f"has rows of other episodes where {EPISODES} says that episode {number} is")
        return table

    def _first_row(self, i: int) -> int:
        """Return the index of the first row of the file that the i-th episode is in."""
        places = [self._table[f"data/{kind}_index"] for kind in ("chunk", "file")]
        in_file = np.logical_and(*(place == place[i] for place in places))
        return int(self._table["dataset_from_index"][in_file].min())

    def vectors(self, table: Any, feature: str, size: int) -> np.ndarray:
        """Return the numbers float32 [T, size] of a feature; those that are not there are NaN."""
        column = table.column(feature).combine_chunks()
        kind, episode = str(column.type), table.column(EPISODE_INDEX)[0]
        if kind.startswith(("list", "large_list", "fixed_size_list")):
            lengths = np.array([-1 if row is None else len(row) for row in column.to_pylist()])
            for step in np.flatnonzero(lengths != size):
                raise DataError(f"{feature}: step {step} of episode {episode} has {max(lengths[step], 0)} numbers, "
                                f"{INFO} says {size}")  # fmt: skip
            column = column.flatten()
        elif size != 1:
            raise DataError(f"{feature}: episode {episode} has one number a step, {INFO} says {size}")
        with np.errstate(over="ignore", invalid="ignore"):
            return column.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(table), size)

    def texts(self, table: Any) -> list[str]:
        """Return the sentence of each step's task."""
        numbers = table.column(TASK_INDEX).to_pylist()
        for number in numbers:
            if number not in self.tasks:
                raise DataError(f"{TASK_INDEX}: {TASKS} has no task {number}")
        return [self.tasks[number] for number in numbers]

    # -- images -------------------------------------------------------------------------------------------------

    def frames(self, i: int, table: Any, camera: Camera, steps: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the images uint8 [H, W, 3] of the i-th episode at some steps, in ascending order; raises DataError."""
        if camera.is_video:
            begin = float(self._table[f"videos/{camera.feature}/from_timestamp"][i])
            times = table.column(TIMESTAMP).to_numpy()[list(steps)].astype(float) + begin
            images = self._videos.at(self._video_path(i, camera.feature), times.tolist(), 0.5 / self.rate)
        else:
            column = table.column(camera.feature)
            images = (_decoded(column[int(step)].as_py(), step) for step in steps)
        for step, image in zip(steps, images, strict=True):
            if image.shape[:2] != (camera.height, camera.width):
                height, width = image.shape[:2]
                wanted = f"{INFO} says {camera.height} x {camera.width}"
                raise DataError(f"{camera.feature}: the image of step {step} has {height} x {width} pixels, {wanted}")
            yield image


def _read_info(folder: Path) -> dict[str, Any]:
    """Return what meta/info.json says, its form checked."""
    where = f"prepare.source: {str(folder)!r}"
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{where} is no LeRobotDataset, there is no file {INFO!r}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{where} has the file {INFO!r}, which cannot be read ({first_line(error)})") from None
    version = str(info.get("codebase_version", "")) if isinstance(info, dict) else ""
    if version.startswith("v2"):
        raise DataError(
            f"{where} is a LeRobotDataset {version}, plait reads v3; convert it by LeRobot 0.4: {CONVERTER} "
            f"--repo-id OWNER/NAME --root {folder} --push-to-hub false"
        )
    if not version.startswith("v3"):
        raise DataError(f"{where} has the codebase_version {shown(version)} in {INFO!r}, plait reads v3.0")
    rate = info.get("fps")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1e6:
        raise DataError(f"{where} has the fps {shown(rate)} in {INFO!r}, it must be a number above 0")
    features = info.get("features")
    if not isinstance(features, dict) or not all(map(_is_feature, features.values())):
        raise DataError(f"{where} has no features in {INFO!r}, each must have a dtype and a shape")
    return info


def _is_feature(value: Any) -> bool:
    shape = value.get("shape") if isinstance(value, dict) else None
    is_shape = isinstance(shape, list) and all(type(n) is int for n in shape)
    return is_shape and isinstance(value.get("dtype"), str)


def _cameras(features: dict[str, dict[str, Any]]) -> dict[str, Camera]:
    """Return the cameras by manifest key: "image" for a single one, else their names; depth maps are no images."""
    cameras = {}
    for name, feature in features.items():
        if feature["dtype"] in ("image", "video") and not _is_depth(feature.get("info")):
            cameras[name] = Camera(name, feature["dtype"] == "video", *_sides(name, feature["shape"]))
    if len(cameras) == 1:
        return dict(zip(["image"], cameras.values(), strict=True))
    named = {name.removeprefix(IMAGES).removeprefix("observation."): camera for name, camera in cameras.items()}
    for key in named:
        if key in (TEXT, STATE, ACTIONS):
            raise DataError(f"prepare.source: a camera that is called {key!r} is not allowed beside others, rename it")
    return named


def _is_depth(info: Any) -> bool:
    return isinstance(info, dict) and any(name.endswith("is_depth_map") and value for name, value in info.items())


def _sides(name: str, shape: list[int]) -> tuple[int, int]:
    """Return height and width of images of a shape, whose colours may stand first or last."""
    if len(shape) == 3 and shape[2] in (1, 3, 4):
        return shape[0], shape[1]
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return shape[1], shape[2]
    raise DataError(f"prepare.source: the feature {name!r} of shape {shape} is no image [height, width, 3]")


def _decoded(cell: Any, step: int) -> np.ndarray:
    """Return an embedded image as uint8 [H, W, 3]."""
    from PIL import Image

    from plait.codecs.image_modes import as_rgb
    from plait.codecs.images import FORMATS, MAX_PIXELS

    data = cell.get("bytes") if isinstance(cell, dict) else None
    if not data:
        raise DataError(f"the image of step {step} is not embedded in the data")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise DataError(f"the image of step {step} has more than {MAX_PIXELS:,} pixels")
            return np.array(as_rgb(file))
    except PlaitError:
        raise
    except Exception as error:  # decoders fail in many ways on damaged files
        raise DataError(f"the image of step {step} cannot be read ({first_line(error)})") from None
