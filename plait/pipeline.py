"""A trained run as one object: media in, media out. `plait.load(run).generate("a fox on a blue background", ...)`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from plait.batch import Part
from plait.codecs import Codec, Media, fixed_grids, load_codec
from plait.config import DiffusionConfig, GenerateConfig, RunConfig, SamplingConfig
from plait.config_file import load as load_config_file
from plait.data.shards import read_index
from plait.data.sources import folders
from plait.errors import CheckpointError, ConfigError, require, unknown
from plait.files import atomic_file
from plait.generate import Request, Result, generate
from plait.model.mot import MixtureOfTransformers
from plait.model.pretrained import load_pretrained
from plait.train import checkpoint
from plait.train.engine import pick_device

MediaPart = tuple[str, Media]
"""A modality and one raw item."""


@dataclass
class Sample:
    """One generated sample as media: what was given, what was made, and how."""

    prompt: list[MediaPart]
    output: list[MediaPart]
    result: Result
    codecs: dict[str, Codec]

    @property
    def task(self) -> str:
        """What was given and asked for, such as ``text>image``; ``free`` where the model chose."""
        return ">".join([*(m for m, _ in self.prompt), self.result.request.output or "free"])

    def save(self, folder: Path, name: str, truth: Sequence[MediaPart] = ()) -> dict[str, Any]:
        """Write the media as files below ``folder`` and return the sample's record."""
        request = self.result.request
        record = {
            "id": name,
            "task": self.task,
            "prompt": [self._save_part(folder, f"{name}-prompt{i}", p) for i, p in enumerate(self.prompt)],
            "output": [self._save_part(folder, f"{name}-output{i}", p) for i, p in enumerate(self.output)],
            "stopped": self.result.stopped,
            "seed": request.seed,
            "number": request.number,
            "sampling": {
                m: asdict(s) for m, s in request.sampling.items() if m in {p.modality for p in self.result.parts}
            },
        }
        if truth:
            record["truth"] = [self._save_part(folder, f"{name}-truth{i}", p) for i, p in enumerate(truth)]
        return record

    def _save_part(self, folder: Path, name: str, part: MediaPart) -> dict[str, str]:
        return save_media(self.codecs[part[0]], part, folder, name)


def save_media(codec: Codec, part: MediaPart, folder: Path, name: str) -> dict[str, str]:
    """Write one item below ``folder`` (text stays in the record) and return its entry for a JSON record."""
    modality, media = part
    if codec.key == "text":
        return {"modality": modality, "text": media}
    path = folder / modality / f"{name}{codec.suffix}"
    with atomic_file(path) as temporary:
        renamed = temporary.with_suffix(codec.suffix)  # writers look at the suffix
        codec.write(media, renamed)
        renamed.replace(temporary)
    return {"modality": modality, "file": str(path.relative_to(folder))}


