"""Text as ids: a byte-level BPE trained with `tokenizers`, or the tokenizer of any model on the Hub or on disk."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from plait.codecs import saved
from plait.codecs.base import Codec, Encoded, Progress, ids_of
from plait.codecs.chat import turn_ends
from plait.common.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ResourceError,
    first_line,
    printable,
    require,
    shown,
)
from plait.common.files import atomic_file

_BYTES = 256


@dataclass
class BytePairOptions:
    """Settings of `BytePairCodec`."""

    vocab_size: int = 2048
    """Number of ids: 256 bytes, and the most frequent merges of the training text."""

    def __post_init__(self):
        require(self.vocab_size >= _BYTES, "codec_options.vocab_size", self.vocab_size, f"at least {_BYTES}")


@dataclass
class PretrainedTokenizerOptions:
    """Settings of `PretrainedTokenizerCodec`."""

    path: str
    """Folder, GGUF file or Hub name that `transformers.AutoTokenizer` loads."""


class _TextCodec(Codec):
    """What all text codecs share. Media: str."""

    kind: ClassVar[str] = "text"
    suffix: ClassVar[str] = ".txt"
    names_files: ClassVar[bool] = False

    def read(self, value: Any, base: Path) -> str:
        if not isinstance(value, str):
            raise DataError(f"text: {shown(value)} is not allowed, it must be text")
        if not value:
            raise DataError("text: it is empty")
        return _check_unicode(value)

    def write(self, media: str, path: Path) -> None:
        Path(path).write_text(media + "\n", encoding="utf-8")

    def to_html(self, media: str) -> str:
        return f"<p>{html.escape(media)}</p>"


class BytePairCodec(_TextCodec):
    """Byte-level BPE trained on the data: every text in any language comes back exactly."""

    name: ClassVar[str] = "text_bpe"
    options_class: ClassVar[type] = BytePairOptions

    def __init__(self, options: BytePairOptions):
        super().__init__(options)
        self.vocab_size = options.vocab_size
        self.tokenizer: Any = None

    @property
    def is_fitted(self) -> bool:
        return self.tokenizer is not None

    def fit(self, media: Sequence[str], *, minutes: float, seed: int, folder: Path, progress: Progress) -> None:
        tokenizers = _tokenizers()
        if not len(media):
            raise DataError("text codec: there is no text to train on")
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=self.options.vocab_size,
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(media, trainer, length=len(media))
        self.tokenizer = tokenizer
        progress(1.0, f"{tokenizer.get_vocab_size()} of {self.vocab_size} ids in use")

    def encode(self, media: Sequence[str]) -> list[Encoded]:
        rows = self.tokenizer.encode_batch_fast([_check_unicode(text) for text in media])
        return [Encoded(ids=np.array(row.ids, np.int32)) for row in rows]

    def decode(self, encoded: Sequence[Encoded]) -> list[str]:
        # ids that the training text was too small to fill stand for nothing
        used = self.tokenizer.get_vocab_size()
        return self.tokenizer.decode_batch([[int(i) for i in ids_of(e) if i < used] for e in encoded])

    def quality(self, media: Sequence[str]) -> dict[str, float]:
        """Return ``exact`` (share of texts that come back), ``bytes_per_token``, ``ids_in_use``."""
        encoded = self.encode(media)
        tokens = sum(len(ids_of(e)) for e in encoded)
        return {
            "exact": sum(int(a == b) for a, b in zip(media, self.decode(encoded))) / len(media),
            "bytes_per_token": sum(len(text.encode()) for text in media) / max(tokens, 1),
            "ids_in_use": float(self.tokenizer.get_vocab_size()),
        }

    def save_pretrained(self, folder: Path) -> None:
        saved.write_description(self, folder)
        with atomic_file(Path(folder) / "tokenizer.json") as temporary:
            self.tokenizer.save(str(temporary))

    @classmethod
    def from_pretrained(cls, folder: Path) -> "BytePairCodec":
        codec, _ = saved.read_description(cls, folder)
        codec.tokenizer = _load_tokenizer(Path(folder) / "tokenizer.json")
        if codec.tokenizer.get_vocab_size() > codec.vocab_size:
            count, stated = codec.tokenizer.get_vocab_size(), codec.vocab_size
            raise CheckpointError(f"codec: {str(folder)!r} has {count} ids in tokenizer.json, codec.json says {stated}")
        return codec


class PretrainedTokenizerCodec(_TextCodec):
    """Any tokenizer that `transformers.AutoTokenizer` loads, without the special ids it would add around a text.

    Documents open and end with these: `bos` is the id that the tokenizer puts before a text ("none" where it puts
    none), `eos` its end of text, `stops` what the model's generation_config.json, and its chat template, end a text
    with besides.
    """

    name: ClassVar[str] = "text_pretrained"
    options_class: ClassVar[type] = PretrainedTokenizerOptions

    def __init__(self, options: PretrainedTokenizerOptions):
        super().__init__(options)
        self.tokenizer: Any = load_tokenizer(options.path)
        self.vocab_size = max(self.tokenizer.get_vocab().values()) + 1
        self.bos = _opening_id(self.tokenizer, options.path)
        eos = self.tokenizer.eos_token_id
        self.eos = "added" if eos is None else eos
        stops = dict.fromkeys([*_stops_of(options.path), *turn_ends(self.tokenizer)])
        self.stops = tuple(i for i in stops if i != eos)

    def encode(self, media: Sequence[str]) -> list[Encoded]:
        texts = [_check_unicode(text) for text in media]
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [Encoded(ids=np.array(row, np.int32)) for row in rows]

    def decode(self, encoded: Sequence[Encoded]) -> list[str]:
        return [self.tokenizer.decode(ids_of(e).tolist(), clean_up_tokenization_spaces=False) for e in encoded]

    def quality(self, media: Sequence[str]) -> dict[str, float]:
        """Return ``exact`` (share of texts that come back) and ``bytes_per_token``."""
        encoded = self.encode(media)
        return {
            "exact": sum(int(a == b) for a, b in zip(media, self.decode(encoded))) / len(media),
            "bytes_per_token": sum(len(t.encode()) for t in media) / max(sum(len(ids_of(e)) for e in encoded), 1),
        }

    def save_pretrained(self, folder: Path) -> None:
        """Write codec.json and the tokenizer's own files beside it."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(str(folder))
        saved.write_description(self, folder, stops=list(self.stops))

    @classmethod
    def from_pretrained(cls, folder: Path) -> "PretrainedTokenizerCodec":
        codec, description = saved.read_copy(cls, folder)
        codec.stops = tuple(description.get("stops", ()))
        return codec


