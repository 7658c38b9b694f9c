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
    """Arrays by a name and a key, in memory and as safetensors in a folder; None keeps no files."""

    def __init__(self, folder: Path | None, key: Mapping[str, Any]):
        """``key`` is what everything depends on: the data, and what is measured."""
        self.folder, self.key = folder, dict(key)
        self._held: dict[tuple[str, str], Mapping[str, np.ndarray]] = {}

    def get(
        self, name: str, key: Mapping[str, Any], compute: Callable[[], dict[str, np.ndarray]]
    ) -> Mapping[str, np.ndarray]:
        """Return what ``compute`` returned for the same name and key before, or does now."""
        text = json.dumps(self.key | dict(key), sort_keys=True, default=str)
        if (name, text) not in self._held:
            self._held[name, text] = compute() if self.folder is None else self._filed(self.folder, name, text, compute)
        return self._held[name, text]

    @staticmethod
    def _filed(
        folder: Path, name: str, text: str, compute: Callable[[], dict[str, np.ndarray]]
    ) -> Mapping[str, np.ndarray]:
        """Return it from the file of an earlier run where there is one, else computed, with a file made of it."""
        path = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
        if path.exists():
            try:
                return load_file(path)
            except (SafetensorError, OSError, ValueError):
                pass  # cut short or not readable: it is computed again
        arrays = {k: np.ascontiguousarray(v) for k, v in compute().items()}
        make_folder(folder)
        for old in folder.glob(f"{name}-{'?' * 16}.safetensors"):
            old.unlink(missing_ok=True)  # of another key: it is not asked for again
        with atomic_file(path) as temporary:
            save_file(arrays, temporary)
        return arrays
