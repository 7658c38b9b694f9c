"""What a run measures: metrics.jsonl, the trackers it is forwarded to, memory, hardware, versions, summary.json.

Every file here is one that another program reads while the run is on or after it was cut off: rows are flushed one
by one, whole files are replaced at once, and a last line that was being written is no error.
"""

import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from plait.common.commit import commit
from plait.common.errors import ConfigError, DataError, ResourceError, unknown
from plait.common.files import clear_disk_errors, from_json, to_json, write_json, write_text

FILE_NAME = "metrics.jsonl"
GB = 1e9


class MetricsLog:
    """Appends rows to ``<folder>/metrics.jsonl`` and forwards them to trackers.

    A row is a flat map of name to number and always holds ``step``, ``seconds`` and ``tokens``. A number that is not
    finite is written as the text "NaN", "Infinity" or "-Infinity", as JSON has no such numbers; null means that there
    is no figure. Opening keeps the rows that are there; a run that resumes calls `drop_after`.
    ``config`` is what the trackers show as the run's settings: a flat map, see `plait.config.file.dotted`.
    Raises ConfigError for an unknown tracker and ResourceError for one that is not installed.
    """

    def __init__(self, folder: str | Path, trackers: Sequence[str] = (), *, config: dict[str, Any]):
        self.path = Path(folder) / FILE_NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._trackers = [tracker_class(name)(self.path.parent, config) for name in trackers]
        self._file = None
        self._rewrite(read_metrics(self.path) if self.path.exists() else [])

    def drop_after(self, step: int) -> None:
        """Forget the rows after ``step`` (-1: all of them), which a resumed run is about to write again."""
        self._rewrite([row for row in read_metrics(self.path) if row["step"] <= step])
        for tracker in self._trackers:
            tracker.resumed_step = step

    def log(self, values: Mapping[str, Any], *, step: int, seconds: float, tokens: int) -> None:
        """Append one row and flush it. Values are numbers or tensors of one element."""
        row = {"step": int(step), "seconds": round(float(seconds), 3), "tokens": int(tokens)}
        row |= {name: _number(value) for name, value in values.items()}
        with clear_disk_errors(self.path):
            self._file.write(_line(row))
            self._file.flush()
        for tracker in self._trackers:
            tracker.log({name: value for name, value in row.items() if value is not None and name != "step"}, step)

    def close(self) -> None:
        """Close the file and end the trackers' runs."""
        with clear_disk_errors(self.path):
            self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _rewrite(self, rows: list[dict]) -> None:
        if self._file is not None:
            self._file.close()
        write_text(self.path, "".join(map(_line, rows)))
        self._file = self.path.open("a", encoding="utf-8")


def read_metrics(path: str | Path) -> list[dict[str, float | None]]:
    """Read the rows of a metrics.jsonl; a last line that was cut off is left out (raises DataError otherwise).

    "NaN", "Infinity" and "-Infinity" become the numbers that they stand for.
    """
    return [from_json(row) for row in read_jsonl(path)]


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read one JSON object a line. Only the last line may be torn; any other broken line raises DataError."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None and not isinstance(row, dict):
                raise ValueError
        except (ValueError, RecursionError):
            if number == len(lines):  # no newline after it: the writer was stopped in the middle
                break
            raise DataError(f"{str(path)!r}, line {number}: not a JSON object, so the file is corrupt") from None
        if row is not None:
            rows.append(row)
    return rows


def write_summary(path: str | Path, figures: Mapping[str, Any]) -> None:
    """Write a flat map of name to number or text as JSON, sorted by name; raises TypeError for anything nested.

    Numbers that are not finite are written as in metrics.jsonl; `from_json` turns them back.
    """
    flat = {name: v if isinstance(v, str | bool | None) else _number(v) for name, v in figures.items()}
    write_json(path, dict(sorted(flat.items())))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(to_json(row), allow_nan=False) + "\n"


def _number(value: Any) -> int | float | None:
    """Return a plain number, or None for none."""
    if hasattr(value, "item"):  # tensors and numpy scalars
        value = value.item()
    if value is not None and not isinstance(value, int | float):
        raise TypeError(f"a metric must be a number, not {type(value).__name__} {value!r}")
    return value


