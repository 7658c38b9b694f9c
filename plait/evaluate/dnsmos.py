"""DNSMOS P.835: how natural speech sounds, 1 to 5, as listeners would say (the package speechmos; Interspeech 2022).

ovrl: all together; sig: the voice; bak: the background. The network was trained on real speech with noise.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plait.codecs.sounds import resample
from plait.common.cores import num_cores
from plait.common.errors import ResourceError

RATE = 16_000
SECONDS = 9.01
"""What the network hears at once."""
CURVES = {
    "sig": (-0.08397278, 1.22083953, 0.0052439),
    "bak": (-0.13166888, 1.60915514, -0.39604546),
    "ovrl": (-0.06766283, 1.11546468, 0.04602535),
}
"""In the order of the network's outputs: polynomials that lead from them to the scale of listeners."""


def dnsmos(clips: Sequence[np.ndarray], sample_rate: int) -> list[dict[str, float]]:
    """Return ``ovrl``, ``sig`` and ``bak`` of each clip, float32 [samples]; a short clip is repeated."""
    session = _session()
    return [_rated(clip, sample_rate, session) for clip in clips]


def _rated(clip: np.ndarray, sample_rate: int, session: Any) -> dict[str, float]:
    wave = resample(np.asarray(clip, np.float32), sample_rate, RATE)
    wave = np.clip(wave if len(wave) else np.zeros(1, np.float32), -1, 1)
    while len(wave) < SECONDS * RATE:
        wave = np.append(wave, wave)
    starts = range(int(len(wave) // RATE - SECONDS) + 1)  # a window each second
    windows = [wave[i * RATE : int((i + SECONDS) * RATE)] for i in starts]
    windows = [window for window in windows if len(window) == SECONDS * RATE]  # speechmos drops what rounding cut too
    raw = np.concatenate([session.run(None, {"input_1": window[None]})[0] for window in windows])
    return {name: float(np.polyval(curve, column).mean()) for (name, curve), column in zip(CURVES.items(), raw.T)}


def check_packages() -> None:
    """Raise a ResourceError where a package is missing."""
    for module in ("onnxruntime", "speechmos"):
        if importlib.util.find_spec(module) is None:
            cure = "install both: pip install onnxruntime speechmos"
            raise ResourceError(f"evaluate.dnsmos: package {module!r} is not installed, {cure}")


def _session() -> Any:
    """Return the network."""
    check_packages()
    import onnxruntime
    import speechmos

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_cores()
    file = Path(speechmos.__file__).parent / "dnsmos_models" / "sig_bak_ovr.onnx"
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
