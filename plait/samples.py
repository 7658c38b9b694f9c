"""What a run's report shows: samples of every task beside the truth, denoising strips, guidance side by side."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plait.config import RunConfig, SamplingConfig
from plait.data.prepare import drawn_scenes, raw_source
from plait.data.raw import RawDocument
from plait.data.sources import open_sources, validation_splits
from plait.files import write_text
from plait.pipeline import MediaPart, Pipeline, Sample, documents_as_media, save_media
from plait.progress import Progress, QuietProgress

STRIPS, SNAPSHOTS = 6, 8
"""Items shown under denoising, and moments of each."""

GUIDED, SCALES = 6, (1.0, 2.0, 3.0, 5.0)
"""Prompts shown at several scales of guidance."""


class SampleSet:
    """Makes samples with a run's model, on documents of its first validation split, and writes them into a folder."""

    def __init__(self, config: RunConfig, pipeline: Pipeline, folder: Path, count: int, *,
                 progress: Progress | None = None):  # fmt: skip
        """``count`` is the number of documents that samples are made of."""
        self.config, self.pipeline, self.folder, self.count = config, pipeline, folder, count
        self.progress = progress or QuietProgress()
        self.split = next(iter(validation_splits(config)), "")

    def write(self, *, free: int) -> None:
        """Write samples.jsonl: samples of every task, and ``free`` ones from nothing."""
        records = self._tasks() if self.split else []
        self._write("samples", records + self._free(free))

    def write_more(self) -> None:
        """Write codecs.jsonl, strips.jsonl and guidance.jsonl: round trips, denoising, and scales of guidance."""
        if self.split:
            self._write("codecs", list(self._codecs()))
            self._write("strips", list(self._strips()))
            self._write("guidance", list(self._guidance()))

    def _write(self, name: str, records: list[dict]) -> None:
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_text(self.folder / f"{name}.jsonl", "".join(lines))

    def _tasks(self) -> list[dict]:
        """Generate the last modality of each task from the ones before it."""
        asked, outputs, truths = [], [], []
        for names in self._known_tasks():
            for by_name in map(dict, self._originals):
                asked.append([(n, by_name[n]) for n in names[:-1]])
                outputs.append(names[-1])
                truths.append([(names[-1], by_name[names[-1]])])
        samples = self._generate("generate samples", asked, outputs)
        return [
            s.save(self.folder, f"{i:04d}", truth) for i, (s, truth) in enumerate(zip(samples, truths, strict=True))
        ]

    def _free(self, count: int) -> list[dict]:
        """Let the model open and close spans itself, from nothing."""
        samples = self.pipeline.generate_from_media([[]] * count, [None] * count, seed=self.config.seed + 1)
        return [s.save(self.folder, f"free-{i:02d}") for i, s in enumerate(samples)]

    def _codecs(self) -> Iterator[dict]:
        """Pair originals with what their codecs make of them."""
        for i, parts in enumerate(self._originals if drawn_scenes(self.config) else []):
            for name, item in parts:
                codec = self.pipeline.codecs[name]
                if codec.key == "text":
                    continue
                again = codec.decode(codec.encode([item]))[0]
                yield {
                    "modality": name,
                    "original": self._save((name, item), f"codec-{i:02d}-original"),
                    "reconstruction": self._save((name, again), f"codec-{i:02d}-reconstruction"),
                }

    def _strips(self) -> Iterator[dict]:
        """Show items on their way from noise, for modalities of latents."""
        for name, given, truths in self._made_from_host(STRIPS):
            if self.config.model.modalities[name].objective != "diffusion":
                continue
            samples = self._generate(f"denoise {name}", given, [name] * len(given), num_snapshots=SNAPSHOTS)
            for i, (sample, truth) in enumerate(zip(samples, truths, strict=True)):
                levels = [level for level, _ in sample.result.snapshots]
                shown = self.pipeline.decode([part for _, part in sample.result.snapshots])
                record = sample.save(self.folder, f"strip-{name}-{i:02d}", [truth])
                steps = [{"level": level, "part": self._save(part, f"strip-{name}-{i:02d}-{k}")}
                         for k, (level, part) in enumerate(zip(levels, shown, strict=True))]  # fmt: skip
                yield record | {"steps": steps, "output": record["output"][0]}

    def _guidance(self) -> Iterator[dict]:
        """Make the same items at several scales of guidance, for modalities that are guided."""
        for name, given, truths in self._made_from_host(GUIDED):
            base = self.pipeline.config.sampling.get(name, SamplingConfig())
            if base.guidance == 1.0:
                continue
            outputs: list[list[dict]] = [[] for _ in given]
            prompts: list[Any] = [None for _ in given]
            for scale in SCALES:
                sampling = {name: dataclasses.replace(base, guidance=scale)}
                samples = self._generate(f"{name} at guidance {scale:g}", given, [name] * len(given), sampling=sampling)
                for i, sample in enumerate(samples):
                    record = sample.save(self.folder, f"guidance-{name}-{i:02d}-{scale:g}")
                    outputs[i] += [{"guidance": scale, "part": part} for part in record["output"]]
                    prompts[i] = record["prompt"]
            for i, truth in enumerate(truths):
                saved = self._save(truth, f"guidance-{name}-{i:02d}-truth")
                yield {"prompt": prompts[i], "outputs": outputs[i], "truth": [saved]}

    def _made_from_host(self, count: int) -> Iterator[tuple[str, list[list[MediaPart]], list[MediaPart]]]:
        """Yield every modality that a task makes from the host alone, with prompts and truths."""
        host, media = self.config.model.layout.host, self._originals[:count]
        for names in self._known_tasks():
            if names[:-1] == [host] and names[-1] != host:
                given = [[(host, dict(parts)[host])] for parts in media]
                yield names[-1], given, [(names[-1], dict(parts)[names[-1]]) for parts in media]

    def _known_tasks(self) -> list[list[str]]:
        """Return the run's tasks that the documents have all parts of."""
        known = {name for name, _ in self._originals[0]} if self._originals else set()
        tasks = [task.split(",") for task in self.config.data.tasks]
        return [names for names in tasks if len(names) > 1 and set(names) <= known]

    def _generate(self, title: str, given: list[list[MediaPart]], outputs: list[str], **settings: Any) -> list[Sample]:
        with self.progress.stage(title, total=len(given)) as bar:
            return self.pipeline.generate_from_media(
                given, outputs, seed=self.config.seed, on_result=lambda r: bar.advance(1), **settings
            )

    @functools.cached_property
    def _originals(self) -> list[list[MediaPart]]:
        """Return the first validation documents as media: the originals, or what the codecs kept of them."""
        source = open_sources(self.config, self.split)[0]
        count = min(self.count, len(source))
        if not drawn_scenes(self.config):  # rows that were broken shift a manifest's numbers
            return documents_as_media([source.document(i) for i in range(count)], self.pipeline.codecs)
        keys = {codec.key: name for name, codec in self.pipeline.codecs.items()}
        raw = [r for r in raw_source(self.config).read(self.split, 0, count) if isinstance(r, RawDocument)]
        return [[(keys[k], item) for k, item in r.parts if k in keys] for r in raw]

    def _save(self, part: MediaPart, name: str) -> dict[str, str]:
        return save_media(self.pipeline.codecs[part[0]], part, self.folder, name)
