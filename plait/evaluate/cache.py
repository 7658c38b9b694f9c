"""What no model changes of an evaluation, kept beside the run: features of real items, and what judges make of them."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from plait.common.files import atomic_file, make_folder


class Cache:
    """Arrays by a name and a key, as safetensors in a folder; None keeps them nowhere."""

    def __init__(self, folder: Path | None, key: Mapping[str, Any]):
        """``key`` is what everything depends on: the data, and what is measured."""
        self.folder, self.key = folder, dict(key)

    def get(
        self, name: str, key: Mapping[str, Any], compute: Callable[[], dict[str, np.ndarray]]
    ) -> Mapping[str, np.ndarray]:
        """Return what ``compute`` returns, from the file of an earlier call with the same key where there is one."""
        if self.folder is None:
            return compute()
        text = json.dumps(self.key | dict(key), sort_keys=True, default=str)
        path = self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
        if path.exists():
            try:
                return load_file(path)
            except (SafetensorError, OSError, ValueError):
                pass  # cut short or not readable: it is computed again
        arrays = {k: np.ascontiguousarray(v) for k, v in compute().items()}
        make_folder(self.folder)
        for old in self.folder.glob(f"{name}-{'?' * 16}.safetensors"):
            old.unlink(missing_ok=True)  # of another key: it is not asked for again
        with atomic_file(path) as temporary:
            save_file(arrays, temporary)
        return arrays
