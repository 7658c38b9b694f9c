"""Speech from eSpeak NG, in a process of its own so that the same sentences always give the same samples.

What eSpeak returns depends on the calls made before in its process, and on the clock's second, from which it seeds
its noise. So a list of sentences is spoken by a fresh interpreter that runs this very file, in order, with a fixed
seed. Imports of this file stay in the standard library: the child runs it without site-packages.
"""

import ctypes
import json
import struct
import subprocess
import sys

SAMPLE_RATE = 22050
"""Samples per second that eSpeak gives, for every voice that is used here."""

_SYNCHRONOUS, _UTF8, _RATE, _PITCH, _VARIATION = 2, 1, 1, 3, 4  # of speak_lib.h
_SEED = 1  # of eSpeak's own noise


def speak(sentences: list[dict]) -> list[bytes]:
    """Speak sentences in order; returns 16-bit mono samples at 22,050 Hz for each.

    A sentence is ``{"text", "voice", "rate" (words a minute), "pitch" (0-99), "variation" (0-99, of the pitch)}``.
    Raises ResourceError where eSpeak is not installed or cannot speak.
    """
    from plait.common.errors import ResourceError

    try:
        import espeakng_loader
    except ImportError:
        message = (
            "scenes: eSpeak NG (package espeakng-loader) is not installed, install it: pip install 'plait[scenes]'"
        )
        raise ResourceError(message) from None
    command = [
        sys.executable,
        "-I",
        "-S",
        __file__,
        espeakng_loader.get_library_path(),
        espeakng_loader.get_data_path(),
    ]
    child = subprocess.run(command, input=json.dumps(sentences).encode(), capture_output=True)
    if child.returncode:
        reason = (child.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise ResourceError(f"scenes: eSpeak NG could not speak ({reason}), reinstall it: pip install 'plait[scenes]'")
    return _unpack(child.stdout)


def _unpack(data: bytes) -> list[bytes]:
    clips, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<q", data, at)
        clips.append(data[at + 8 : at + 8 + size])
        at += 8 + size
    return clips


class _Speaker:
    """The eSpeak library of this process."""

    def __init__(self, library: str, data: str):
        self._lib = ctypes.CDLL(library)
        rate = self._lib.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), 0)
        if rate != SAMPLE_RATE:
            raise OSError(f"espeak_Initialize returned {rate}, not {SAMPLE_RATE}")
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._receive)  # kept alive here: eSpeak holds a bare pointer to it
        self._lib.espeak_SetSynthCallback(self._callback)
        self._samples = bytearray()

    def _receive(self, samples, count: int, events) -> int:
        if count > 0:
            self._samples += ctypes.string_at(samples, 2 * count)
        return 0

    def say(self, sentence: dict) -> bytes:
        self._samples = bytearray()
        self._lib.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))
        if self._lib.espeak_SetVoiceByName(sentence["voice"].encode()):
            raise OSError(f"it has no voice {sentence['voice']!r}")
        for parameter, name in ((_RATE, "rate"), (_PITCH, "pitch"), (_VARIATION, "variation")):
            self._lib.espeak_SetParameter(parameter, int(sentence[name]), 0)
        text = sentence["text"].encode()
        if self._lib.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, _UTF8, None, None):
            raise OSError(f"it refused {sentence['text']!r}")
        self._lib.espeak_Synchronize()
        return bytes(self._samples)


def _main() -> None:
    speaker = _Speaker(sys.argv[1], sys.argv[2])
    for sentence in json.load(sys.stdin.buffer):
        clip = speaker.say(sentence)
        sys.stdout.buffer.write(struct.pack("<q", len(clip)) + clip)


if __name__ == "__main__":
    _main()