class Pipeline:
    """A model with its codecs. Modalities and their codecs are those of the prepared data it was trained on."""

    def __init__(self, model: MixtureOfTransformers, codecs: dict[str, Codec], config: GenerateConfig,
                 diffusion: DiffusionConfig | None = None):  # fmt: skip
        self.model, self.codecs, self.config, self.diffusion = model, codecs, config, diffusion

    @property
    def grids(self) -> dict[str, tuple[int, ...]]:
        """Extent of one generated item, for modalities where it is fixed."""
        chosen = {name: tuple(grid) for name, grid in self.config.grids.items()}
        return fixed_grids(self.codecs) | chosen

    def encode(self, media: Sequence[MediaPart]) -> list[Part]:
        """Encode media in order."""
        parts = []
        for modality, item in media:
            encoded = self.codecs[modality].encode([item])[0]
            parts.append(Part(modality, encoded.ids, encoded.latents, encoded.grid, role="understanding"))
        return parts

    def decode(self, parts: Sequence[Part]) -> list[MediaPart]:
        """Decode parts in order."""
        return [(p.modality, self.codecs[p.modality].decode([p])[0]) for p in parts]

    def read(self, parts: str | Sequence[dict[str, Any]], base: Path = Path()) -> list[MediaPart]:
        """Read a prompt: a text, or manifest parts such as ``{"image": "fox.png"}``."""
        host = self.model.config.layout.host
        if isinstance(parts, str):
            return [(host, parts)] if parts else []
        keys = {codec.key: name for name, codec in self.codecs.items()}
        media = []
        for part in parts:
            require(isinstance(part, dict) and len(part) == 1, "prompt", part, 'a part such as {"text": "a fox"}')
            ((key, value),) = part.items()
            name = keys.get(key, key)
            if name not in self.codecs:
                raise ConfigError(unknown("prompt", key, keys))
            media.append((name, self.codecs[name].read(value, base)))
        return media

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[dict[str, Any]]] = "",
        output: str | None = None,
        *,
        seed: int = 0,
        sampling: dict[str, SamplingConfig] | None = None,
        max_tokens: dict[str, int] | None = None,
        grids: dict[str, tuple[int, ...]] | None = None,
    ) -> list[Sample]:
        """Generate one sample for each prompt (a text, or a list of parts).

        ``output`` is the modality that shall follow; None lets the model open and close spans itself. ``grids`` sets
        the extent of latents, in tokens.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        media = [self.read(p) for p in prompts]
        return self.generate_from_media(media, [output] * len(media), seed=seed, sampling=sampling,
                                        max_tokens=max_tokens, grids=grids)  # fmt: skip

    def generate_from_media(
        self,
        media: Sequence[Sequence[MediaPart]],
        outputs: Sequence[str | None],
        *,
        seed: int = 0,
        sampling: dict[str, SamplingConfig] | None = None,
        max_tokens: dict[str, int] | None = None,
        grids: dict[str, tuple[int, ...]] | None = None,
        num_snapshots: int = 0,
        on_result: Callable[[Result], None] | None = None,
    ) -> list[Sample]:
        """Generate one sample for each list of media, with its output modality."""
        sampling = self.config.sampling | (sampling or {})
        longest = self.config.max_tokens | (max_tokens or {})
        requests = [Request(self.encode(m), o, sampling, longest, grids or {}, seed=seed, number=i,
                            num_snapshots=num_snapshots)
                    for i, (m, o) in enumerate(zip(media, outputs, strict=True))]  # fmt: skip
        results = generate(self.model, requests, grids=self.grids, max_rows=self.config.batch_size,
                           max_length=self.model.config.max_positions, diffusion=self.diffusion,
                           precision=self.config.precision, on_result=on_result,
                           page_size=self.config.page_size if self.config.cache == "paged" else 0,
                           cache_tokens=self.config.cache_tokens, cuda_graphs=self.config.cuda_graphs,
                           speculate=self.config.speculate)  # fmt: skip
        return [Sample(list(m), self.decode(r.parts), r, self.codecs) for m, r in zip(media, results, strict=True)]


def load(run: str | Path, *, device: str = "auto") -> Pipeline:
    """Load the newest whole checkpoint of a run folder (its averaged weights, if any), with its data's codecs."""
    run = Path(run)
    return load_run(run_config(run), device=device)


def run_config(run: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the config that a run keeps in its folder, which may have been moved; its own data moves with it."""
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise CheckpointError(f"run: {str(run)!r} holds no config.yaml, so it is not the folder of a run")
    made = load_config_file(path)
    moved = [f"out={json.dumps(str(run))}"]
    if made.data.path == f"{made.out}/data":
        moved.append(f"data.path={json.dumps(f'{run}/data')}")
    return load_config_file(path, [*moved, *overrides])


def load_run(config: RunConfig, *, device: str = "auto") -> Pipeline:
    """Load the model and codecs of a run."""
    found = checkpoint.latest(Path(config.out) / "checkpoints")
    if found is None:
        raise CheckpointError(f"run: {config.out!r} has no whole checkpoint, train it with plait train first")
    weights = checkpoint.weights_file(found).name
    model = load_pretrained(found, device=pick_device(device), weights=weights)
    model.requires_grad_(False)
    return Pipeline(model, load_codecs(config, list(model.config.modalities)), config.generate, config.diffusion)


def load_codecs(config: RunConfig, names: Sequence[str] | None = None) -> dict[str, Codec]:
    """Load the codecs of a run's prepared data, by modality."""
    codecs = {}
    for folder in folders(config):
        for name in read_index(folder)["modalities"]:
            if names is None or name in names:
                codecs.setdefault(name, load_codec(Path(folder) / "codecs" / name))
    for name in names or ():
        if name not in codecs:
            raise CheckpointError(f"run: the prepared data of {config.out!r} has no codec for the modality {name!r}")
    return codecs


@torch.no_grad()
def documents_as_media(documents, codecs: dict[str, Codec]) -> list[list[MediaPart]]:
    """Decode encoded documents: what their codecs make of them."""
    return [[(p.modality, codecs[p.modality].decode([p])[0]) for p in d.parts] for d in documents]
