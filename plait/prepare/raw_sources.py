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

from plait.codecs import ALLOWED, CODECS, Codec
from plait.common.errors import PlaitError
from plait.common.files import read_json
from plait.config.run import WORLDS, PrepareConfig
from plait.config.run_records import ModalitySettings
from plait.data.shards import SETTINGS_NAME
from plait.prepare.claim import BROKEN_NAME
from plait.prepare.manifest import Documents, ManifestSource
from plait.prepare.raw import RawSource
from plait.prepare.remote import expand
from plait.prepare.row_index import RowIndex, sources_of

MADE = {name: f"plait.{name}.source:open_{name}" for name in WORLDS}
"""Sources that make their documents: name in `prepare.source`, and the function that opens it; imported when used. All
others are manifests."""


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
    """The manifests' files, absolute; empty for the scenes."""
    registry: dict[str, str] = field(default_factory=lambda: dict(CODECS))
    """Codecs known here: a codec registered at run time is known to the workers too."""
    allowed: str = field(default_factory=lambda: os.environ.get(ALLOWED, ""))
    """Modules of codecs outside of plait that may run: workers may come from a server that was started before."""
    reads: dict[str, str] = field(default_factory=dict)
    """Modalities that read the parts of another one, with that one."""


def rows_folder(folder: Path) -> Path:
    """Return where a prepared folder says which rows its manifests have."""
    return folder / "rows"


def open_source(setup: Setup, codecs: dict[str, Codec], keys: Sequence[str] | None = None) -> RawSource:
    """Open the raw documents; ``keys`` names the parts that are wanted (all that the codecs read, if None)."""
    if setup.files:
        return ManifestSource(setup.files, setup.prepare, codecs, RowIndex(rows_folder(setup.folder)))
    return _opener(str(setup.prepare.source))(setup.prepare, setup.seed, codecs, keys)


def remade(
    folder: str | Path, prepare: PrepareConfig, codecs: dict[str, Codec], keys: Sequence[str] | None = None
) -> RawSource | None:
    """Return the source that makes a prepared folder's raw documents again; None where they are a user's own.

    ``prepare`` is that of the run, which gives way to what the folder was made with; ``keys`` names the parts that are
    wanted, all that the codecs read by default.
    """
    path = Path(folder) / SETTINGS_NAME
    made = read_json(path, "prepared data") if path.exists() else {}
    name = made.get("prepare.source", "")
    if not is_made(name):
        return None
    known = {f.name for f in dataclasses.fields(PrepareConfig)}
    recorded = {name.removeprefix("prepare."): value for name, value in made.items() if name.startswith("prepare.")}
    prepare = dataclasses.replace(prepare, **{name: value for name, value in recorded.items() if name in known})
    return _opener(name)(prepare, made.get("seed", 0), codecs, keys)


def opened(folder: str | Path, prepare: PrepareConfig, codecs: dict[str, Codec]) -> RawSource | None:
    """Return the raw documents of a prepared folder that are a user's own; None where their files are not there."""
    try:
        files = expand(sources_of(prepare.source))
        rows = ManifestSource(files, prepare, codecs, RowIndex(rows_folder(Path(folder))))
    except PlaitError:
        return None
    path = Path(folder) / BROKEN_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return Documents(rows, {(row.get("file", ""), row["line"]) for row in map(json.loads, lines)})


def is_made(source: str | list[str]) -> bool:
    """Return whether a source makes its documents, rather than reading a user's."""
    return isinstance(source, str) and source in MADE


def _opener(name: str) -> Callable[..., RawSource]:
    """Return the function that opens a source of MADE: (prepare, seed, codecs, keys) to a source."""
    module, _, function = MADE[name].partition(":")
    opener: Callable[..., RawSource] = getattr(importlib.import_module(module), function)
    return opener
