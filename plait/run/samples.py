"""What a run's report shows: samples of every task beside the truth, denoising strips, guidance side by side.

Tasks are those of the config. Each is shown on the first held-out documents that have its parts, in the order of the
splits; documents that lack one are skipped, and a task that no document serves is left out. What is given and what is
predicted is arranged as in training.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plait.codecs import Encoded
from plait.common.files import write_text
from plait.common.progress import Progress, QuietProgress
from plait.config.generation import SamplingConfig
from plait.config.run import RunConfig
from plait.config.tasks import mentions_of
from plait.data.sources import TaskSource, open_sources, validation_splits
from plait.prepare.raw import RawSource, raw_documents
from plait.prepare.raw_sources import remade
from plait.run.load import MediaPart, Pipeline, Sample, documents_as_media, save_media

STRIPS, SNAPSHOTS = 6, 8
"""Items shown under denoising, and moments of each."""

FOLDER, FILES = "folder", 64
"""Held-out documents as files, an example of a folder to train on: its name, and how many documents it has."""

GUIDED, SCALES = 6, (1.0, 2.0, 3.0, 5.0)
"""Prompts shown at several scales of guidance."""


@dataclasses.dataclass
class Asked:
    """What is asked for a document of a task: what is given, what shall follow, and what is true."""

    given: list[MediaPart]
    output: str
    truth: MediaPart


class SampleSet:
    """Makes samples with a run's model, on documents that were held out, and writes them into a folder."""

    def __init__(
        self, config: RunConfig, pipeline: Pipeline, folder: Path, count: int, *, progress: Progress | None = None
    ):
        """``count`` is the number of documents that samples of each task are made of."""
        self.config, self.pipeline, self.folder, self.count = config, pipeline, folder, count
        self.progress = progress or QuietProgress()
        self.sources = [open_sources(config, split)[0] for split in validation_splits(config)]

    def write(self, *, free: int) -> None:
        """Write samples.jsonl: samples of every task, and ``free`` ones from nothing."""
        self._write("samples", self._tasks() + self._free(free))

    def write_more(self) -> None:
        """Write codecs.jsonl, strips.jsonl, guidance.jsonl (round trips, denoising, scales of guidance), and FOLDER."""
        if self.sources:
            self._write_files()
            self._write("codecs", list(self._codecs()))
            self._write("strips", list(self._strips()))
            self._write("guidance", list(self._guidance()))

    def _write(self, name: str, records: list[dict]) -> None:
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_text(self.folder / f"{name}.jsonl", "".join(lines))

    def _write_files(self) -> None:
        """Write documents as files that share a name: 0000.png, 0000.txt and so on."""
        source, origin, folder = self.sources[0], self._origins[0], self.folder / FOLDER
        folder.mkdir()
        for i, media in enumerate(self._media(source, origin, list(range(min(FILES, len(source)))))):
            for name, item in media:
                codec = self.pipeline.codecs[name]
                if isinstance(item, Encoded):
                    continue  # of a codec that only reads
                if codec.kind == "text":
                    write_text(folder / f"{i:04d}.txt", item)
                else:
                    codec.write(item, folder / f"{i:04d}{codec.suffix}")

    def _tasks(self) -> list[dict]:
        """Generate what each task predicts from what it gives."""
        asked = [a for task in self._asked.values() for a in task]
        samples = self._generate("generate samples", asked)
        return [s.save(self.folder, f"{i:04d}", [a.truth]) for i, (s, a) in enumerate(zip(samples, asked, strict=True))]

    def _free(self, count: int) -> list[dict]:
        """Let the model open and close spans itself, from nothing; none where documents open without <bos>."""
        if self.pipeline.model.config.layout.bos is None:
            return []
        samples = self.pipeline.generate_from_media([[]] * count, [None] * count, seed=self.config.seed + 1)
        return [s.save(self.folder, f"free-{i:02d}") for i, s in enumerate(samples)]

    def _codecs(self) -> Iterator[dict]:
        """Pair originals with what their codecs make of them, where the source of the data can make them again."""
        source, origin = self.sources[0], self._origins[0]
        if origin is None:
            return
        names = {k: name for k, name in self._names.items() if not self.pipeline.codecs[name].reads_only}
        originals = raw_documents(origin, source.split, range(min(self.count, len(source))))
        for i, document in enumerate(originals):
            for key, item in document.parts:
                if key == "text" or key not in names:
                    continue
                codec = self.pipeline.codecs[names[key]]
                again = codec.decode(codec.encode([item]))[0]
                yield {
                    "modality": names[key],
                    "original": self._save((names[key], item), f"codec-{i:02d}-original"),
                    "reconstruction": self._save((names[key], again), f"codec-{i:02d}-reconstruction"),
                }

    def _strips(self) -> Iterator[dict]:
        """Show items on their way from noise, for modalities of latents."""
        for name, asked in self._made_from_host(STRIPS):
            if self.config.model.modalities[name].objective != "diffusion":
                continue
            samples = self._generate(f"denoise {name}", asked, num_snapshots=SNAPSHOTS)
            for i, (sample, a) in enumerate(zip(samples, asked, strict=True)):
                levels = [level for level, _ in sample.result.snapshots]
                shown = self.pipeline.decode([part for _, part in sample.result.snapshots])
                record = sample.save(self.folder, f"strip-{name}-{i:02d}", [a.truth])
                steps = [
                    {"level": level, "part": self._save(part, f"strip-{name}-{i:02d}-{k}")}
                    for k, (level, part) in enumerate(zip(levels, shown, strict=True))
                ]
                yield record | {"steps": steps, "output": record["output"][0]}

    def _guidance(self) -> Iterator[dict]:
        """Make the same items at several scales of guidance, for modalities that are guided."""
        for name, asked in self._made_from_host(GUIDED):
            base = self.pipeline.config.sampling.get(name, SamplingConfig())
            if base.guidance == 1.0:
                continue
            outputs: list[list[dict]] = [[] for _ in asked]
            prompts: list[Any] = [None for _ in asked]
            for scale in SCALES:
                sampling = {name: dataclasses.replace(base, guidance=scale)}
                samples = self._generate(f"{name} at guidance {scale:g}", asked, sampling=sampling)
                for i, sample in enumerate(samples):
                    record = sample.save(self.folder, f"guidance-{name}-{i:02d}-{scale:g}")
                    outputs[i] += [{"guidance": scale, "part": part} for part in record["output"]]
                    prompts[i] = record["prompt"]
            for i, a in enumerate(asked):
                saved = self._save(a.truth, f"guidance-{name}-{i:02d}-truth")
                yield {"prompt": prompts[i], "outputs": outputs[i], "truth": [saved]}

    def _made_from_host(self, count: int) -> Iterator[tuple[str, list[Asked]]]:
        """Yield every modality that a task makes from the host alone, with what is asked for."""
        host = self.config.model.layout.host
        for task, asked in self._asked.items():
            names = mentions_of(task)
            if asked and names[:-1] == [host] and names[-1] != host:
                yield names[-1], asked[:count]

    @functools.cached_property
    def _asked(self) -> dict[str, list[Asked]]:
        """Return what is asked for each task that gives something and predicts something from it."""
        tasks = [task for task in self.config.data.tasks if "," in task]
        return {task: self._asked_of(task) for task in tasks}

    def _asked_of(self, task: str) -> list[Asked]:
        asked: list[Asked] = []
        for source, origin in zip(self.sources, self._origins, strict=True):
            arranged = TaskSource(source, self.config.model, {task: 1.0})
            numbers = np.arange(len(source))
            serving = numbers[arranged.serves(numbers)[:, 0]][: self.count - len(asked)].tolist()
            if not serving:
                continue
            for media in self._media(source, origin, serving):
                # a part may be followed by its features
                firsts = [i for i, (name, _) in enumerate(media) if not self.pipeline.codecs[name].reads]
                parts = [media[i:j] for i, j in itertools.pairwise([*firsts, len(media)])]
                chosen = arranged.choose([media[i][0] for i in firsts], 0, 0)
                prompt = [item for p, is_given in chosen if is_given for item in parts[p]]
                truth = next(parts[p][0] for p, is_given in chosen if not is_given)
                asked.append(Asked(prompt, truth[0], truth))
        return asked

    def _media(self, source, origin: RawSource | None, numbers: list[int]) -> list[list[MediaPart]]:
        """Return documents as media: the originals where they can be made again, or what the codecs kept of them."""
        if origin is None:
            return documents_as_media([source.document(i) for i in numbers], self.pipeline.codecs)
        names, raw = self._names, raw_documents(origin, source.split, numbers)
        return [[(names[key], item) for key, item in d.parts if key in names] for d in raw]

    @property
    def _names(self) -> dict[str, str]:
        """The modality of each key of a part."""
        return {codec.key: name for name, codec in self.pipeline.codecs.items() if not codec.reads}

    @functools.cached_property
    def _origins(self) -> list[RawSource | None]:
        return [remade(source.folder, self.config.prepare, self.pipeline.codecs) for source in self.sources]

    def _generate(self, title: str, asked: list[Asked], **settings: Any) -> list[Sample]:
        if not asked:
            return []
        prompts, outputs = [a.given for a in asked], [a.output for a in asked]
        with self.progress.stage(title, total=len(asked)) as bar:
            return self.pipeline.generate_from_media(
                prompts, outputs, seed=self.config.seed, on_result=lambda r: bar.advance(1), **settings
            )

    def _save(self, part: MediaPart, name: str) -> dict[str, str]:
        return save_media(self.pipeline.codecs[part[0]], part, self.folder, name)