class Tracker:
    """Where rows go besides metrics.jsonl. Opened at the first row, so that a resumed step can be passed on."""

    module = ""
    """Package that it needs."""

    def __init__(self, folder: Path, config: dict[str, Any]):
        self.folder, self.config = folder, config
        self.resumed_step = -1
        self._run = None
        name = self.module.partition(".")[0]
        try:
            importlib.import_module(name)
        except ImportError:
            raise ResourceError(
                f"train.trackers: the package {name!r} is not installed, run `pip install {name}` or leave it out"
            ) from None

    def log(self, values: dict[str, float], step: int) -> None:
        """Forward one row of numbers; NaN and infinities are passed on as such."""
        if self._run is None:
            self._run = self.open()
        self.send(values, step)

    def open(self) -> Any:
        """Start or go on with the tracker's own run."""
        raise NotImplementedError

    def send(self, values: dict[str, float], step: int) -> None:
        """Hand one row to the tracker."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """End the tracker's run."""
        if self._run is not None:
            self._run.finish()


class TensorBoardTracker(Tracker):
    """Event files in ``<run>/tensorboard``."""

    module = "tensorboard"

    def open(self) -> Any:
        """Open a writer that hides what was logged after the resumed step, and write the settings as a text."""
        from torch.utils.tensorboard import SummaryWriter

        purge = self.resumed_step + 1 if self.resumed_step >= 0 else None
        writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=purge)
        lines = [f"    {name}: {json.dumps(value)}" for name, value in self.config.items()]  # Markdown's code block
        writer.add_text("config", "\n".join(lines), max(self.resumed_step, 0))
        return writer

    def send(self, values: dict[str, float], step: int) -> None:
        """Write each number as a scalar."""
        for name, value in values.items():
            self._run.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        if self._run is not None:
            self._run.close()


class WandbTracker(Tracker):
    """Weights & Biases, in the project of WANDB_PROJECT or "plait". It ignores steps that it has seen before."""

    module = "wandb"

    def open(self) -> Any:
        """Start the run, or go on with the one that this folder belongs to."""
        import wandb

        id_file = self.folder / "wandb_id"
        if not id_file.exists():
            write_text(id_file, uuid.uuid4().hex)
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "plait"), name=self.folder.name, id=id_file.read_text().strip(),
            dir=str(self.folder), config=self.config, resume="allow",
        )  # fmt: skip


class TrackioTracker(Tracker):
    """Trackio, in the project "plait"; a run is found again by the folder's name."""

    module = "trackio"

    def open(self) -> Any:
        """Start the run, or go on with the one of the same name."""
        import trackio

        return trackio.init(project="plait", name=self.folder.name, config=self.config, resume="allow", embed=False)


TRACKERS = {"tensorboard": TensorBoardTracker, "trackio": TrackioTracker, "wandb": WandbTracker}


def tracker_class(name: str) -> type[Tracker]:
    """Return the tracker of a registered name (raises ConfigError)."""
    if name not in TRACKERS:
        raise ConfigError(unknown("train.trackers", name, TRACKERS))
    return TRACKERS[name]


def peak_device_memory_gb(device: torch.device | str) -> float:
    """Return the most memory that torch held on a CUDA device, in GB; 0 for other devices."""
    device = torch.device(device)
    return torch.cuda.max_memory_allocated(device) / GB if device.type == "cuda" else 0.0


def hardware() -> dict[str, str | int | float]:
    """Describe the machine: cpu, cpu_cores (usable by this process), memory_gb, and gpu, gpu_count where present."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    facts = {"cpu": _cpu_model(), "cpu_cores": cores, "memory_gb": round(memory, 1)}
    if torch.cuda.is_available():
        facts |= {"gpu": torch.cuda.get_device_name(), "gpu_count": torch.cuda.device_count()}
    elif torch.backends.mps.is_available():
        facts["gpu"] = "Apple MPS"
    return facts


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions that a figure depends on: python, torch, plait, and the commit where this is a checkout."""
    by_name = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        by_name["plait"] = importlib.metadata.version("plait")
    except importlib.metadata.PackageNotFoundError:
        by_name["plait"] = "not installed"
    found = commit()
    return by_name | ({"commit": found} if found else {})


class NoMetrics(contextlib.AbstractContextManager):
    """The log of ranks that write nothing."""

    def __exit__(self, *_) -> None:
        """Nothing is open."""

    def drop_after(self, step: int) -> None:
        """Nothing was written."""

    def log(self, values: Mapping[str, Any], **_) -> None:
        """Leave it to rank 0."""
