"""Sound files of every kind that libsndfile writes are read in whole length, with the values that were written."""

import struct
import wave

import numpy as np
import pytest
import soundfile

from plait.codecs.sounds import read_sound
from plait.common.errors import DataError

RATE = 16_000
N = 5000

# a sine: what codecs with losses keep
TONE = 0.6 * np.sin(2 * np.pi * 440 * np.arange(N) / RATE)
COARSE = {"PCM_S8": 0.01, "PCM_U8": 0.01, "DPCM_8": 0.02, "ULAW": 0.03, "ALAW": 0.03}
ADPCM = ("ADPCM", "GSM", "G72", "VORBIS", "OPUS", "MPEG", "NMS")
BROKEN_WRITERS = {
    ("SDS", "PCM_S8"),
    ("SDS", "PCM_24"),
    ("AIFF", "DWVW_12"),
    ("AIFF", "DWVW_16"),
    ("AIFF", "DWVW_24"),
    ("AIFF", "GSM610"),
}
KINDS = [
    (form, kind)
    for form in soundfile.available_formats()
    for kind in soundfile.available_subtypes(form)
    if form != "RAW" and (form, kind) not in BROKEN_WRITERS
]


def reason(folder, name) -> str:
    with pytest.raises(DataError) as error:
        read_sound(name, folder, RATE)
    assert name in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("form", sorted({form for form, _ in KINDS}))
