"""`plait upcycle`: a language model as a folder that plait reads.

It holds the weights as a tower, the tokenizer as a codec, and a config that trains other towers beside it.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from plait.common.errors import ConfigError, unknown
from plait.common.files import atomic_folder, write_text
from plait.common.locks import one_writer
from plait.common.progress import Progress, QuietProgress
from plait.common.tensor_files import Stored
from plait.config.file import to_dict
from plait.config.model import ModelConfig
from plait.model.pretrained import SavedWeights, check_target, save_config, write_weights
from plait.upcycle.language_model import LanguageModel, open_language_model

WRITTEN = ("config.json", "model*", "codecs", "train.yaml")
FILE_BYTES = 5_000_000_000
CODECS = "codecs"

OTHERS: dict[str, dict[str, Any]] = {
    "image": {
        "codec": "image_components",
        "codec_options": {"size": 64, "patch_size": 16, "components": 192, "backgrounds": 32},
        "objective": "diffusion",
        "attention": "bidirectional",
        "later_sees": "clean_copy",
        "predicts": "clean",
        "place_embedding": True,
        "loss_weight": 5,
    },
    "speech": {"codec": "speech_tokens", "loss_weight": 1.5},
}
"""Modalities that may stand beside the text, as the quickstart has them."""

_HEAD = """# {name} as the text tower, frozen, beside new towers that begin as copies of it.
#
#   plait prepare {folder}/train.yaml --prepare.source my/manifest.jsonl     ("scenes": drawn and spoken examples)
#   plait train {folder}/train.yaml
#
# A narrower tower costs less: give it a width and an ffn_width, and no init_from.
"""


def upcycle(source: str, out: str | Path, towers: Sequence[str] = ("text",), progress: Progress | None = None) -> Path:
    """Write a language model (folder, GGUF file or name on the Hub) as a saved model with its codec; return the folder.

    ``towers`` are the modalities of the config beside it, text first. Raises CheckpointError where the model cannot be
    a tower, ConfigError for other towers and a folder that holds something else, ResourceError without network.
    """
    out = Path(out)
    if list(towers[:1]) != ["text"]:
        raise ConfigError(f"--towers: {','.join(towers)!r} is not allowed, it must begin with text")
    for name in towers[1:]:
        if name not in OTHERS:
            raise ConfigError(unknown("--towers", name, ["text", *OTHERS]))
    check_target(out, WRITTEN, "upcycle")
    with (
        open_language_model(source, "--from") as saved,
        one_writer(out, "--out", replaced=True),
        atomic_folder(out) as temporary,
    ):
        _write(saved, temporary, progress or QuietProgress())
        write_text(temporary / "train.yaml", recipe(saved, towers, out))
    return out


def _write(saved: LanguageModel, folder: Path, progress: Progress) -> None:
    for rule, count in saved.left_out.items():
        progress.print(f"left out: {count} of {rule}")
    save_config(saved.config, folder, with_code=True)
    saved.codec.save_pretrained(folder / CODECS / "text")
    shapes = {name: tuple(tensor.shape) for name, tensor in saved.model().state_dict().items()}
    dtype = saved.read(next(iter(shapes))).dtype
    tensors = {name: Stored(dtype, shape) for name, shape in shapes.items()}
    with progress.stage("upcycle", total=sum(t.num_bytes for t in tensors.values())) as bar:
        write_weights(folder, tensors, saved.read, FILE_BYTES, bar.advance)


def recipe(saved: SavedWeights, towers: Sequence[str], folder: Path) -> str:
    """Return the YAML of a run that trains other towers beside the frozen language model."""
    model = _plain(saved.config)
    codec = {"codec": "text_pretrained", "codec_options": {"path": str(folder / CODECS / "text")}}
    model["modalities"] = {"text": codec} | {name: OTHERS[name] for name in towers[1:]}
    start = {"init_from": str(folder)}
    model["towers"] = {"text": start | {"frozen": len(towers) > 1}} | {name: dict(start) for name in towers[1:]}
    config = {
        "name": f"{folder.name}-{'-'.join(towers[1:]) or 'tuned'}",
        "model": model,
        "prepare": {"source": "scenes", "concepts": 64, "image_size": 64},
        "data": {"batch_tokens": 2048, "max_document_tokens": 1024, "given_loss": False,
                 "tasks": {f"text,{name}": 1.0 for name in towers[1:]} or {"as_written": 1.0}},
        "diffusion": {"process": "flow", "shift": 9, "logit_std": 1.2},
        "train": {"steps": 2000, "accumulate": 2, "learning_rate": 3e-4, "normalize": "per_modality",
                  "precision": "bfloat16"},
        "generate": {"precision": "bfloat16"},
    }  # fmt: skip
    text = yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=120)
    return _HEAD.format(name=saved.name, folder=folder) + text


def _plain(config: ModelConfig) -> dict[str, Any]:
    """Return the settings of a model that its config has to name: neither defaults nor what its codec tells."""
    told = ("modalities", "towers", "bos", "eos", "stops")
    defaults = {f.name: f.default for f in dataclasses.fields(ModelConfig)} | {"unrotated_layers": ()}
    values = to_dict(config)
    return {name: v for name, v in values.items() if name not in told and getattr(config, name) != defaults[name]}
