"""Whose a prepared folder is: it belongs to the settings that it was begun with (plait/config/settings.py)."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

from plait.common.errors import ConfigError, DataError
from plait.common.files import recover_all, write_json
from plait.config.file import dotted
from plait.config.run import PrepareConfig, RunConfig
from plait.config.settings import PREPARED, check_same, identity
from plait.data.shards import INDEX_NAME, SETTINGS_NAME, SHARD_SCHEMA_VERSION
from plait.prepare.remote import fingerprint

REPORT_NAME = "report.json"
BROKEN_NAME = "broken.jsonl"

_OURS = (INDEX_NAME, REPORT_NAME, BROKEN_NAME, "codecs", "rows", "shards", "tables", "work", SETTINGS_NAME)
"""What --restart removes: first what says that the folder is whole, last what says whose it is."""


def prepared_settings(config: RunConfig, files: list[str], kind: str = "manifest") -> dict:
    """Return every setting that the prepared data follows from, flat; ``files`` are those that are read, if any."""
    settings = identity(config, PREPARED)
    if files:  # by content, so that a manifest may move together with its media
        settings["prepare.source"] = read_from(kind, files)
    return settings | {"schema_version": SHARD_SCHEMA_VERSION}


def read_from(kind: str, files: list[str]) -> str:
    """Return what a prepared folder says of the files that it was made from: their kind, and what tells them apart."""
    return f"{kind} {fingerprint(files)}"


def check_folder(folder: str, now: dict, restart: bool) -> None:
    """Refuse a folder that something else began, or that other settings did unless it begins again; writes nothing."""
    path = Path(folder) / SETTINGS_NAME
    if not path.exists():
        names = os.listdir(folder) if Path(folder).is_dir() else []
        if any(not name.startswith(".") for name in names):
            what = f"{folder!r} is not empty and was not begun by plait prepare"
            raise ConfigError(f"data.path: {what}, it must be a new or an empty folder")
    elif not restart:
        # a setting that came after the folder was begun had its default
        before = dotted({"prepare": dataclasses.asdict(PrepareConfig())}) | read_if_there(path)
        before |= {
            name: "" for name in now if name.startswith("model.") and name.endswith(".key") and name not in before
        }
        check_same(before, now, repr(folder), "take the old setting, another data.path, or --restart")


def claim_folder(folder: Path, now: dict, restart: bool) -> None:
    """Write the settings into a new folder, and end what a killed process had begun in an old one."""
    if restart:
        for name in _OURS:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    recover_all(folder / "codecs")
    for leftover in [*folder.glob("shards/.*.tmp"), *folder.glob("codecs/.*.tmp")]:
        # of a process that was killed
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    path = folder / SETTINGS_NAME
    if not path.exists():
        write_json(path, now)


def read_if_there(path: Path) -> dict | None:
    """Read a file of a prepared folder; None where there is none. Raises DataError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise DataError(f"data.path: {str(path)!r} is not JSON, rerun with --restart to begin again") from None