def test_every_kind_is_read_in_whole_length(tmp_path, form):
    for kind in [k for f, k in KINDS if f == form]:
        for channels in (1, 2):
            name = f"{kind}-{channels}.{form.lower()}"
            written = np.stack([TONE, 0.5 * TONE], axis=1)[:, :channels]
            try:
                soundfile.write(tmp_path / name, written, RATE, format=form, subtype=kind)
            except (soundfile.SoundFileError, ValueError):
                continue  # not with so many channels
            rate = soundfile.info(str(tmp_path / name)).samplerate  # some kinds have rates of their own
            found, expected = read_sound(name, tmp_path, rate), written.mean(axis=1)
            lossy = any(word in kind for word in ADPCM)
            assert N <= len(found) <= N + (500 if lossy else 1), (name, len(found))
            worst = np.abs(found[200:N] - expected[200:]).max() if lossy else np.abs(found[:N] - expected).max()
            assert worst < (0.35 if lossy else COARSE.get(kind, 1e-3)), (name, worst)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_whole_numbers_as_another_program_writes_them(tmp_path, width):
    """8 bits have no sign in WAV, more have one."""
    numbers = np.rint(TONE * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    data = [int(n + 128 if width == 1 else n).to_bytes(width, "little", signed=width > 1) for n in numbers]
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(width)
        file.setframerate(RATE)
        file.writeframes(b"".join(data))
    assert np.abs(read_sound("a.wav", tmp_path, RATE) - TONE).max() < 2 ** (1.6 - 8 * width) + 1e-7


@pytest.mark.filterwarnings("ignore:Chunk")  # of chunks besides the sound
@pytest.mark.parametrize("kind", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_wav_as_an_independent_reader_has_it(tmp_path, kind):
    """scipy's reader gives whole numbers in the container's bits: 24 in the upper bits of 32, 8 from 0 to 255."""
    wavfile = pytest.importorskip("scipy.io.wavfile")
    soundfile.write(tmp_path / "a.wav", np.stack([TONE, -0.3 * TONE], axis=1), RATE, subtype=kind)
    rate, numbers = wavfile.read(tmp_path / "a.wav")
    if numbers.dtype.kind in "iu":
        middle, most = (128, 128) if numbers.dtype == np.uint8 else (0, 2.0 ** (8 * numbers.dtype.itemsize - 1))
        numbers = (numbers.astype(np.float64) - middle) / most
    assert rate == RATE
    assert np.abs(read_sound("a.wav", tmp_path, RATE) - numbers.mean(axis=1)).max() < 1e-6


def test_floats_above_one_and_many_channels(tmp_path):
    many = np.stack([TONE * k for k in range(1, 7)], axis=1)
    soundfile.write(tmp_path / "a.wav", many, RATE, subtype="FLOAT")
    assert np.abs(read_sound("a.wav", tmp_path, RATE) - 3.5 * TONE).max() < 1e-6


def riff(size: int, data: bytes, whole: int | None = None) -> bytes:
    form = struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    whole = 36 + size if whole is None else whole
    return b"RIFF" + struct.pack("<I", whole) + b"WAVEfmt " + form + b"data" + struct.pack("<I", size) + data


PCM = np.rint(TONE * 32767).astype("<i2").tobytes()
WHOLE = {
    "stream of unknown length": riff(0xFFFFFFFF, PCM, 0xFFFFFFFF),
    "as sox leaves it": riff(0x7FFFF000, PCM, 0x7FFFF024),
    "a chunk follows": riff(len(PCM), PCM) + b"LIST\x04\0\0\0abcd",
    "zeros follow": riff(len(PCM), PCM) + bytes(512),
}
NOT_WHOLE = {
    "cut": (riff(len(PCM), PCM[:6000]), "10,000 bytes (data), 6,000 are there"),
    "cut at an odd byte": (riff(len(PCM), PCM[:6001]), "6,001 are there"),
    "header too small": (riff(6000, PCM), "6,000 bytes of sound, 4,000 more follow"),
    "header of nothing": (riff(0, PCM), "0 bytes of sound, 10,000 more follow"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_headers_that_do_not_know_the_length(tmp_path, kind):
    (tmp_path / "a.wav").write_bytes(WHOLE[kind])
    assert np.abs(read_sound("a.wav", tmp_path, RATE) - TONE).max() < 1e-4


@pytest.mark.parametrize("kind", NOT_WHOLE)
def test_headers_that_say_another_length_are_said(tmp_path, kind):
    data, text = NOT_WHOLE[kind]
    (tmp_path / "a.wav").write_bytes(data)
    assert "is not whole" in reason(tmp_path, "a.wav") and text in reason(tmp_path, "a.wav")


def test_flac_without_a_length(tmp_path):
    soundfile.write(tmp_path / "a.flac", TONE, RATE)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0  # the count of samples is 36 bits of STREAMINFO
    data[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(data)
    assert np.abs(read_sound("a.flac", tmp_path, RATE) - TONE).max() < 1e-4


@pytest.mark.parametrize("form", sorted({form for form, _ in KINDS} - {"IRCAM", "MP3", "PAF", "PVF", "SD2", "XI"}))
def test_half_a_file_of_every_kind_that_states_its_length_is_refused(tmp_path, form):
    """libsndfile takes what is there for the length."""
    for kind in [k for f, k in KINDS if f == form]:
        try:
            soundfile.write(tmp_path / "a.x", TONE, RATE, format=form, subtype=kind)
        except (soundfile.SoundFileError, ValueError):
            continue  # not at this rate
        data = (tmp_path / "a.x").read_bytes()
        (tmp_path / "a.x").write_bytes(data[: len(data) // 2])
        assert "not" in reason(tmp_path, "a.x"), kind


@pytest.mark.parametrize(("suffix", "kind"), [("flac", None), ("ogg", "VORBIS"), ("ogg", "OPUS"), ("mp3", None),
                                              ("aiff", "PCM_16"), ("au", "PCM_16"), ("w64", "PCM_16")])  # fmt: skip
def test_half_a_file_is_no_recording(tmp_path, suffix, kind):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000)
    soundfile.write(tmp_path / "b", noise, RATE, format=suffix.upper(), subtype=kind)
    data = (tmp_path / "b").read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(data[: len(data) // 2])
    reason(tmp_path, f"a.{suffix}")


def test_what_is_no_sound_is_named(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"<html><body>404</body></html>")
    assert "is not a readable recording (it is an HTML page" in reason(tmp_path, "a.wav")
    (tmp_path / "a.wav").write_bytes(b"")
    assert "it is empty" in reason(tmp_path, "a.wav")
