"""Held-out documents as evaluation uses them: what each gives, what is asked of it, and the media it was made of."""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.batch.documents import Document, Part
from plait.codecs import Codec, Media
from plait.common.progress import Progress
from plait.config.run import RunConfig
from plait.data.shards import ShardSource
from plait.evaluate.cache import Cache
from plait.evaluate.texts import nearest_texts
from plait.generate.pipeline import Pipeline
from plait.prepare.raw import BrokenRow, RawSource, Truths, raw_documents
from plait.prepare.raw_sources import opened, remade

AT_ONCE = 64
"""Documents whose media are held together."""


class Library:
    """The texts and the raw media of one split of a prepared folder, read or made again when they are asked for."""

    def __init__(self, config: RunConfig, pipeline: Pipeline, progress: Progress, source: ShardSource):
        self.config, self.pipeline, self.progress, self.source = config, pipeline, progress, source
        self.layout = pipeline.model.config.layout

    @functools.cached_property
    def made(self) -> RawSource | None:
        """The source that makes the documents; None where they are a user's own."""
        return remade(self.source.folder, self.config.prepare, self.pipeline.codecs)

    @functools.cached_property
    def origin(self) -> RawSource | None:
        """The raw documents; None where a user's files are not there, or not those that were prepared."""
        if self.made is not None:
            return self.made
        origin = opened(self.source.folder, self.config.prepare, self.pipeline.codecs)
        if origin is None or origin.splits().get(self.source.split, 0) != len(self.source):
            self.progress.print(
                f"evaluate: the files that {self.source.folder!r} was prepared from (prepare.source) are not there as "
                "they were, so that made images and speech are held against nothing"
            )
            return None
        return origin

    @property
    def truths(self) -> Truths | None:
        """What the source knows to be true of its documents."""
        return self.made.truths if self.made else None

    def only(self, key: str) -> RawSource:
        """Return the raw documents with parts of one key alone where that is cheaper: all others need not be made."""
        assert self.origin is not None, "whoever asks for media has looked whether they are there"
        return remade(self.source.folder, self.config.prepare, self.pipeline.codecs, [key]) or self.origin

    def raw(self, numbers: Sequence[int], key: str, *, scattered: bool = False) -> list[list[Media]]:
        """Return the raw items of a key of each of some documents; `scattered` ones have others between them."""
        rows = raw_documents(self.only(key), self.source.split, numbers, scattered=scattered)
        return [[item for k, item in row.parts if k == key] for row in rows]

    def texts(self, documents: Sequence[Document], given: str = "") -> list[str]:
        """Return the text of each document that follows what it gives (`asked_of`), or else its first; "" for none."""
        layout, found = self.layout, {}
        for i, document in enumerate(documents):
            if all(part.modality != layout.host for part in document.parts):
                continue
            _, part = asked_of(document, given or layout.host, layout.host)
            if part is not None and part.ids is not None:
                has_end = len(part.ids) > 0 and int(part.ids[-1]) in layout.stops
                found[i] = replace(part, ids=part.ids[:-1]) if has_end else part
        said = dict(zip(found, (str(media) for _, media in self.pipeline.decode(list(found.values()))), strict=True))
        return [said.get(i, "") for i in range(len(documents))]

    @functools.cached_property
    def first_texts(self) -> list[str]:
        """The texts of the first `evaluate.neighbours` documents; "" of those that have none."""
        count = min(len(self.source), self.config.evaluate.neighbours)
        return self.texts([self.source.document(i) for i in range(count)])

    def first(self, key: str) -> Iterator[Media]:
        """Yield the first items of a key, `evaluate.neighbours` at most, whichever documents have them."""
        rows, count = self.only(key).read(self.source.split, 0, len(self.source)), self.config.evaluate.neighbours
        found = (item for row in rows if not isinstance(row, BrokenRow) for k, item in row.parts if k == key)
        return islice(found, count)


