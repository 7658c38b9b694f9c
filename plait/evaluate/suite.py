"""Everything that `plait evaluate` measures of a trained model, as a flat map of name to number."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np

from plait.batch.documents import Document, Part
from plait.codecs import Media
from plait.codecs.base import alike, ids_of
from plait.common.errors import ConfigError, ResourceError
from plait.common.progress import Progress
from plait.config.generation import SamplingConfig
from plait.config.run import RunConfig
from plait.config.tasks import AS_WRITTEN_TASK, lacking, mentions_of
from plait.data.shards import ShardSource
from plait.data.sources import data_fingerprint, open_sources, validation_splits
from plait.evaluate.cache import Cache
from plait.evaluate.examples import Example, chosen, write_examples
from plait.evaluate.forced_choice import continuation_scores, forced_choice
from plait.evaluate.free import free_figures
from plait.evaluate.held import Held, Library, asked_of, known, part_of
from plait.evaluate.judge import Found, Judge, judge_class
from plait.evaluate.losses import perplexity, split_losses
from plait.evaluate.measures import package
from plait.evaluate.paths import prefix_of
from plait.evaluate.reference_classifier import NUM_CONCEPTS
from plait.generate.actor import Actor
from plait.generate.pipeline import Pipeline
from plait.generate.request import Result
from plait.prepare.raw import Truths

FILE = "evaluation.json"
"""Where a run's folder keeps the figures."""
FOLDER = "evaluation"
"""Where it keeps examples, and what was made of the data alone."""
TRIED = "trials"
"""Where, below that, episodes are shown in which the model acts."""
VERSION = 5
"""What is measured; figures of another version are measured again."""

GREEDY = SamplingConfig(temperature=0.0)


