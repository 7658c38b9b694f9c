"""Everything that `plait evaluate` measures of a trained model, as a flat map of name to number."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice

import numpy as np

from plait.batch.documents import Document, Part
from plait.codecs import Codec, Media
from plait.common.errors import ConfigError
from plait.common.progress import Bar, Progress
from plait.config.generation import SamplingConfig
from plait.config.run import RunConfig
from plait.data.shards import ShardSource
from plait.data.sources import open_sources, validation_splits
from plait.evaluate.forced_choice import continuation_scores, forced_choice, interval
from plait.evaluate.image_sets import LEAST
from plait.evaluate.judges import NUM_CONCEPTS, available, image_figures, speech_figures
from plait.evaluate.losses import perplexity, split_losses
from plait.evaluate.texts import error_measures, nearest_texts, text_measures
from plait.generate.pipeline import Pipeline
from plait.prepare.raw import RawSource, Truths, raw_documents, raw_items
from plait.prepare.raw_sources import opened, remade

FILE = "evaluation.json"
"""Where a run's folder keeps the figures."""
VERSION = 3
"""What is measured; figures of another version are measured again."""

GREEDY = SamplingConfig(temperature=0.0)
REMEMBERED = 5000
"""Training documents, the first ones, among which it is looked for what a model remembers."""


