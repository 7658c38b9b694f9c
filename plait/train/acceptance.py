"""Whether a run may go on with a config: asked before anything is written into its folder.

What is fixed for a run is what its newest complete checkpoint was made with: settings, by the table in
plait/config/settings.py, and the codecs that encoded its data. A run without a checkpoint has fixed nothing yet.
"""

from pathlib import Path
from typing import Any

import yaml

from plait.common.errors import ConfigError
from plait.common.files import write_text
from plait.config.file import to_dict
from plait.config.run import RunConfig
from plait.config.settings import BEGUN, FIXED, check_same, identity
from plait.data.shards import INDEX_NAME
from plait.data.sources import codec_fingerprints, folders
from plait.train import checkpoint

CURE = (
    "take the old setting, or give a new run another name or --out (train.init_from lets it begin with these weights)"
)


def keep_config(config: RunConfig) -> Path:
    """Write an accepted config into its run's folder, which is returned."""
    out = Path(config.out)
    write_text(out / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))
    return out


def newest_state(config: RunConfig) -> dict[str, Any] | None:
    """Return the state of a run's newest complete checkpoint; None where it has none."""
    newest = checkpoint.latest(Path(config.out) / "checkpoints")
    return checkpoint.read_state(newest) if newest else None


def check_goes_on(config: RunConfig, state: dict[str, Any] | None) -> None:
    """Raise a ConfigError, which names the setting, unless a run may train on from a checkpoint's state."""
    _check(config, state, BEGUN)


def check_fits(config: RunConfig, state: dict[str, Any] | None) -> None:
    """Raise a ConfigError, which names the setting, unless a config describes the model of a checkpoint's state."""
    _check(config, state, (FIXED,))


def _check(config: RunConfig, state: dict[str, Any] | None, kinds: tuple[str, ...]) -> None:
    if state is None or "config" not in state:
        return
    run = f"the run {config.out!r}"
    prepared = all((Path(folder) / INDEX_NAME).exists() for folder in folders(config))
    now = codec_fingerprints(config) if prepared else {}
    for name, fingerprint in state.get("codecs", {}).items():
        if name in now and now[name] != fingerprint:
            where = ", ".join(folders(config))
            raise ConfigError(
                f"data.path: {where!r} encodes {name} by another codec ({now[name][:12]}) than that with which {run} "
                f"was trained ({fingerprint[:12]}), so its ids mean something else; take the data it was trained on, "
                "prepare others with prepare.codecs_from, or give a new run another name or --out"
            )
    check_same(identity(state["config"], kinds), identity(config, kinds), run, CURE)
