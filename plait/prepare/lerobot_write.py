"""Episodes to a LeRobotDataset v3, whose form is in `plait.prepare.lerobot_files`: `plait export --to lerobot`."""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from plait.common.errors import ConfigError, DataError, ResourceError, require
from plait.common.files import atomic_folder, write_json
from plait.config.run import RunConfig
from plait.prepare.episodes import Episode
from plait.prepare.lerobot_files import ACTION_FEATURE, EPISODES, IMAGES, INFO, STATE_FEATURE, TASK_INDEX, TASKS
from plait.prepare.lerobot_stats import Stats, image_stats, together, vector_stats
from plait.prepare.stages import raw_source
from plait.prepare.video import VideoFile

VERSION = "v3.0"
STATS = "meta/stats.json"
MB = 1024 * 1024
DATA_MB, VIDEO_MB, FILES_IN_CHUNK = 100, 200, 1000
"""Sizes at which a new file begins, and files in one folder."""
_PLACE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH, VIDEO_PATH = f"data/{_PLACE}.parquet", "videos/{video_key}/" + f"{_PLACE}.mp4"
_EPISODES_AT_ONCE = 1000
_OWN = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
        TASK_INDEX: "int64"}  # fmt: skip


def write_lerobot(
    folder: str | Path, episodes: Iterable[Episode], *, robot: str, image_format: Literal["image", "video"]
) -> Path:
    """Write episodes as a LeRobotDataset v3 into a new or an empty folder, whole or not at all; return the folder.

    ``image_format``: images are embedded as PNG (image), which loses nothing, or become videos (H.264), which are
    smaller. Raises ConfigError for a folder that holds something, DataError for episodes that are not alike.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--out: {str(folder)!r} is not empty, it must be a new or an empty folder")
    require(image_format in ("image", "video"), "image_format", image_format, "image or video")
    with atomic_folder(folder) as temporary:
        writer = _Writer(temporary, robot, image_format)
        for episode in episodes:
            writer.add(episode)
        writer.close()
    return folder


def export_episodes(config: RunConfig, folder: str | Path) -> Path:
    """Write the episodes of a run's data, of all splits, into a new or an empty folder, with images embedded.

    Raises ConfigError where the data have none.
    """
    source: Any = raw_source(config)
    if not hasattr(source, "episodes"):
        raise ConfigError(
            f"export: the data of {config.out!r} (prepare.source {config.prepare.source!r}) have no episodes of a "
            "robot, leave out --to lerobot"
        )
    robot = getattr(source, "robot", "") or "unknown"
    return write_lerobot(folder, _of_all_splits(source), robot=robot, image_format="image")


def _of_all_splits(source: Any) -> Iterator[Episode]:
    for split in source.splits():
        for episode in source.episodes(split):
            yield replace(episode, meta=episode.meta | {"split": split})


class _Writer:
    """A dataset that grows by episodes."""

    def __init__(self, folder: Path, robot: str, image_format: str):
        self.folder, self.robot, self.image_format = folder, robot, image_format
        self.first: Episode | None = None
        """What all others must be like."""
        self.tasks: dict[str, int] = {}
        self.splits: dict[str, list[int]] = {}
        self.num_episodes = self.num_frames = 0
        self.stats: dict[str, list[Stats]] = {}
        self.records: list[dict[str, Any]] = []
        """Rows of the episodes' table that are not written yet."""
        self.data: Any = None
        self.videos: dict[str, VideoFile] = {}
        self.paths: dict[str, Path] = {}
        self.numbers: dict[str, int] = {}
        """Path and number of the file that is being written, of the data ("data") and of each video."""

    def add(self, episode: Episode) -> None:
        """Write an episode."""
        self._check(episode)
        self.first = self.first or episode
        number, length = self.num_episodes, len(episode)
        task = self.tasks.setdefault(episode.task, len(self.tasks))
        steps = np.arange(length)
        columns: dict[str, np.ndarray] = {
            "timestamp": (steps / episode.rate).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, number),
            "index": self.num_frames + steps,
            TASK_INDEX: np.full(length, task),
            ACTION_FEATURE: episode.actions,
        }
        if episode.state.shape[1]:
            columns[STATE_FEATURE] = episode.state
        stats = {name: vector_stats(v.reshape(length, -1)) for name, v in columns.items()}
        stats |= {IMAGES + key: image_stats(frames) for key, frames in episode.images.items()}
        record = {"episode_index": number, "tasks": [episode.task], "length": length}
        record |= self._write_data(columns, episode)
        record |= {"dataset_from_index": self.num_frames, "dataset_to_index": self.num_frames + length}
        if self.image_format == "video":
            for key, frames in episode.images.items():
                record |= self._write_video(IMAGES + key, frames, episode.rate)
        for name, feature_stats in stats.items():
            self.stats.setdefault(name, []).append(feature_stats)
            record |= {f"stats/{name}/{k}": value.tolist() for k, value in feature_stats.items()}
        self.records.append(record)
        self.splits.setdefault(str(episode.meta.get("split", "train")), []).append(number)
        self.num_episodes, self.num_frames = number + 1, self.num_frames + length
        if len(self.records) == _EPISODES_AT_ONCE:
            self._write_records()

    def close(self) -> None:
        """Write what is known once all episodes are there."""
        if self.first is None:
            raise DataError("export: there are no episodes to write, a LeRobotDataset needs one at least")
        self._write_records()
        self.data.close()
        for video in self.videos.values():
            video.close()
        self._write_tasks()
        stats = {name: {k: v.tolist() for k, v in together(s).items()} for name, s in self.stats.items()}
        write_json(self.folder / STATS, stats)
        write_json(self.folder / INFO, self._info(self.first))

    def _check(self, episode: Episode) -> None:
        """Raise DataError for an episode that the dataset cannot hold."""
        where, length = f"export: episode {self.num_episodes}", len(episode)
        if not length:
            raise DataError(f"{where} has no steps")
        if not episode.images and self.image_format == "video":
            raise DataError(f"{where} has no images, which videos could be made of")
        for name, values in {"state": episode.state, **episode.images}.items():
            if len(values) != length:
                raise DataError(f"{where} has {length} actions, but {len(values)} steps of {name!r}")
        for name, values in {"state": episode.state, "actions": episode.actions}.items():
            if not np.isfinite(values).all():
                raise DataError(f"{where} has {name} that are NaN or infinite")
        for key, frames in episode.images.items():
            if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
                what = f"{frames.dtype} {list(frames.shape)}"
                raise DataError(f"{where} has {what} as images of {key!r}, they must be uint8 [T, H, W, 3]")
            if self.image_format == "video" and (frames.shape[1] % 2 or frames.shape[2] % 2):
                raise DataError(f"{where} has images of {frames.shape[1]} x {frames.shape[2]} pixels of {key!r}, "
                                "videos need even numbers; write images")  # fmt: skip
        if self.first is not None and _form(episode) != _form(self.first):
            raise DataError(f"{where} is not like the first one: {_form(episode)}, not {_form(self.first)}")

    # -- files --------------------------------------------------------------------------------------------------

    def _next_file(self, name: str, template: str, **fields: str) -> Path:
        """Begin the next file of a kind and return its path."""
        number = self.numbers[name] = self.numbers.get(name, -1) + 1
        self.paths[name] = self.folder / template.format(**fields, **_place(number))
        self.paths[name].parent.mkdir(parents=True, exist_ok=True)
        return self.paths[name]

    def _write_data(self, columns: dict[str, np.ndarray], episode: Episode) -> dict[str, int]:
        """Write the rows of an episode as one row group; return where they are."""
        pyarrow = _pyarrow()
        arrays = {name: pyarrow.array(values) for name, values in columns.items() if name in _OWN}
        for name, values in columns.items():
            if name not in _OWN:
                flat = pyarrow.array(np.ascontiguousarray(values, np.float32).ravel())
                size = values.shape[1]  # one number is no list
                arrays[name] = pyarrow.FixedSizeListArray.from_arrays(flat, size) if size > 1 else flat
        if self.image_format == "image":
            for key, frames in episode.images.items():
                cells = [{"bytes": _png(image), "path": f"frame-{i:06d}.png"} for i, image in enumerate(frames)]
                kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
                arrays[IMAGES + key] = pyarrow.array(cells, kind)
        table = pyarrow.table(arrays).replace_schema_metadata({"huggingface": json.dumps(_hf_features(arrays))})
        if self.data is None or self.paths["data"].stat().st_size >= DATA_MB * MB:
            if self.data is not None:
                self.data.close()
            path = self._next_file("data", DATA_PATH)
            self.data = pyarrow.parquet.ParquetWriter(path, table.schema)
        self.data.write_table(table, row_group_size=len(table))
        return {f"data/{name}": value for name, value in _place(self.numbers["data"]).items()}

    def _write_video(self, feature: str, frames: np.ndarray, rate: float) -> dict[str, Any]:
        """Write the frames of an episode behind those of the others; return where they are."""
        video, (height, width) = self.videos.get(feature), frames.shape[1:3]
        if video is None or video.num_bytes >= VIDEO_MB * MB:
            if video is not None:
                video.close()
            path = self._next_file(feature, VIDEO_PATH, video_key=feature)
            video = self.videos[feature] = VideoFile(path, height, width, rate)
        begin = video.num_frames / rate
        video.append(frames)
        place = {f"videos/{feature}/{name}": value for name, value in _place(self.numbers[feature]).items()}
        times = {"from_timestamp": begin, "to_timestamp": video.num_frames / rate}
        return place | {f"videos/{feature}/{name}": value for name, value in times.items()}

    def _write_records(self) -> None:
        """Write the rows of the episodes' table as its own file."""
        if self.records:
            path = self._next_file(EPISODES, f"{EPISODES}/{_PLACE}.parquet")
            place = {f"{EPISODES}/{name}": value for name, value in _place(self.numbers[EPISODES]).items()}
            pyarrow = _pyarrow()
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([r | place for r in self.records]), path)
            self.records = []

    def _write_tasks(self) -> None:
        """Write the tasks as pandas does whose index is the sentence."""
        pyarrow, index = _pyarrow(), "__index_level_0__"
        numbers = pyarrow.array(list(self.tasks.values()), pyarrow.int64())
        table = pyarrow.table({TASK_INDEX: numbers, index: pyarrow.array(list(self.tasks), pyarrow.string())})
        kinds = {TASK_INDEX: ("int64", "int64"), None: ("unicode", "object")}
        columns = [
            {"name": name, "field_name": name or index, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
            for name, (kind, dtype) in kinds.items()
        ]
        column_index = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object",
                        "metadata": {"encoding": "UTF-8"}}  # fmt: skip
        said = {"index_columns": [index], "column_indexes": [column_index], "columns": columns,
                "creator": {"library": "pyarrow", "version": pyarrow.__version__}}  # fmt: skip
        (self.folder / TASKS).parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(said)}), self.folder / TASKS)

    def _info(self, first: Episode) -> dict[str, Any]:
        """Return what meta/info.json says."""
        features: dict[str, dict[str, Any]] = {
            ACTION_FEATURE: {"dtype": "float32", "shape": [first.actions.shape[1]], "names": None}
        }
        if first.state.shape[1]:
            features[STATE_FEATURE] = {"dtype": "float32", "shape": [first.state.shape[1]], "names": None}
        rate = int(first.rate) if float(first.rate).is_integer() else float(first.rate)
        for key, frames in first.images.items():
            height, width = frames.shape[1:3]
            names = ["height", "width", "channels"]
            features[IMAGES + key] = {"dtype": self.image_format, "shape": [height, width, 3], "names": names}
            if self.image_format == "video":
                features[IMAGES + key]["info"] = {
                    "video.height": height, "video.width": width, "video.codec": "h264", "video.pix_fmt": "yuv420p",
                    "video.is_depth_map": False, "video.fps": rate, "video.channels": 3, "has_audio": False,
                }  # fmt: skip
        features |= {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in _OWN.items()}
        return {
            "codebase_version": VERSION,
            "robot_type": self.robot,
            "total_episodes": self.num_episodes,
            "total_frames": self.num_frames,
            "total_tasks": len(self.tasks),
            "chunks_size": FILES_IN_CHUNK,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": rate,
            "splits": {name: f"{numbers[0]}:{numbers[-1] + 1}" for name, numbers in self.splits.items()},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.image_format == "video" else None,
            "features": features,
        }