@dataclass
class Suite:
    """A model under evaluation: its pipeline, as `plait generate` has it, on the validation splits of its run."""

    config: RunConfig
    pipeline: Pipeline
    progress: Progress
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    items: dict[str, dict[str, list]] = field(default_factory=dict)
    """What figures of the first split are made of, item by item: "documents", "parts" and "wholes" by their names."""

    def run(self) -> dict[str, float]:
        """Measure losses, and what the model makes of held-out documents."""
        return self.losses() | self.made()

    def made(self) -> dict[str, float]:
        """Measure what the model makes of held-out documents: captions, images and speech.

        It is scored against the documents; and by what their source knows to be true of them, where it does.
        """
        figures: dict[str, float] = {}
        splits = validation_splits(self.config)
        judged = available(self.progress)
        for split in splits:
            source = open_sources(self.config, split)[0]
            origin = remade(source.folder, self.config.prepare, self.pipeline.codecs)
            figures |= self.captions(split, source, origin.truths if origin else None, judged)
            if split == splits[0] and judged:
                origin = origin or self.own(source)
                figures |= self.generated(source, origin) if origin else {}
        return figures

    def own(self, source: ShardSource) -> RawSource | None:
        """Return the raw documents of a user's data; None where they are not there, or not those that were prepared."""
        origin = opened(source.folder, self.config.prepare, self.pipeline.codecs)
        if origin is None or origin.splits().get(source.split) != len(source):
            self.progress.print(
                f"evaluate: the files that {source.folder!r} was prepared from (prepare.source) are not there as they "
                "were, so that made images and speech are held against nothing"
            )
            return None
        return origin

    def losses(self) -> dict[str, float]:
        """Return val_loss/<split>/<modality>, task_loss/<split>/<task>/<modality>, and means over splits as seen."""
        figures, splits = {}, validation_splits(self.config)
        with self.progress.stage("validation losses", total=len(splits)) as bar:
            for split in splits:
                losses, tasks = split_losses(
                    self.pipeline.model, self.config, split, limit=self.config.evaluate.batches, autocast=self.autocast
                )
                figures |= {f"val_loss/{split}/{name}": value for name, value in losses.items()}
                figures |= {f"task_loss/{split}/{t.replace(',', '>')}/{n}": v for (t, n), v in tasks.items() if t}
                bar.advance(1, split)
        first = splits[0] if splits else ""
        for name in self.config.model.modalities:
            value = figures.get(f"val_loss/{first}/{name}")
            if value is not None:
                figures[f"val_loss/{name}"] = value
                if self.config.model.modalities[name].objective == "next_token":
                    figures[f"perplexity/{name}"] = perplexity(value)
        return figures

    def captions(self, split: str, source: ShardSource, truths: Truths | None, judged: bool) -> dict[str, float]:
        """Caption the split's other modalities in the host's text and score what is said against the truth."""
        host, figures = self.pipeline.model.config.layout.host, {}
        first = split == validation_splits(self.config)[0]
        for name, record in self.pipeline.model.config.modalities.items():
            documents = known(source, truths, [host, name], self.config.evaluate.captions)
            if name == host or record.reads or not documents:
                continue
            made = self.complete(documents, name, host, f"captions of {name}, {split}", {host: GREEDY})
            said = [text or "" for text in made]
            prefix = "caption" if self.pipeline.codecs[name].kind == "image" else f"caption_{name}"
            if judged:
                figures |= self.texts(prefix, split, name, said, documents, first)
            if truths is None:
                continue
            scores = truths.scores(said, [d.meta for d in documents])
            figures |= {f"{prefix}_{k}_accuracy/{split}": v for k, v in scores.items()}
            if first:
                figures |= {f"{prefix}_{k}_accuracy": v for k, v in scores.items()}
                low, high = interval(scores["object"], len(documents))
                figures |= {f"{prefix}_object_low": low, f"{prefix}_object_high": high}
                figures |= {f"{prefix}_{k}_chance": v for k, v in truths.chances.items() if k in scores}
                figures |= self.choices(prefix, name, documents, truths)
        return figures

    def texts(
        self, prefix: str, split: str, given: str, said: list[str], documents: list[Document], first: bool
    ) -> dict[str, float]:
        """Score texts against those of their documents; what was heard by its errors too."""
        references = self.texts_of(documents, given)
        is_heard = self.pipeline.codecs[given].kind == "audio"
        measures = text_measures(said, references) | (error_measures(said, references) if is_heard else {})
        figures = {f"{prefix}_{name}/{split}": measure.value for name, measure in measures.items()}
        if first:
            for name, measure in measures.items():
                figures |= measure.figures(f"{prefix}_{name}")
                if measure.items:
                    numbers = [d.index for d in documents]
                    self.items[f"{prefix}_{name}"] = {"documents": numbers, **asdict(measure.items)}
            known_texts = set(self.training_texts)
            for end, texts in {"": said, "_real": references}.items():
                figures[f"{prefix}_in_training{end}"] = float(np.mean([text in known_texts for text in texts]))
        return figures

    def texts_of(self, documents: Sequence[Document], given: str = "") -> list[str]:
        """Return the text of each document that follows what it gives (`asked_of`), or else its first."""
        layout = self.pipeline.model.config.layout
        texts = []
        for document in documents:
            _, part = asked_of(document, given or layout.host, layout.host)
            assert part is not None and part.ids is not None, "documents are chosen by what they hold"
            has_end = len(part.ids) > 0 and int(part.ids[-1]) in layout.stops
            texts.append(replace(part, ids=part.ids[:-1]) if has_end else part)
        return [str(media) for _, media in self.pipeline.decode(texts)]

    @functools.cached_property
    def training_texts(self) -> list[str]:
        """Return the texts of the first training documents; "" of those that have none."""
        source, host = open_sources(self.config, "train")[0], self.pipeline.model.config.layout.host
        documents = [source.document(i) for i in range(min(len(source), REMEMBERED))]
        place = {i: d for i, d in enumerate(documents) if any(p.modality == host for p in d.parts)}
        texts = dict(zip(place, self.texts_of(list(place.values())), strict=True))
        return [texts.get(i, "") for i in range(len(documents))]

    def complete(self, documents: Sequence[Document], prompt_modality: str, output: str, title: str,
                 sampling: dict[str, SamplingConfig] | None = None) -> list[Media | None]:  # fmt: skip
        """Generate ``output`` after what each document gives (`asked_of`), decoded; None where none came."""
        prompts = [asked_of(d, prompt_modality, output)[0] for d in documents]
        with self.progress.stage(title, total=len(prompts)) as bar:
            results = self.pipeline.complete(
                prompts, [output] * len(prompts), sampling=sampling, on_result=lambda _: bar.advance(1)
            )
        decoded = iter(self.pipeline.decode([r.parts[0] for r in results if r.parts]))
        return [next(decoded)[1] if r.parts else None for r in results]

    def generated(self, source: ShardSource, origin: RawSource) -> dict[str, float]:
        """Let the judges name images, and recognise speech, that were generated from captions."""
        figures, host, truths = {}, self.pipeline.model.config.layout.host, origin.truths
        for name, codec in self.pipeline.codecs.items():
            if self.config.model.modalities[name].objective == "input":
                continue
            setting, judge = JUDGES.get(codec.kind, ("", None))
            count = getattr(self.config.evaluate, setting) if setting else 0
            documents = known(source, truths, [host, name], count)
            if not documents or judge is None:
                continue
            if codec.kind == "image" and len(documents) < LEAST:
                self.progress.print(
                    f"evaluate: {len(documents)} images of {name!r} are too few to be compared as a set with real "
                    f"ones, it needs {LEAST} (evaluate.images, and documents of the split {source.split!r})"
                )
            made = self.complete(documents, host, name, f"{name} from {host}")
            if any(item is None for item in made):
                raise ConfigError(
                    f"model.max_positions: {self.pipeline.model.config.max_positions} is not allowed, it must hold a "
                    f"caption and an item of {name!r}, which found no room; lower generate.max_tokens or generate.grids"
                )
            # only this kind of item is made again: all others would take longer than what is measured
            raw = remade(source.folder, self.config.prepare, self.pipeline.codecs, [codec.key]) or origin
            real = items(raw, source.split, [d.index for d in documents], codec.key)
            with self.progress.stage(f"judge of {name}", total=1) as bar:
                item_figures = judge(self, made, documents, real, raw, codec, bar)
            figures |= {f"{name}_{label}": value for label, value in item_figures.items()}
        return figures

    def images(
        self, made: list[Media], documents: list[Document], real: list[Media], raw: RawSource, codec: Codec, bar: Bar
    ) -> dict[str, float]:
        """Return what the judge makes of generated images, beside ``real`` ones of the same documents and others."""
        train, metas = open_sources(self.config, "train")[0], [d.meta for d in documents]
        if raw.truths:
            nearest = raw.truths.nearest(metas, [train.meta(i) for i in range(len(train))])
        else:
            nearest = nearest_texts(self.texts_of(documents), self.training_texts)
        remembered = items(raw, "train", nearest, codec.key, scattered=True)
        others = list(islice(raw_items(raw, "train", codec.key), len(made)))
        return image_figures(made, metas, raw.truths, real, remembered, others, codec)

    def clips(
        self, made: list[Media], documents: list[Document], real: list[Media], raw: RawSource, codec: Codec, bar: Bar
    ) -> dict[str, float]:
        """Return how many generated clips a recogniser understands, beside ``real`` ones of the same documents."""
        truths = raw.truths
        said = [truths.caption(d.meta) for d in documents] if truths else self.texts_of(documents)
        return speech_figures(made, said, real, codec, bar.to)

    def choices(self, prefix: str, modality: str, documents: list[Document], truths: Truths) -> dict[str, float]:
        """Score NUM_CONCEPTS names for items that show one thing: the share named rightly, and with items shuffled."""
        single = [d for d in documents if truths.thing(d.meta)][: self.config.evaluate.choices]
        if not single:
            return {}
        phrases, truth = truths.openings([d.meta for d in single], NUM_CONCEPTS, self.config.seed)
        model = self.pipeline.model
        ids = [e.ids for e in self.pipeline.codecs[model.config.layout.host].encode(phrases)]
        scores = []
        with self.progress.stage(f"forced choice of {len(phrases)} by {modality}", total=len(single)) as bar:
            for document in single:
                scores.append(continuation_scores(model, [part_of(document, modality)], ids))
                bar.advance(1)
        shares = forced_choice(np.array(scores), truth)
        return {f"{prefix}_choice_{k}": v for k, v in shares.items()}