def load_tokenizer(path: str) -> Any:
    """Load the tokenizer of a folder, a GGUF file or a Hub name (raises ConfigError)."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        message = "text: package 'transformers' is not installed, install it: pip install 'plait[media]'"
        raise ResourceError(message) from None
    place, options = saved.place_of(path)
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
    except ImportError as error:
        raise ResourceError(f"codec_options.path: {path!r} needs a package ({first_line(error)})") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"codec_options.path: {path!r} holds no tokenizer ({first_line(error)})") from None


def _opening_id(tokenizer: Any, path: str) -> int | Literal["none"]:
    """Return the id that a tokenizer puts before a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    before = whole[: next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)]
    allowed = "a tokenizer that puts at most one id before a text"
    require(len(before) <= 1, "codec_options.path", path, allowed)
    return before[0] if before else "none"


def _stops_of(path: str) -> list[int]:
    """Return the ids with which a model's generation_config.json ends a text; none where there is no such file."""
    from transformers import GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(path).eos_token_id
    except (OSError, ValueError, TypeError):
        return []
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def _check_unicode(text: str) -> str:
    """Return a text; raises DataError for half of a surrogate pair, such as a "\\ud800" in JSON leaves behind."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = printable(text[max(0, error.start - 20) : error.start + 20])
        reason = f"half of a surrogate pair at character {error.start + 1}"
        raise DataError(f"text: '{shown}' is not valid Unicode ({reason})") from None
    return text


def _tokenizers():
    try:
        import tokenizers
    except ImportError:
        message = "text: package 'tokenizers' is not installed, install it: pip install 'plait[media]'"
        raise ResourceError(message) from None
    return tokenizers


def _load_tokenizer(path: Path):
    if not path.is_file():
        raise CheckpointError(f"codec: there is no {str(path)!r}")
    try:
        return _tokenizers().Tokenizer.from_file(str(path))
    except ResourceError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"codec: {str(path)!r} is not a tokenizer ({error})") from None
