"""What a prompt may be, and how it becomes media: texts, files, PIL images, arrays, and manifest parts.

A file is taken by what it is: the codec that can read it says of which modality it is. An image without a file goes
through the same reading as a file with the same pixels, so that modes, transparency and orientation come out alike.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from plait.codecs import Codec, Media
from plait.codecs.chat import chat_of
from plait.codecs.chat_messages import KINDS, read_conversation
from plait.common.errors import ConfigError, DataError, PlaitError, ResourceError, require, unknown

MediaPart = tuple[str, Media]
"""A modality and one raw item."""

Prompt = Any
"""A text, a Path, a PIL image, an array, a part ({key: value}), or a sequence of those that stand one after another."""

IMAGE = "uint8 [height, width, 3], with a fourth channel for opacity, or grey [height, width]"
SOUND = "float32 [samples]"

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_TIFF_MODES = ("I", "F", "CMYK", "YCbCr", "LAB")


def read_prompt(prompt: Prompt, codecs: dict[str, Codec], host: str, base: Path = Path()) -> list[MediaPart]:
    """Read a prompt as media, in order. Raises ConfigError for what is no prompt, DataError for what cannot be read."""
    items = prompt if isinstance(prompt, list | tuple) else [prompt]
    # an empty text is an empty prompt
    items = [item for item in items if not (isinstance(item, str) and not item)]
    return [part for item in items for part in _read(item, codecs, host, base)]


def read_chat(messages: Any, codecs: dict[str, Codec], host: str, base: Path = Path()) -> list[MediaPart]:
    """Read a conversation, as the model's own chat template writes it, up to where the model has to answer.

    Raises ConfigError where the model has no chat template or none of such media, DataError for what is no
    conversation.
    """
    chat = chat_of(codecs)
    if chat is None:
        raise ConfigError(
            f"chat: the codec of {host!r} ({codecs[host].name!r}) has no chat template, it must be text_pretrained "
            "with the tokenizer of a chat model; see docs/chat.md"
        )
    return [part for piece in chat.prompt(messages) for part in _read_value(piece.key, piece.value, codecs, base)]


def read_messages(messages: Any, codecs: dict[str, Codec], host: str) -> list[MediaPart]:
    """Read a conversation as `read_chat`; where the model has no chat template, its one message is the prompt."""
    if chat_of(codecs) is not None:
        return read_chat(messages, codecs, host)
    words = {codec.key: codec.key for codec in codecs.values()} | {kind: kind for kind in KINDS}
    first, *others = read_conversation(messages, words).messages
    require(not others and first.role == "user", "messages", [m.role for m in (first, *others)],
            "one message of the user: this model has no chat template, and takes it as its prompt")  # fmt: skip
    prompt = [item if isinstance(item, str) else {item.key: item.value} for item in first.content]
    return read_prompt(prompt, codecs, host)


def _read(item: Any, codecs: dict[str, Codec], host: str, base: Path) -> list[MediaPart]:
    """Read one item as the codec of its modality does, and after that as those that read its parts too."""
    if isinstance(item, str):
        return _read_value(codecs[host].key, item, codecs, base)
    if isinstance(item, Path):
        return _read_file(base / item, codecs, host)
    if isinstance(item, np.ndarray):
        is_sound = item.dtype.kind == "f" and item.ndim == 1
        require(is_sound or item.dtype == np.uint8, "prompt", item, f"{IMAGE} (an image), or {SOUND} (sound)")
        return _read_value(_key_of("audio" if is_sound else "image", codecs), item, codecs, base)
    if _is_image(item):
        return _read_value(_key_of("image", codecs), item, codecs, base)
    one_key = isinstance(item, dict) and len(item) == 1
    require(one_key, "prompt", item, 'a text, a Path, an image, an array, or a part such as {"text": "a fox"}')
    ((key, value),) = item.items()
    return _read_value(key, value, codecs, base)


def _key_of(kind: str, codecs: dict[str, Codec]) -> str:
    """Return the key of the one modality of a kind; a prompt must name one where there are several."""
    keys = [codec.key for codec in codecs.values() if codec.kind == kind and not codec.reads]
    if len(keys) > 1:
        raise ConfigError(
            f"prompt: this model has several modalities of kind {kind!r}, name the one that is meant, "
            f'such as {{"{keys[0]}": ...}}; there are {", ".join(keys)}'
        )
    return keys[0] if keys else kind


def _and_readers(name: str, codecs: dict[str, Codec]) -> list[tuple[str, Codec]]:
    """Return a modality with its codec, and those that read its parts too."""
    return [(name, codecs[name]), *((n, codec) for n, codec in codecs.items() if codec.reads == name)]


def _read_value(key: str, value: Any, codecs: dict[str, Codec], base: Path) -> list[MediaPart]:
    """Read a value of a manifest key, or of a modality's name."""
    by_key = {codec.key: name for name, codec in codecs.items() if not codec.reads}
    name = by_key.get(key, key)
    if name not in codecs:
        raise ConfigError(unknown("prompt", key, by_key))
    own = codecs[name]
    if own.kind == "audio" and isinstance(value, np.ndarray):  # it is at the rate of the modality's own codec
        sound = _sound(value, own.sample_rate)
        return [(n, codec.taken_from(sound, own)) for n, codec in _and_readers(name, codecs)]
    return [(n, _read_by(codec, n, key, value, base)) for n, codec in _and_readers(name, codecs)]