JUDGES: dict[str, tuple[str, Callable[..., dict[str, float]]]] = {
    "image": ("images", Suite.images),
    "audio": ("clips", Suite.clips),
}
"""By kind of media: the setting of `evaluate` that says how many items are made, and what judges them."""


def known(source: ShardSource, truths: Truths | None, modalities: Sequence[str], count: int) -> list[Document]:
    """Return the split's first documents, ``count`` at most, that have these modalities.

    Where their source knows what is true of documents, those alone of which it does.
    """

    def matching_documents() -> Iterator[Document]:
        for i in range(len(source)):
            held = {source.names[m] for m in source.parts([i]).modality}
            if held.issuperset(modalities) and (truths is None or truths.caption(source.meta(i))):
                yield source.document(i)

    return list(islice(matching_documents(), count))


def items(source: RawSource, split: str, numbers: Sequence[int], key: str, *, scattered: bool = False) -> list[Media]:
    """Return the first raw item of a key of documents, given by number; ``scattered`` ones have others between them."""
    return [dict(reversed(d.parts))[key] for d in raw_documents(source, split, numbers, scattered=scattered)]


def asked_of(document: Document, given: str, made: str) -> tuple[list[Part], Part | None]:
    """Return what a document gives, and the part of ``made`` that is to follow; None where it has none.

    Where parts are given (``loss: false``), as a question is, that is all before the first learned part of ``made``;
    else the document's first part of ``given``.
    """
    learned = [i for i, part in enumerate(document.parts) if part.modality == made and part.loss > 0]
    if learned and learned[0] > 0 and not all(part.loss for part in document.parts[: learned[0]]):
        return document.parts[: learned[0]], document.parts[learned[0]]
    return [part_of(document, given)], next((p for p in document.parts if p.modality == made), None)


def part_of(document: Document, modality: str) -> Part:
    """Return a document's first part of a modality."""
    return next(p for p in document.parts if p.modality == modality)
