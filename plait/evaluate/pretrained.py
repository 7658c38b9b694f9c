"""Models of transformers that judge, by folder or by name on the Hugging Face Hub.

Only safetensors and text files are read, and no code. ``where`` begins errors, such as "evaluate.features".
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.codecs.saved import quiet
from plait.common.errors import CheckpointError, ResourceError, first_line
from plait.common.hub import SHARDS, found

FILES = (
    "config.json", *SHARDS, "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "normalizer.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "1_Pooling/config.json",
)  # fmt: skip
"""What is fetched of a model on the Hub."""


def folder_of(name: str, where: str, others: Sequence[str] = ()) -> Path:
    """Return the folder of a model, fetched where ``name`` is one on the Hub; ``others`` are allowed names besides."""
    folder = found(name, where, FILES)
    if not folder.is_dir():
        allowed = ", ".join([*others, "a folder, or a name on the Hub such as owner/model"])
        raise CheckpointError(f"{where}: {name!r} is no folder, allowed: {allowed}")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{where}: {name!r} holds no config.json, name a model of transformers")
    if not any(path for pattern in SHARDS for path in folder.glob(pattern)):
        raise CheckpointError(
            f"{where}: {name!r} holds no model.safetensors, and pickled weights are not read; "
            "name a model or a revision (owner/model@revision) that has it"
        )
    return folder


def config_of(folder: Path, name: str, where: str) -> Any:
    """Return a model's config."""
    try:
        from transformers import AutoConfig
    except ImportError:
        message = f"{where}: package 'transformers' is not installed, install it: pip install 'plait[media]'"
        raise ResourceError(message) from None
    return part_of(AutoConfig, folder, name, where, "config")


def part_of(auto_class: Any, folder: Path, name: str, where: str, what: str, **options: Any) -> Any:
    """Return what an Auto class of transformers reads from a model's folder."""
    try:
        with quiet():
            return auto_class.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # the files can be anything
        raise CheckpointError(f"{where}: {name!r} holds no {what} that can be read ({first_line(error)})") from None


def model_of(
    auto_class: Any, folder: Path, name: str, where: str, may_lack: str = "masked_spec_embed"
) -> tuple[Any, list[str]]:
    """Return a float32 model for inference and the names of missing weights, all of which have ``may_lack`` in them."""
    options = {"use_safetensors": True, "output_loading_info": True, "dtype": torch.float32}
    model, info = part_of(auto_class, folder, name, where, "model", **options)
    missing = sorted(info["missing_keys"])
    lacking = [key for key in missing if may_lack not in key]
    if lacking:
        raise CheckpointError(f"{where}: {name!r} lacks weights of a {type(model).__name__}, such as {lacking[0]!r}")
    return model.eval().requires_grad_(False), missing


def pooled(output: Any) -> Tensor:
    """Return what get_image_features and get_text_features give; older versions of transformers give a tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output


def checksum(files: Sequence[str | Path]) -> str:
    """Return 12 digits that stand for the contents of files."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def folder_checksum(folder: Path) -> str:
    """Return the checksum of a model's files."""
    return checksum(sorted({path for pattern in FILES for path in folder.glob(pattern)}))
