"""What holds for all tests: the environment, and fixtures that several folders use."""

import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
from helpers.chromium import Browser
from helpers.fake_data import CODEC_NAMES

if not torch.cuda.is_available():  # Triton's kernels run interpreted then; it reads this when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

from plait.codecs import CODECS

torch.set_num_threads(1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def fake_codecs(monkeypatch):
    """Register the codecs of helpers/fake_data.py, which need no training."""
    for name, place in CODEC_NAMES.items():
        monkeypatch.setitem(CODECS, name, place)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; the tests that want it are skipped where there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine (for example: apt-get install chromium)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = Browser(program, Path(folder))
        yield found
        found.close()
