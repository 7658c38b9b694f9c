"""A run's model and codecs from its folder. `plait.load(run).generate("a teapot on a blue background", ...)`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from plait.batch.documents import Document, Part
from plait.codecs import Codec, Encoded, load_codec
from plait.common import hub
from plait.common.errors import CheckpointError, ConfigError, unknown
from plait.config.file import load_kept
from plait.config.generation import GenerateConfig
from plait.config.run import RunConfig
from plait.data.shards import codec_folder
from plait.data.sources import codec_records
from plait.generate.pipeline import Pipeline, Sample, save_media
from plait.generate.prompts import MediaPart
from plait.generate.saved import generation_of, read_codec, read_settings
from plait.model.adapters import merge_adapter
from plait.model.precision import shorten, usable
from plait.model.pretrained import load_config, load_pretrained
from plait.train import checkpoint
from plait.train.acceptance import check_fits, newest_state
from plait.train.trainer import pick_device

__all__ = ["MediaPart", "Pipeline", "Sample", "documents_as_media", "load", "load_codecs", "load_run", "run_config",
           "save_media"]  # fmt: skip


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PRECISIONS = ("auto", *DTYPES)
"""Those in which weights may be kept to generate; auto: that of `generate.precision`."""


def load(
    run: str | Path, *, device: str = "auto", weights: str = "auto", adapter: str | Path = "", revision: str = ""
) -> Pipeline:
    """Load the newest complete checkpoint of a run folder (its averaged weights, if any), with its data's codecs.

    A saved model with its codecs is taken as well: the folder that `plait export` or `plait upcycle` wrote, or
    ``owner/name`` on the Hugging Face Hub, with the branch, tag or commit ``revision``. ``weights`` "bfloat16" keeps
    its matrices in half the memory, and generates in that precision, as "auto" does where the run generates in it
    (`generate.precision`); "float32" keeps them as they were saved. ``adapter``: what `plait export --adapter` or peft
    wrote, a folder or a name, which is added to the matrices that it changes, as LoRA of the run itself is.
    """
    run = hub.found(run, "run", hub.MODEL, revision)
    if weights not in PRECISIONS:
        raise ConfigError(unknown("weights", weights, PRECISIONS))
    first = "float32" if adapter else weights
    saved = _is_saved(run)
    pipeline = load_saved(run, device, first) if saved else load_run(run_config(run), device, first)
    pipeline.model.merge_lora()
    if weights == "bfloat16":
        pipeline.config.precision = "bfloat16"
    if adapter:  # added to float32, and rounded once
        merge_adapter(pipeline.model, adapter)
        if _dtype_of(weights, pipeline.config, pipeline.model.device) == torch.bfloat16:
            shorten(pipeline.model)
    return pipeline


def _dtype_of(weights: str, config: GenerateConfig, device: torch.device) -> torch.dtype:
    """Return the precision in which matrices are kept."""
    return DTYPES[usable(config.precision, device) if weights == "auto" else weights]


def check_loadable(run: str | Path) -> None:
    """Raise a CheckpointError or ConfigError for what is neither a run nor a saved model; no weights are read."""
    if _is_saved(Path(run)):
        load_config(run)
    elif checkpoint.latest(Path(run_config(run).out) / "checkpoints") is None:
        raise CheckpointError(f"run: {str(run)!r} has no complete checkpoint, run `plait train` first")


def _is_saved(folder: Path) -> bool:
    """Whether a folder is a saved model rather than a run's."""
    return not (folder / "config.yaml").exists() and (folder / "config.json").exists()


def load_saved(folder: Path, device: str = "auto", weights: str = "auto") -> Pipeline:
    """Load a saved model with its codecs and settings of generation."""
    settings = read_settings(folder)
    codecs = {name: read_codec(folder, name, settings) for name in load_config(folder).modalities}
    generate, diffusion = generation_of(settings)
    place = pick_device(device)
    model = load_pretrained(folder, device=place, dtype=_dtype_of(weights, generate, place))
    model.requires_grad_(False)
    return Pipeline(model, codecs, generate, diffusion, settings.get("tasks", {}))


def run_config(run: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the config that a run keeps in its folder, which may have been moved; its own data moves with it.

    Raises a ConfigError where it, or an override, does not fit the newest checkpoint.
    """
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise CheckpointError(f"run: {str(run)!r} holds no config.yaml, so it is not the folder of a run")
    config = load_kept(run, overrides)
    check_fits(config, newest_state(config))
    return config


def load_run(config: RunConfig, device: str = "auto", weights: str = "auto") -> Pipeline:
    """Load the model and codecs of a run."""
    latest = checkpoint.latest(Path(config.out) / "checkpoints")
    if latest is None:
        raise CheckpointError(f"run: {config.out!r} has no complete checkpoint, run `plait train` first")
    file, place = checkpoint.weights_file(latest).name, pick_device(device)
    model = load_pretrained(latest, device=place, weights=file, dtype=_dtype_of(weights, config.generate, place))
    model.requires_grad_(False)
    codecs = load_codecs(config, list(model.config.modalities))
    return Pipeline(model, codecs, config.generate, config.diffusion, config.data.tasks)


def load_codecs(config: RunConfig, names: Sequence[str] | None = None) -> dict[str, Codec]:
    """Load the codecs of a run's prepared data, by modality."""
    codecs: dict[str, Codec] = {}
    for name, (folder, record) in codec_records(config).items():
        if names is None or name in names:
            codecs[name] = load_codec(codec_folder(folder, name), record["key"], record.get("reads", ""))
            _check_encoded_by(codecs[name], name, folder, record)
    for name in names or ():
        if name not in codecs:
            raise CheckpointError(f"run: the prepared data of {config.out!r} has no codec for the modality {name!r}")
    return codecs


def _check_encoded_by(codec: Codec, name: str, folder: str, record: Mapping[str, Any]) -> None:
    """Raise a CheckpointError where the documents' tokens are not as the codec makes them today."""
    if record["latent_channels"] != codec.latent_channels:
        raise CheckpointError(
            f"data.path: the {name} tokens in {folder!r} have {record['latent_channels']} channels, where the codec "
            f"{codec.name!r} of this version of plait makes {codec.latent_channels}; prepare the data again "
            "(--restart), or use the version that made them"
        )


@torch.no_grad()
def documents_as_media(documents: Sequence[Document], codecs: dict[str, Codec]) -> list[list[MediaPart]]:
    """Decode encoded documents: what their codecs make of them. Features stand behind the part that they are read of,
    encoded as they are."""

    def decoded(part: Part) -> list[MediaPart]:
        encoded = Encoded(part.ids, part.latents, part.grid)
        media = [(part.modality, codecs[part.modality].decode([encoded])[0])]
        read = part.features
        return [*media, (read.modality, Encoded(read.ids, read.latents, read.grid))] if read is not None else media

    return [[media for part in document.parts for media in decoded(part)] for document in documents]
