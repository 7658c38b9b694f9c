"""Media files that are good and that are not."""

import numpy as np
import pytest
import soundfile
from PIL import Image


@pytest.fixture
def media(tmp_path):
    """Return a folder with a good and a truncated PNG, a good and an empty WAV."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:300])
    (tmp_path / "text.png").write_text("not an image")
    soundfile.write(tmp_path / "good.wav", rng.uniform(-0.5, 0.5, 1000), 8000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    return tmp_path