@dataclass(eq=False)
class Held:
    """Held-out documents that a model was given a part of and asked for another: what a judge holds items against."""

    path: tuple[str, ...]
    """Modalities: what was given, what was made; of a round trip what was made on the way stands between them."""
    split: str
    codec: Codec
    """Of what was made."""
    documents: list[Document]
    texts: list[str]
    """The text of each document, which an image shows and speech says; "" where it has none."""
    library: Library
    """The split."""
    training: Library
    """What the model was trained on."""
    cache: Cache
    advance: Callable[[float, str], None] = field(default=lambda share, text: None)
    """Called with the share that is done."""
    together: tuple[str, ...] = ()
    """Modalities that a task of training gives together to make the first of what was made; () for `given` alone."""

    @property
    def given(self) -> str:
        return self.path[0]

    @property
    def made(self) -> str:
        return self.path[-1]

    @property
    def truths(self) -> Truths | None:
        """What the source of the data knows to be true; None for a user's own."""
        return self.library.truths

    @property
    def metas(self) -> list[dict[str, Any]]:
        """What the source wrote beside each document."""
        return [d.meta for d in self.documents]

    @property
    def numbers(self) -> list[int]:
        """The documents' numbers in their split."""
        return [d.index for d in self.documents]

    def say(self, text: str) -> None:
        """Tell the user something in a line."""
        self.library.progress.print(f"evaluate: {text}")

    @functools.cached_property
    def real(self) -> list[Media]:
        """The documents' own raw items."""
        return self.raw(range(len(self.documents)))

    def raw(self, places: Sequence[int]) -> list[Media]:
        """Return the raw items, of the part that is asked for, of some of the documents, given by place."""
        documents = [self.documents[i] for i in places]
        rows = self.library.raw([d.index for d in documents], self.codec.key)
        return [items[place_of(document, self.path)] for items, document in zip(rows, documents, strict=True)]

    @functools.cached_property
    def _nearest_numbers(self) -> list[int]:
        """The training document whose text is nearest to each document's; none where a document has no text."""
        train = self.training.source
        if self.made not in train.names:
            return []
        table = train.parts(np.arange(len(train)))
        having = np.flatnonzero(table.sum(table.modality == train.names.index(self.made))).tolist()
        if self.truths and having:
            return [having[i] for i in self.truths.nearest(self.metas, [train.meta(i) for i in having])]
        texts = self.training.first_texts
        having = [i for i in having if i < len(texts) and texts[i]]
        if not having or not all(self.texts):
            return []
        return [having[i] for i in nearest_texts(self.texts, [texts[i] for i in having])]

    def nearest(self, places: Sequence[int]) -> list[Media]:
        """Return the training items whose texts are nearest to those of some of the documents; [] without texts."""
        if not self._nearest_numbers:
            return []
        numbers = [self._nearest_numbers[i] for i in places]
        return [items[0] for items in self.training.raw(numbers, self.codec.key, scattered=True)]

    def batches(self) -> Iterator[list[int]]:
        """Yield places of documents, AT_ONCE at most: media of all of them may be too large to hold."""
        for start in range(0, len(self.documents), AT_ONCE):
            yield list(range(start, min(start + AT_ONCE, len(self.documents))))

    def references(
        self, name: str, compute: Callable[[], dict[str, np.ndarray]], **key: Any
    ) -> Mapping[str, np.ndarray]:
        """Return figures of these documents' own items, which no model changes: computed once, then kept.

        ``key`` is what they depend on besides the data.
        """
        documents = {"split": self.split, "path": [self.given, self.made], "documents": self.numbers}
        stem = f"{name}-{'-'.join((self.given, self.made, self.split))}-{len(self.documents)}"
        return self.cache.get(stem, documents | key, compute)

    def training_features(self, name: str, features_of: Callable[[list[Media]], Tensor], **key: Any) -> Tensor:
        """Return features [N, D] of the first `evaluate.neighbours` training items of what was made; kept too."""
        count = self.training.config.evaluate.neighbours

        def compute() -> dict[str, np.ndarray]:
            items, rows = self.training.first(self.codec.key), []
            while some := list(islice(items, AT_ONCE)):
                rows.append(features_of(some).numpy())
            return {"features": np.concatenate(rows)}

        found = self.cache.get(f"{name}-{self.made}-training", {"made": self.made, "count": count} | key, compute)
        return torch.from_numpy(found["features"])


def _modalities(source: ShardSource, number: int) -> set[str]:
    return {source.names[m] for m in source.parts([number]).modality}


def known(
    source: ShardSource, truths: Truths | None, given: str, made: str, count: int, *, in_order: bool = False,
    is_round_trip: bool = False, needed: Collection[str] = (), without: Collection[str] = (),
) -> list[Document]:  # fmt: skip
    """Return the split's first documents, ``count`` at most, that give one modality and have the other to be made.

    Where their source knows what is true of documents, those alone of which it does. ``in_order``: what is given must
    stand before what is made. ``needed``, ``without``: more modalities that they must have, and must not have. Round
    trips are made of documents without given parts: no answer leads back to its question.
    """

    def matching_documents() -> Iterator[Document]:
        for i in range(len(source)):
            modalities = _modalities(source, i)
            if not modalities.issuperset((given, made, *needed)) or modalities & set(without):
                continue
            if truths is not None and not truths.caption(source.meta(i)):
                continue
            document = source.document(i)
            prompt, part = asked_of(document, given, made)
            if part is None or (given == made and (part is prompt[-1] or any(p.modality != given for p in prompt))):
                continue
            if is_round_trip and not all(p.loss for p in document.parts):
                continue
            order = [p.modality for p in document.parts]
            if not in_order or order.index(given) < order.index(made):
                yield document

    return list(islice(matching_documents(), count))


def asked_of(document: Document, given: str, made: str, together: Sequence[str] = ()) -> tuple[list[Part], Part | None]:
    """Return what a document gives, and the part of ``made`` that is to follow; None where it has none.

    Where parts are given (``loss: false``), as a question is, that is all before the first learned part of ``made``;
    else the document's first part of ``given``, or of each modality that is given ``together``, in their order.
    """
    learned = [i for i, part in enumerate(document.parts) if part.modality == made and part.loss > 0]
    if learned and learned[0] > 0 and not all(part.loss for part in document.parts[: learned[0]]):
        return document.parts[: learned[0]], document.parts[learned[0]]
    prompt = [part_of(document, name) for name in together or (given,)]
    return prompt, next((p for p in document.parts if p.modality == made), None)


def place_of(document: Document, path: Sequence[str]) -> int:
    """Return which of a document's parts of what is made is asked for, from 0."""
    made = path[-1]
    asked = part_of(document, made) if len(path) > 2 else asked_of(document, path[0], made)[1]
    return [p is asked for p in document.parts if p.modality == made].index(True)


def part_of(document: Document, modality: str) -> Part:
    """Return a document's first part of a modality."""
    return next(p for p in document.parts if p.modality == modality)