def _read_by(codec: Codec, name: str, key: str, value: Any, base: Path) -> Media:
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:  # as in Hugging Face's datasets
        if isinstance(value["bytes"], bytes):
            return codec.read_bytes(value["bytes"], str(value["path"] or ""))
        value = value["path"]
    if codec.kind == "image" and (_is_image(value) or isinstance(value, np.ndarray)):
        return codec.read_bytes(*_image_bytes(value))
    if isinstance(value, bytes):
        return codec.read_bytes(value)
    if codec.reads_values and isinstance(value, list | np.ndarray):
        return codec.read(value, base)
    if isinstance(value, Path):
        require(codec.names_files, f"prompt ({key})", value, "the item itself, or a Path without a key")
        value = str(value)
    require(isinstance(value, str) or not codec.names_files, f"prompt ({key})", value,
            "the path of a file, its bytes, an image or an array")  # fmt: skip
    require(
        not isinstance(value, np.ndarray) and not _is_image(value), f"prompt ({key})", value, f"an item of {name!r}"
    )
    return codec.read(value, base)


def _read_file(path: Path, codecs: dict[str, Codec], host: str) -> list[MediaPart]:
    """Read a file by what it is: as the first modality that can, or else as text."""
    if not path.is_file():
        raise DataError(f"prompt: there is no file {str(path)!r}")
    reasons = []
    for name, codec in codecs.items():
        if codec.names_files and not codec.reads:
            try:
                media = [(n, c.read(path.name, path.parent)) for n, c in _and_readers(name, codecs)]
            except ResourceError:
                raise  # a missing package is no fault of the file
            except PlaitError as error:
                reasons.append(str(error))
                continue
            _key_of(codec.kind, codecs)  # refused where another modality of this kind could be meant
            return media
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
        if "\0" not in text:
            return [(host, codecs[host].read(text, path.parent))]
    except UnicodeDecodeError:
        pass
    why = "; ".join(reasons) or "this model reads text alone"
    raise DataError(f"prompt: {str(path)!r} is neither text in UTF-8 nor media that this model reads ({why})")


def _is_image(value: Any) -> bool:
    """Say whether a value is a PIL image, without importing PIL where none can be."""
    return any(cls.__module__ == "PIL.Image" and cls.__name__ == "Image" for cls in type(value).__mro__)


def _image_bytes(value: Any) -> tuple[bytes, str]:
    """Return a PIL image, or an array, as a file with the same pixels, and the file's name."""
    if isinstance(value, np.ndarray):
        channels = value.shape[2] if value.ndim == 3 else 1
        fine = value.dtype == np.uint8 and value.ndim in (2, 3) and channels in (1, 2, 3, 4) and value.size
        require(bool(fine), "prompt (image)", value, IMAGE)
        from PIL import Image

        value = Image.fromarray(value[:, :, 0] if value.ndim == 3 and channels == 1 else value)
    if value.mode not in (*_PNG_MODES, *_TIFF_MODES):
        value = value.convert("RGBA")
    kind = "PNG" if value.mode in _PNG_MODES else "TIFF"
    buffer = io.BytesIO()
    try:
        value.save(buffer, kind, exif=value.getexif())
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"prompt (image): a PIL image of mode {value.mode!r} cannot be read ({error})") from None
    return buffer.getvalue(), f"prompt.{kind.lower()}"


def _sound(value: np.ndarray, rate: int) -> np.ndarray:
    fine = value.dtype.kind == "f" and value.ndim == 1 and value.size
    require(bool(fine), "prompt (audio)", value, f"{SOUND}, {rate:,} of them per second")
    require(bool(np.isfinite(value).all()), "prompt (audio)", value, "finite numbers")
    return value.astype(np.float32)
