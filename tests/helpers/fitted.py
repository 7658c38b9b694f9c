"""Codecs that are fitted in no time."""

import numpy as np

from plait.codecs.speech_tokens import SpeechTokenCodec


def speech_codec(folder) -> SpeechTokenCodec:
    """Return speech tokens of 16 ids, barely trained; ``folder`` holds the state of training."""
    codec = SpeechTokenCodec.from_options({"channels": 8, "levels": [4, 4], "steps": 1, "crop": 4})
    tone = np.sin(np.arange(9000, dtype=np.float32) / 9)
    codec.fit([tone], minutes=0, seed=0, folder=folder / "speech", progress=lambda *_: None)
    return codec
