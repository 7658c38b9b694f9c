"""Texts, images and sound to a model's inputs, and what it made back to media: the model's own codecs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

from plait.batch.documents import Document, Part, role_of
from plait.codecs import Codec, Encoded
from plait.codecs.chat import chat_of
from plait.common import hub
from plait.common.errors import ConfigError, DataError, require, unknown
from plait.config.model import ModelConfig
from plait.data.shards import codec_folder
from plait.generate.pipeline import encode_media
from plait.generate.prompts import MediaPart, read_messages, read_prompt
from plait.generate.saved import read_codec, read_settings
from plait.hf.inputs import Row, names_of_media, tensors_of
from plait.model.pretrained import load_config

_FILES = ("config.json", "generation.json", "codecs/*")
_OF_FETCHING = ("token", "cache_dir", "local_files_only")


class PlaitProcessor(ProcessorMixin):
    """The codecs of a model as one processor of transformers.

    Images are files, PIL images or arrays uint8 [H, W, 3]; sound is a file or float32 [samples] at ``sampling_rate``.
    """

    def __init__(self, codecs: Mapping[str, Codec], config: ModelConfig):
        self.codecs, self.model_config = dict(codecs), config
        self.host = config.layout.host
        self.tokenizer = _tokenizer_of(self.codecs[self.host])
        self.chat_template = getattr(self.tokenizer, "chat_template", None)
        sounds = [codec for codec in self.codecs.values() if codec.kind == "audio"]
        self.sampling_rate = sounds[0].sample_rate if sounds else 16_000

    # -- files --------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *arguments: Any, **kwargs: Any) -> Any:
        """Load the codecs of a saved model, from a folder or the Hub (raises CheckpointError)."""
        fetching = {name: kwargs[name] for name in _OF_FETCHING if kwargs.get(name) is not None}
        revision = kwargs.get("revision") or ""
        place = pretrained_model_name_or_path
        folder = hub.found(place, "processor", _FILES, revision if hub.is_name(place) else "", **fetching)
        config, settings = load_config(folder), read_settings(folder)
        return cls({name: read_codec(folder, name, settings) for name in config.modalities}, config)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Write the codecs; the model's own `save_pretrained` writes what they are called."""
        require(not push_to_hub, "push_to_hub", True, "left out here: push the folder, or plait.load(folder)")
        for name, codec in self.codecs.items():
            codec.save_pretrained(codec_folder(save_directory, name))
        return [str(Path(save_directory) / "codecs")]

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Do nothing: what is saved names plait's own small file, and no copy of this one."""

    def to_dict(self) -> dict[str, Any]:
        """Return what the processor is, in short."""
        return {"processor_class": type(self).__name__, "codecs": {n: c.name for n, c in self.codecs.items()}}

    # -- media in -----------------------------------------------------------------------------------------------

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, *,
        return_tensors: str = "pt", padding: Any = True, **kwargs: Any,
    ) -> BatchFeature:  # fmt: skip
        """Return the inputs of one prompt, or of a batch of texts with as many images or sounds, if any.

        ``<image>`` and ``<audio>`` in a text stand for the images and sounds in their order; without such marks these
        come before the text. Batches are padded on the left.
        """
        require(videos is None, "videos", videos, "left out: this model reads none")
        require(return_tensors == "pt", "return_tensors", return_tensors, "pt")
        texts = list(text) if isinstance(text, list | tuple) else [text]
        columns = {"image": _column(images, len(texts), "images"), "audio": _column(audio, len(texts), "audio")}
        prompts = [
            _prompt(line or "", {key: list(column[i]) for key, column in columns.items()})
            for i, line in enumerate(texts)
        ]
        return self._inputs([self._encoded(read_prompt(p, self.codecs, self.host)) for p in prompts])

    def apply_chat_template(  # type: ignore[override]  # it takes what has a meaning here
        self, conversation: Any, chat_template: str | None = None, *, tokenize: bool = False,
        return_dict: bool = True, add_generation_prompt: bool = True, continue_final_message: bool = False,
        return_tensors: str = "pt", processor_kwargs: Any = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Write a conversation, or a batch of them, up to where the model answers.

        Messages are OpenAI's or LLaVA's (docs/chat.md), with images and sounds. A model without a chat template takes
        one message of the user, as its prompt.
        """
        require(chat_template is None, "chat_template", chat_template, "left out: the model has its own")
        require(add_generation_prompt, "add_generation_prompt", add_generation_prompt, "true: the model answers")
        require(not continue_final_message, "continue_final_message", True, "false: an answer is whole")
        is_batch = isinstance(conversation, list | tuple) and conversation and isinstance(conversation[0], list | tuple)
        media = [
            read_messages(messages, self.codecs, self.host)
            for messages in (conversation if is_batch else [conversation])
        ]
        if not tokenize:
            texts = ["".join(v if n == self.host else f"<{self.codecs[n].key}>" for n, v in m) for m in media]
            return texts if is_batch else texts[0]
        inputs = self._inputs([self._encoded(m) for m in media])
        return inputs if return_dict else inputs["input_ids"]

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return a batch with ``labels`` of rows to learn from: the ``data_collator`` of a `Trainer`.

        A row is one of a manifest, ``{"parts": [{"text": "a fox", "loss": False}, {"image": "fox.png"}]}``, or a chat,
        ``{"messages": [...]}``, of which the assistant's turns are learned. Raises DataError.
        """
        return tensors_of([Row(self._document(row), True) for row in rows], self.model_config, with_labels=True)

    def _document(self, row: Mapping[str, Any]) -> Document:
        chat = chat_of(self.codecs) if "parts" not in row else None
        if "parts" not in row and chat is None:
            raise DataError("row: it has no 'parts', and the model no chat template that could write its messages")
        parts = row["parts"] if chat is None else chat.row(dict(row))["parts"]
        found: list[Part] = []
        for given in parts:
            item = dict(given)
            learned = item.pop("loss", True)
            for part in self._encoded(read_prompt(item, self.codecs, self.host)):
                part.loss, part.role = float(learned), role_of(given=not learned)
                found.append(part)
        return Document(found)

    def _encoded(self, media: Sequence[MediaPart]) -> list[Part]:
        with torch.no_grad():
            return encode_media(media, self.codecs, self.model_config)

    def _inputs(self, prompts: Sequence[list[Part]]) -> BatchFeature:
        rows = [Row(Document(parts), False) for parts in prompts]
        return BatchFeature(tensors_of(rows, self.model_config, with_labels=False, left=True))

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a model is given."""
        return ["input_ids", "attention_mask", *names_of_media(self.model_config)]

    # -- media out ----------------------------------------------------------------------------------------------

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = True, **kwargs: Any) -> list[str]:
        """Return the texts of rows of ids; items of other modalities are left out."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def decode(self, ids: Any, skip_special_tokens: bool = True, **kwargs: Any) -> str:
        """Return the text of ids. What ends or opens a document is shown as <eos>, <bos> unless it is skipped."""
        layout = self.model_config.layout
        ids = [int(i) for i in (ids.tolist() if isinstance(ids, Tensor | np.ndarray) else ids)]
        special = {layout.bos, *layout.stops} if skip_special_tokens else set()
        pieces, run = [], []
        for i in [*ids, layout.size]:
            if i in layout.ids(self.host) and i not in special:
                run.append(i)
                continue
            pieces.append(self._text_of(run))
            run = []
            if not skip_special_tokens and i < layout.size:
                pieces.append(layout.name_of(i))
        return "".join(pieces)

    def _text_of(self, ids: list[int]) -> str:
        return str(self.codecs[self.host].decode([Encoded(np.array(ids, np.int32))])[0]) if ids else ""

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Return what `generate` made: texts, PIL images or sound (float32 [samples]), one for each prompt.

        In the mode "any": for each prompt a list of such, in order.
        """
        mode = generation_mode or "text"
        if mode == "text":
            return self.batch_decode(generated_outputs, skip_special_tokens)
        if mode not in ("image", "audio", "any"):
            raise ConfigError(unknown("generation_mode", mode, ["text", "image", "audio", "any"]))
        made = [[self._medium(part) for part in parts] for parts in generated_outputs]
        return made if mode == "any" else [items[0] for items in made]

    def _medium(self, part: Part) -> Any:
        codec = self.codecs[part.modality]
        with torch.no_grad():
            (medium,) = codec.decode([Encoded(part.ids, part.latents, part.grid)])
        if codec.kind == "image" and isinstance(medium, np.ndarray):
            from PIL import Image

            return Image.fromarray(medium)
        return medium


def _tokenizer_of(codec: Codec) -> Any:
    """Return a text codec's tokenizer as one of transformers, which streamers and pipelines ask for."""
    tokenizer = getattr(codec, "tokenizer", None)
    if tokenizer is None or hasattr(tokenizer, "apply_chat_template"):
        return tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _column(given: Any, count: int, name: str) -> list[list[Any]]:
    """Return the media of each text of a batch."""
    if given is None:
        return [[] for _ in range(count)]
    if not isinstance(given, list | tuple):
        given = [given]
    if count == 1:
        return [list(given[0]) if len(given) == 1 and isinstance(given[0], list | tuple) else list(given)]
    require(len(given) == count, name, len(given), f"one for each text, {count} in all; or a list for each")
    return [list(item) if isinstance(item, list | tuple) else [item] for item in given]


def _prompt(text: str, media: dict[str, list[Any]]) -> list[Any]:
    """Return a prompt: a text cut at its marks, with the media that they stand for; those without a mark come first."""
    import re

    pieces = re.split("<(image|audio)>", text) if any(f"<{key}>" in text for key in media) else [text]
    marked = pieces[1::2]
    for key, items in media.items():
        asked = marked.count(key)
        require(asked in (0, len(items)), "text", text, f"with one mark <{key}> for each of the {len(items)} given")
    found = [{key: item} for key, items in media.items() if key not in marked for item in items]
    for k, piece in enumerate(pieces):
        if k % 2:
            found.append({piece: media[piece].pop(0)})
        elif piece:
            found.append(piece)  # type: ignore[arg-type]
    return found
