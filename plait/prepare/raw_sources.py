"""Where raw documents come from: THE one place that knows which kinds of sources there are.

What a prepared folder was made of stands in its settings. Nothing is guessed from what its documents say.
"""

import dataclasses
import importlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.codecs import ALLOWED, CODECS, Codec
from plait.common.errors import PlaitError
from plait.common.files import read_json
from plait.config.episodes import EpisodesConfig
from plait.config.run import PrepareConfig, RunConfig
from plait.config.run_records import ModalitySettings
from plait.data.shards import SETTINGS_NAME
from plait.prepare.claim import BROKEN_NAME, read_from
from plait.prepare.manifest import Documents, ManifestSource
from plait.prepare.raw import RawSource
from plait.prepare.remote import expand
from plait.prepare.row_index import RowIndex, sources_of

MADE = {
    "scenes": "plait.scenes.source:open_scenes",
    "worlds": "plait.worlds.source:open_worlds",
    "metaworld": "plait.robots.source:open_metaworld",
    "driving": "plait.driving.source:open_driving",
}
"""Sources that make their documents: name in `prepare.source`, and the function that opens it; imported when used."""
READ = {"lerobot": "plait.prepare.lerobot:open_lerobot"}
"""Sources that read a folder of its own form, KIND:FOLDER in `prepare.source`. All others are manifests."""


@dataclass
class Setup:
    """What a worker of `plait prepare` has to know."""

    folder: Path
    """The prepared folder, absolute."""
    prepare: PrepareConfig
    seed: int
    modalities: dict[str, ModalitySettings]
    """Codec, its options and the key of its parts, for each modality."""
    files: list[str] = field(default_factory=list)
    """The manifests' files, absolute; empty for all other sources."""
    registry: dict[str, str] = field(default_factory=lambda: dict(CODECS))
    """Codecs known here: a codec registered at run time is known to the workers too."""
    allowed: str = field(default_factory=lambda: os.environ.get(ALLOWED, ""))
    """Modules of codecs outside of plait that may run: workers may come from a server that was started before."""
    reads: dict[str, str] = field(default_factory=dict)
    """Modalities that read the parts of another one, with that one."""


def rows_folder(folder: Path) -> Path:
    """Return where a prepared folder says which rows its manifests have."""
    return folder / "rows"


def setup_of(config: RunConfig) -> Setup:
    """Return what the workers have to know of a config. Raises DataError where its manifests are not there."""
    prepare, kind = config.prepare, kind_of(config.prepare.source)
    if kind:  # workers may start elsewhere
        folder = Path(folder_of(prepare.source)).expanduser().absolute()
        prepare = dataclasses.replace(prepare, source=f"{kind}:{folder}")
    files = [] if kind or is_made(prepare.source) else expand(sources_of(prepare.source))
    reads = {name: m.reads for name, m in config.model.modalities.items() if m.reads}
    return Setup(Path(config.data.path).absolute(), prepare, config.seed, dict(config.modalities), files, reads=reads)


def open_source(setup: Setup, codecs: dict[str, Codec], keys: Sequence[str] | None = None) -> RawSource:
    """Open the raw documents; ``keys`` names the parts that are wanted (all that the codecs read, if None)."""
    if setup.files:
        return ManifestSource(setup.files, setup.prepare, codecs, RowIndex(rows_folder(setup.folder)))
    return _opener(setup.prepare.source)(setup.prepare, setup.seed, codecs, keys)


def remade(
    folder: str | Path, prepare: PrepareConfig, codecs: dict[str, Codec], keys: Sequence[str] | None = None
) -> RawSource | None:
    """Return the source that makes a prepared folder's raw documents again; None where they are a user's own.

    ``prepare`` is that of the run, which gives way to what the folder was made with; ``keys`` names the parts that are
    wanted, all that the codecs read by default.
    """
    made = _settings_of(folder)
    name = made.get("prepare.source", "")
    if not is_made(name):
        return None
    prepare = dataclasses.replace(_as_made(prepare, made), source=name)
    return _opener(name)(prepare, made.get("seed", 0), codecs, keys)


def opened(folder: str | Path, prepare: PrepareConfig, codecs: dict[str, Codec]) -> RawSource | None:
    """Return the raw documents of a prepared folder that are a user's own; None where their files are not there."""
    rows: Any
    try:
        if kind := kind_of(prepare.source):
            made = _settings_of(folder)
            rows = _opener(prepare.source)(_as_made(prepare, made), made.get("seed", 0), codecs, None)
            if made.get("prepare.source") != read_from(kind, rows.files):
                return None
        else:
            files = expand(sources_of(prepare.source))
            rows = ManifestSource(files, prepare, codecs, RowIndex(rows_folder(Path(folder))))
    except PlaitError:
        return None
    path = Path(folder) / BROKEN_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return Documents(rows, {(row.get("file", ""), row["line"]) for row in map(json.loads, lines)})


def _settings_of(folder: str | Path) -> dict[str, Any]:
    """Return the settings that a prepared folder was made with; none where it says nothing."""
    path = Path(folder) / SETTINGS_NAME
    settings: dict[str, Any] = read_json(path, "prepared data") if path.exists() else {}
    return settings


def _as_made(prepare: PrepareConfig, made: dict[str, Any]) -> PrepareConfig:
    """Return a run's settings of prepare with those, but for the source, that a prepared folder was made with."""

    def recorded(kind: type, prefix: str) -> dict[str, Any]:
        names = [f.name for f in dataclasses.fields(kind) if f.name != "source"]
        return {name: made[prefix + name] for name in names if prefix + name in made}

    episodes = dataclasses.replace(prepare.episodes, **recorded(EpisodesConfig, "prepare.episodes."))
    return dataclasses.replace(prepare, episodes=episodes, **recorded(PrepareConfig, "prepare."))


def is_made(source: str | list[str]) -> bool:
    """Return whether a source makes its documents, rather than reading a user's."""
    return isinstance(source, str) and source in MADE


def kind_of(source: str | list[str]) -> str:
    """Return which kind of READ a source is; "" where it is none."""
    kind, colon, _ = source.partition(":") if isinstance(source, str) else ("", "", "")
    return kind if colon and kind in READ else ""


def folder_of(source: str | list[str]) -> str:
    """Return the folder of a source of READ; "" where it is none."""
    return str(source).removeprefix(f"{kind}:") if (kind := kind_of(source)) else ""


def _opener(source: str | list[str]) -> Callable[..., RawSource]:
    """Return the function that opens a source of MADE or READ: (prepare, seed, codecs, keys) to a source."""
    module, _, function = (READ[kind] if (kind := kind_of(source)) else MADE[str(source)]).partition(":")
    opener: Callable[..., RawSource] = getattr(importlib.import_module(module), function)
    return opener
