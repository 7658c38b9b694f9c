"""Where raw documents come from: THE one place that knows which kinds of sources there are.

What a prepared folder was made of stands in its settings. Nothing is guessed from what its documents say.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plait.codecs import CODECS, Codec
from plait.common.errors import ConfigError
from plait.common.files import read_json
from plait.config.run import PrepareConfig
from plait.prepare.manifest import ManifestSource
from plait.prepare.raw import RawSource
from plait.prepare.row_index import RowIndex

SETTINGS_NAME = "settings.json"
"""What a prepared folder was made with."""

SCENES = "scenes"
"""The kind of documents that are drawn and spoken; the others are manifests."""


@dataclass
class Setup:
    """What a worker of `plait prepare` has to know."""

    folder: Path
    """The prepared folder, absolute."""
    prepare: PrepareConfig
    seed: int
    modalities: dict[str, tuple[str, dict]]
    """Codec and its options for each modality."""
    files: list[str] = field(default_factory=list)
    """The manifests' files, absolute; empty for the scenes."""
    registry: dict[str, str] = field(default_factory=lambda: dict(CODECS))
    """Codecs known here: a codec registered at run time is known to the workers too."""


def rows_folder(folder: Path) -> Path:
    """Return where a prepared folder says which rows its manifests have."""
    return folder / "rows"


def open_source(setup: Setup, codecs: dict[str, Codec], keys: Sequence[str] | None = None) -> RawSource:
    """Open the raw documents; ``keys`` names the parts that are wanted (all that the codecs read, if None)."""
    if setup.files:
        return ManifestSource(setup.files, setup.prepare, codecs, RowIndex(rows_folder(setup.folder)))
    return _scenes(setup.prepare, setup.seed, codecs, keys)


def remade(
    folder: str | Path, prepare: PrepareConfig, codecs: dict[str, Codec], keys: Sequence[str] | None = None
) -> RawSource | None:
    """Return the source that makes a prepared folder's raw documents again; None where they are a user's own.

    ``prepare`` is that of the run, which gives way to what the folder was made with; ``keys`` names the parts that are
    wanted, all that the codecs read by default.
    """
    path = Path(folder) / SETTINGS_NAME
    made = read_json(path, "prepared data") if path.exists() else {}
    if made.get("prepare.source") != SCENES:
        return None
    known = {f.name for f in dataclasses.fields(PrepareConfig)}
    recorded = {name.removeprefix("prepare."): value for name, value in made.items() if name.startswith("prepare.")}
    prepare = dataclasses.replace(prepare, **{name: value for name, value in recorded.items() if name in known})
    return _scenes(prepare, made.get("seed", 0), codecs, keys)


def _scenes(prepare: PrepareConfig, seed: int, codecs: dict[str, Codec], keys: Sequence[str] | None) -> RawSource:
    from plait.scenes.source import PARTS, SceneSource

    for name, codec in codecs.items():
        if codec.key not in PARTS:
            raise ConfigError(
                f"model.modalities.{name}.codec: {codec.name!r} reads the parts {codec.key!r}, "
                f"the scenes have {', '.join(PARTS)}"
            )
    keys = [codec.key for codec in codecs.values()] if keys is None else keys
    rate = next((c.sample_rate for c in codecs.values() if c.key == "audio"), Codec.sample_rate)
    return SceneSource(prepare, seed, parts=keys, sample_rate=rate)
