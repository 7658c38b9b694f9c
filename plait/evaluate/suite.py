"""Everything that `plait evaluate` measures of a trained model, as a flat map of name to number."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from plait.batch import Document, Part
from plait.codecs import Codec, fixed_grids
from plait.config import RunConfig, SamplingConfig
from plait.data.prepare import drawn_scenes, raw_source
from plait.data.raw import raw_items
from plait.data.shards import ShardSource
from plait.data.sources import data_seed, open_sources, validation_splits
from plait.evaluate.judges import PictureJudge, available, media_judge, picture_figures
from plait.evaluate.losses import perplexity, split_losses
from plait.evaluate.text import caption_scores, continuation_scores, forced_choice, interval
from plait.generate import Request, Result, generate
from plait.model.mot import MixtureOfTransformers
from plait.progress import Progress
from plait.randomness import generator

FILE = "evaluation.json"
"""Where a run's folder keeps the figures."""

NUM_CHOICES = 400
"""Names in the forced choice."""

GREEDY = SamplingConfig(temperature=0.0)


@dataclass
class Suite:
    """A model under evaluation, with the codecs and validation splits of its run."""

    config: RunConfig
    model: MixtureOfTransformers
    codecs: dict[str, Codec]
    progress: Progress
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext

    def run(self) -> dict[str, float]:
        """Measure losses, and captions where the validation documents hold what is true of them."""
        figures = self.losses()
        for split in validation_splits(self.config):
            source = open_sources(self.config, split)[0]
            if len(source) and "caption" in source.meta(0):
                figures |= self.captions(split, source)
                if split == validation_splits(self.config)[0] and available(self.progress):
                    figures |= self.generated(source)
        return figures

    def losses(self) -> dict[str, float]:
        """Return val_loss/<split>/<modality>, task_loss/<split>/<task>/<modality>, and means over splits as seen."""
        figures, splits = {}, validation_splits(self.config)
        with self.progress.stage("validation losses", total=len(splits)) as bar:
            for split in splits:
                losses, tasks = split_losses(self.model, self.config, split, limit=self.config.evaluate.batches,
                                             autocast=self.autocast)  # fmt: skip
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

    def captions(self, split: str, source: ShardSource) -> dict[str, float]:
        """Caption the split's other modalities in the host's text and score what is said against the truth."""
        from plait.data.scenes import RELATIONS

        host, figures = self.model.config.layout.host, {}
        documents = [source.document(i) for i in range(min(len(source), self.config.evaluate.captions))]
        first = split == validation_splits(self.config)[0]
        for name in self._others(documents):
            given = [next(p for p in d.parts if p.modality == name) for d in documents]
            said = self.complete(given, host, f"captions of {name}, {split}")
            scores = caption_scores(said, [d.meta for d in documents], RELATIONS)
            prefix = "caption" if self.codecs[name].key == "image" else f"caption_{name}"
            figures |= {f"{prefix}_{k}_accuracy/{split}": v for k, v in scores.items()}
            if first:
                figures |= {f"{prefix}_{k}_accuracy": v for k, v in scores.items()}
                low, high = interval(scores["object"], len(documents))
                figures |= {f"{prefix}_object_low": low, f"{prefix}_object_high": high}
                figures |= self.choices(prefix, name, documents)
        return figures

    def _others(self, documents: list[Document]) -> list[str]:
        layout = self.model.config.layout
        held = {p.modality for d in documents for p in d.parts}
        common = [n for n in held if all(any(p.modality == n for p in d.parts) for d in documents)]
        return [n for n in layout.names if n in common and n != layout.host]

    def complete(self, given: list[Part], output: str, title: str, sampling: dict | None = None) -> list:
        """Generate ``output`` (greedily, if no sampling is given) after each part, and decode it ("" if none came)."""
        sampling = {output: GREEDY} if sampling is None else sampling
        requests = [Request([p], output, sampling, self.config.generate.max_tokens, number=i)
                    for i, p in enumerate(given)]  # fmt: skip
        with self.progress.stage(title, total=len(requests)) as bar:

            def count(result: Result) -> None:
                bar.advance(1)

            results = generate(self.model, requests, grids=fixed_grids(self.codecs),
                               max_rows=max(self.config.generate.batch_size, 64),
                               max_length=1024, diffusion=self.config.diffusion,
                               precision=self.config.generate.precision, on_result=count)  # fmt: skip
        return [self.codecs[output].decode(r.parts)[0] if r.parts else "" for r in results]

    def generated(self, source: ShardSource) -> dict[str, float]:
        """Let the judges name pictures, and recognise speech, that were generated from captions."""
        figures, host = {}, self.model.config.layout.host
        counts = {"image": self.config.evaluate.pictures, "audio": self.config.evaluate.clips}
        for name, codec in self.codecs.items():
            documents = [source.document(i) for i in range(min(len(source), counts.get(codec.key, 0)))]
            if not documents:
                continue
            given = [next(p for p in d.parts if p.modality == host) for d in documents]
            made = self.complete(given, name, f"{name} from {host}", self.config.generate.sampling)
            truths = [d.meta for d in documents]
            if codec.key == "image":
                figures |= self.pictures(name, made, truths)
            else:
                judged = media_judge(codec, made, truths)(made)
                figures |= {f"{name}_recognised": judged.share, f"{name}_recognised_trials": float(judged.trials)}
        return figures

    def pictures(self, name: str, made: list, truths: list[dict]) -> dict[str, float]:
        """Return what the judge makes of generated pictures; beside real ones, where they can be drawn again."""
        if not drawn_scenes(self.config):
            judged = PictureJudge(truths, made[0].shape[0])(made)
            return {f"{name}_object_accuracy": judged.share, f"{name}_object_trials": float(judged.trials)}
        codec, source, split = self.codecs[name], raw_source(self.config), validation_splits(self.config)[0]
        real, others = (list(islice(raw_items(source, s, codec.key), len(made))) for s in (split, "train"))
        with self.progress.stage(f"judge of {name}", total=1):
            figures = picture_figures(made, truths, real, others, codec)
        return {f"{name}_{label}": value for label, value in figures.items()}

    def choices(self, prefix: str, modality: str, documents: list[Document]) -> dict[str, float]:
        """Score NUM_CHOICES names for each item with one drawing: the share named rightly, and with items shuffled."""
        from plait.data.scenes import concepts

        single = [d for d in documents if len(d.meta["objects"]) == 1]
        single = single[: self.config.evaluate.choices]
        chance = {f"{prefix}_object_chance": 1 / len(set(concepts(data_seed(self.config))["train"]))}
        if not single:
            return chance
        phrases, truth = self._candidates(single)
        texts = self.codecs[self.model.config.layout.host]
        ids = [e.ids for e in texts.encode(phrases)]
        scores = []
        with self.progress.stage(f"forced choice of {len(phrases)} by {modality}", total=len(single)) as bar:
            for document in single:
                part = next(p for p in document.parts if p.modality == modality)
                scores.append(continuation_scores(self.model, [part], ids))
                bar.advance(1)
        found = forced_choice(np.array(scores), truth)
        return chance | {f"{prefix}_choice_{k}": v for k, v in found.items()}

    def _candidates(self, documents: list[Document]) -> tuple[list[str], np.ndarray]:
        """Return the opening phrases of NUM_CHOICES captions, the true ones among them, and each document's own."""
        from plait.data.drawings import split_concepts
        from plait.data.scenes import with_article

        phrases = {d.meta["objects"][0]["name"]: d.meta["caption"].rsplit(" on ", 1)[0] + " on" for d in documents}
        others = split_concepts(data_seed(self.config))["train"]
        for i in generator(self.config.seed, "forced choice: names").permutation(len(others)):
            if len(phrases) >= NUM_CHOICES:
                break
            phrases.setdefault(others[i].name, f"{with_article(others[i].name, others[i].group)} on")
        names = list(phrases)
        return list(phrases.values()), np.array([names.index(d.meta["objects"][0]["name"]) for d in documents])