@dataclass
class Suite:
    """A model under evaluation: its pipeline, as `plait generate` has it, on the validation splits of its run."""

    config: RunConfig
    pipeline: Pipeline
    progress: Progress
    autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    folder: Path | None = None
    """Where examples go, and what no model changes is kept; None keeps neither."""
    is_brief: bool = False
    """While training: the first split alone, and neither round trips, free documents nor examples."""
    items: dict[str, dict[str, list]] = field(default_factory=dict)
    """What figures without a split in their names are made of, item by item: "documents", "parts" and "wholes"."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """By part of the evaluation: the seconds that it took, and of how many items."""
    examples: list[Example] = field(default_factory=list)
    """Items of the first split, to be shown."""
    _libraries: dict[tuple[str, str], Library] = field(default_factory=dict)

    def run(self) -> dict[str, float]:
        """Measure losses, what the model makes of held-out documents, and what becomes of what it does."""
        return self.losses() | self.made() | self.tried()

    def losses(self) -> dict[str, float]:
        """Return val_loss/<split>/<modality>, task_loss/<split>/<task>/<modality>, and means over splits as seen."""
        figures: dict[str, float] = {}
        splits = self.splits
        with self.progress.stage("validation losses", total=len(splits)) as bar, self._timed("losses", len(splits)):
            for split in splits:
                losses, tasks = split_losses(
                    self.pipeline.model, self.config, split, limit=self.config.evaluate.batches, autocast=self.autocast
                )
                figures |= {f"val_loss/{split}/{name}": value for name, value in losses.items()}
                figures |= {f"task_loss/{split}/{t.replace(',', '>')}/{n}": v for (t, n), v in tasks.items() if t}
                bar.advance(1, split)
        for name in self.config.model.modalities:
            values = (figures.get(f"val_loss/{split}/{name}") for split in splits)
            if (value := next((value for value in values if value is not None), None)) is not None:
                figures[f"val_loss/{name}"] = value
                if self.config.model.modalities[name].objective == "next_token":
                    figures[f"perplexity/{name}"] = perplexity(value)
        return figures

    def made(self) -> dict[str, float]:
        """Measure what the model makes of held-out documents, modality by modality, there and back, and freely.

        It is held against the documents; and against what their source knows to be true of them, where it does. Figures
        without a split in their names, examples and items are of the first split that has such documents.
        """
        figures: dict[str, float] = {}
        judges, measured = self.judges(), set()
        for split in self.splits[: 1 if self.is_brief else None]:
            source, *others = open_sources(self.config, split)
            if others:
                self.progress.print(
                    f"evaluate: what is made of {split!r} is measured on documents of {source.folder!r}, the first of "
                    f"{len(others) + 1} sources that have it (data.sources)"
                )
            for path in self.paths():
                is_known = path in measured
                if path[-1] not in judges or (is_known and self._is_of_one_split(path)):
                    continue
                found = self.measured(path, source, judges[path[-1]], is_first=not is_known)
                if found is not None:
                    measured.add(path)
                    numbers = {f"{self.prefix(path)}_{name}": value for name, value in found.figures().items()}
                    figures |= {f"{name}/{split}": value for name, value in numbers.items()}
                    figures |= {} if is_known else numbers
        if self.splits and not self.is_brief:
            figures |= self._free()
        if self.folder and self.examples:
            write_examples(self.examples, self.folder)
        return figures

    def tried(self) -> dict[str, float]:
        """Measure what becomes of the model's actions, where the source of its data has something to try it in."""
        evaluate = self.config.evaluate
        source = open_sources(self.config, self.splits[0])[0] if self.splits and evaluate.trials else None
        made = self.library(source).made if source else None
        if made is None or made.trials is None:
            return {}
        seed, folder = self.config.seed, self.folder / TRIED if self.folder else None
        act = functools.partial(Actor(self.pipeline).chunks, seed=seed)
        with self._timed("trials", evaluate.trials):
            return made.trials.figures(act, evaluate, seed=seed, folder=folder, progress=self.progress)

    def judges(self) -> dict[str, Judge]:
        """Return the judge of each modality that has one; one whose packages are missing is said, and left out."""
        judges: dict[str, Judge] = {}
        made: dict[type[Judge], Judge] = {}
        for name, codec in self.pipeline.codecs.items():
            cls = judge_class(codec)
            if cls is None or self.config.model.modalities[name].objective == "input" or codec.reads:
                continue
            if not getattr(self.config.evaluate, cls.setting):
                continue
            try:
                for module in cls.needed(self.config.evaluate):
                    package(module)
            except ResourceError as error:
                self.progress.print(f"skipping the figures of {name!r}: {error}")
                continue
            made[cls] = judges[name] = made.get(cls) or cls(self.config.evaluate)
        return judges

    def _is_of_one_split(self, path: tuple[str, ...]) -> bool:
        """Say whether a path is measured of the first split alone that has such documents."""
        is_text = path[-1] == self.pipeline.model.config.layout.host
        return len(path) > 2 or not (is_text or self.config.evaluate.every_split)

    def paths(self) -> Iterator[tuple[str, ...]]:
        """Yield what is measured: (given, made), and of round trips (given, made on the way, made)."""
        host, records = self.pipeline.model.config.layout.host, self.config.model.modalities
        names = [name for name, record in records.items() if not record.reads]
        made = [name for name in names if records[name].objective != "input"]
        captions = [(name, host) for name in names if host in made and self.names_what_it_gives(name, host)]
        yield from captions  # of the host itself: answers
        yield from ((host, name) for name in made if name != host)
        for given, other in permutations((n for n in names if n != host), 2):
            tasks = map(mentions_of, self.tasks)
            is_trained = any(other == task[-1] and given in task[:-1] for task in tasks)
            if other in made and (is_trained or not self.tasks) and self.names_what_it_gives(given, other):
                yield given, other
        if not self.is_brief and self.config.evaluate.round_trips:
            for name in (n for n in made if n != host and (n, host) in captions):
                yield from ((host, name, host), (name, host, name))

    @functools.cached_property
    def tasks(self) -> list[str]:
        """The tasks of training; documents as written are none."""
        return [task for task in self.config.data.tasks if task != AS_WRITTEN_TASK]

    def task_of(self, given: str, made: str) -> str:
        """Return the task that makes ``made`` of the fewest modalities, ``given`` among them; "" where none does."""
        fitting: dict[int, str] = {}
        for task in self.tasks:
            *before, last = mentions_of(task)
            if last == made and given in before and len({*before, last}) == len(before) + 1:
                fitting.setdefault(len(before), task)
        return fitting[min(fitting)] if fitting else ""

    def together(self, given: str, made: str) -> tuple[str, ...]:
        """Return all that is given with ``given`` to make ``made``, in order: what stands before it in the task, as the
        model was trained with nothing less; ``given`` alone where there is no task."""
        return tuple(mentions_of(self.task_of(given, made))[:-1]) or (given,)

    def names_what_it_gives(self, given: str, made: str) -> bool:
        """Say whether a path is called by ``given``: of what is given together by the host, else by the last."""
        together = self.together(given, made)
        names = [name for name in (self.pipeline.model.config.layout.host, *reversed(together)) if name in together]
        return given == next(n for n in names if set(self.together(n, made)) == set(together))

    def prefix(self, path: Sequence[str]) -> str:
        """Return how the names of a path's figures begin."""
        images = [name for name, codec in self.pipeline.codecs.items() if codec.kind == "image" and not codec.reads]
        return prefix_of(path, self.pipeline.model.config.layout.host, images[:1])

    def measured(self, path: tuple[str, ...], source: ShardSource, judge: Judge, *, is_first: bool) -> Found | None:
        """Let the model make what a path asks for, and its judge say how good it is; None where there is nothing.

        ``is_first``: of the first split that has such documents, of which examples and items are kept.
        """
        host, settings, library = self.pipeline.model.config.layout.host, self.config.evaluate, self.library(source)
        count, asks_order = getattr(settings, judge.setting), False
        if len(path) > 2:
            count = min(count, settings.round_trips)
        elif host not in path:
            count, asks_order = min(count, settings.pairs), not self.config.data.tasks
        given, made = path[0], path[1]
        needed = {name for step in pairwise(path) for name in self.together(*step)}
        without = {name for step in pairwise(path) for name in lacking(self.task_of(*step))}
        documents = known(source, library.truths, given, made, count, in_order=asks_order,
                          is_round_trip=len(path) > 2, needed=needed, without=without)  # fmt: skip
        if not documents or (path[-1] != host and not (library.origin and self.training.origin)):
            return None
        title = f"{' → '.join(path)}, {source.split}"
        held = Held(path, source.split, self.pipeline.codecs[path[-1]], documents,
                    library.texts(documents, given), library, self.training, self.cache,
                    together=self.together(given, made))  # fmt: skip
        with self._timed(f"make {' > '.join(path)}", len(documents)):
            items = self.follow(path, documents, title)
        with (
            self.progress.stage(f"judge {title}", total=1) as bar,
            self._timed(f"judge {' > '.join(path)}", len(items)),
        ):
            held.advance = bar.to
            found = judge.measure(items, held)
            if len(path) > 2:
                found = found.of_items()
            elif path[-1] == host and library.truths and is_first:
                found.beside |= self.choices(given, documents, library.truths)
        if is_first:
            self._keep_items(self.prefix(path), held.numbers, found)
            self.examples += chosen(held, items, found) if self.folder and not self.is_brief else []
        return found

    def follow(self, path: tuple[str, ...], documents: Sequence[Document], title: str) -> list[Media]:
        """Return what the model makes of documents along a path, "" for a text that did not come."""
        host = self.pipeline.model.config.layout.host

        def sampling(name: str) -> dict[str, SamplingConfig] | None:
            return {host: GREEDY} if name == host else None

        made = self.complete(documents, path[0], path[1], title, sampling(path[1]))
        for before, name in pairwise(path[1:]):
            prompts = [self._prompt(document, before, "" if item is None else item, name)
                       for document, item in zip(documents, made, strict=True)]  # fmt: skip
            made = self._complete(prompts, name, title, sampling(name), self._grids(documents, path[0], name))
        if path[-1] != host and any(item is None for item in made):
            raise ConfigError(
                f"model.max_positions: {self.pipeline.model.config.max_positions} is not allowed, it must hold a "
                f"caption and an item of {path[-1]!r}, which found no room; lower generate.max_tokens or generate.grids"
            )
        return ["" if item is None else item for item in made]

    def _prompt(self, document: Document, modality: str, item: Media, output: str) -> list[Part]:
        """Return an item that was made, with what else of its document is given together with it."""
        made = self.pipeline.encode([(modality, item)])
        others = self.together(modality, output)
        return [part for n in others for part in (made if n == modality else [part_of(document, n)])]

    def complete(self, documents: Sequence[Document], prompt_modality: str, output: str, title: str,
                 sampling: dict[str, SamplingConfig] | None = None) -> list[Media | None]:  # fmt: skip
        """Generate ``output`` after what each document gives (`asked_of`), decoded; None where none came."""
        together = self.together(prompt_modality, output)
        prompts = [asked_of(d, prompt_modality, output, together)[0] for d in documents]
        return self._complete(prompts, output, title, sampling, self._grids(documents, prompt_modality, output))

    def _grids(self, documents: Sequence[Document], given: str, output: str) -> list[tuple[int, ...]]:
        """Return the extent of each item to be made: the document's own, where neither codec nor settings fix one."""
        is_free = self.config.model.modalities[output].objective == "diffusion" and output not in self.pipeline.grids
        asked = [asked_of(d, given, output)[1] if is_free else None for d in documents]
        return [part.grid if part else () for part in asked]

    def _complete(
        self, prompts: Sequence[list[Part]], output: str, title: str, sampling: dict[str, SamplingConfig] | None,
        grids: Sequence[tuple[int, ...]],
    ) -> list[Media | None]:  # fmt: skip
        results: dict[int, Result] = {}
        with self.progress.stage(title, total=len(prompts)) as bar:
            for grid, places in alike(grids, len(grids)):  # those of one size together
                made = self.pipeline.complete(
                    [prompts[i] for i in places], [output] * len(places), sampling=sampling, numbers=places,
                    grids={output: grid} if grid else None, on_result=lambda _: bar.advance(1),
                )  # fmt: skip
                results |= dict(zip(places, made, strict=True))
        made = [results[i] for i in range(len(prompts))]
        decoded = iter(self.pipeline.decode([r.parts[0] for r in made if r.parts]))
        return [next(decoded)[1] if r.parts else None for r in made]

    def choices(self, modality: str, documents: list[Document], truths: Truths) -> dict[str, float]:
        """Score NUM_CONCEPTS names for items that show one thing: the share named rightly, and with items shuffled."""
        single = [d for d in documents if truths.thing(d.meta)][: self.config.evaluate.choices]
        if not single:
            return {}
        phrases, truth = truths.openings([d.meta for d in single], NUM_CONCEPTS, self.config.seed)
        model = self.pipeline.model
        ids = [ids_of(e) for e in self.pipeline.codecs[model.config.layout.host].encode(phrases)]
        scores = []
        with self.progress.stage(f"forced choice of {len(phrases)} by {modality}", total=len(single)) as bar:
            for document in single:
                prompt = [part_of(document, name) for name in self.together(modality, model.config.layout.host)]
                scores.append(continuation_scores(model, prompt, ids))
                bar.advance(1)
        shares = forced_choice(np.array(scores), truth)
        return {f"choice_{k}": v for k, v in shares.items()}

    def _free(self) -> dict[str, float]:
        """Measure documents that the model makes from nothing, opening and closing spans itself."""
        count = self.config.evaluate.free
        if not count or self.pipeline.model.config.layout.bos is None:
            return {}
        with self.progress.stage("free documents", total=count) as bar, self._timed("free documents", count):
            found = free_figures(self.pipeline, self.config, self.training.source, count, lambda: bar.advance(1))
        self._keep_items("free", list(range(count)), found)
        return {f"free_{name}": value for name, value in found.figures().items()}

    def _keep_items(self, prefix: str, numbers: list[int], found: Found) -> None:
        """Keep what paired comparisons need."""
        for name, measure in found.measures.items():
            if measure.count and measure.items and len(measure.items.parts) == len(numbers):
                self.items[f"{prefix}_{name}"] = {"documents": numbers, **asdict(measure.items)}

    @functools.cached_property
    def splits(self) -> list[str]:
        """The validation splits; what is shown, and compared in pairs, is of the first."""
        return validation_splits(self.config)

    def library(self, source: ShardSource) -> Library:
        """Return the texts and raw media of a split."""
        made = Library(self.config, self.pipeline, self.progress, source)
        return self._libraries.setdefault((source.folder, source.split), made)

    @functools.cached_property
    def training(self) -> Library:
        """The texts and raw media that the model was trained on."""
        return self.library(open_sources(self.config, "train")[0])

    @functools.cached_property
    def cache(self) -> Cache:
        """What no model changes."""
        key = {"version": VERSION, "data": data_fingerprint(self.config)} if self.folder else {}
        return Cache(self.folder and self.folder / "references", key)

    @contextlib.contextmanager
    def _timed(self, part: str, count: int) -> Iterator[None]:
        """Add the seconds that a part takes."""
        started = time.monotonic()
        yield
        if count:
            before = self.seconds.get(part, [0.0, 0])
            self.seconds[part] = [before[0] + time.monotonic() - started, before[1] + count]