def _place(number: int) -> dict[str, int]:
    """Return the chunk of the file of a number, and which file of it that is."""
    return {"chunk_index": number // FILES_IN_CHUNK, "file_index": number % FILES_IN_CHUNK}


def _form(episode: Episode) -> dict[str, Any]:
    """Return what all episodes of a dataset have to have the same."""
    sides = {key: list(frames.shape[1:3]) for key, frames in episode.images.items()}
    return {"rate": episode.rate, "actions": episode.actions.shape[1], "state": episode.state.shape[1], **sides}


def _hf_features(arrays: dict[str, Any]) -> dict[str, Any]:
    """Return what Hugging Face's datasets have to know of the columns: which are images."""

    def feature(kind: Any) -> dict[str, Any]:
        if str(kind).startswith("struct"):
            return {"_type": "Image"}
        if str(kind).startswith("fixed_size_list"):
            return {"feature": {"dtype": "float32", "_type": "Value"}, "length": kind.list_size, "_type": "Sequence"}
        return {"dtype": {"float": "float32"}.get(str(kind), str(kind)), "_type": "Value"}

    return {"info": {"features": {name: feature(array.type) for name, array in arrays.items()}}}


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ResourceError(
            "export: package 'pyarrow' is not installed, install it: pip install 'plait[media]'"
        ) from None
    return pyarrow
