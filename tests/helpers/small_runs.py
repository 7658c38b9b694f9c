"""Files of small runs that an installed plait does."""

import json
import shutil
from pathlib import Path

from helpers import ROOT

LETTERS = """
name: letters
model:
  width: 32
  num_layers: 1
  num_heads: 2
  modalities:
    text: {codec: "byte_text:ByteText"}
prepare: {source: manifest.jsonl, validation_share: 0.2, num_workers: 1}
data: {batch_tokens: 128}
train: {steps: 4, log_every: 1, validate_every: 4, warmup_steps: 1, device: cpu}
generate: {max_tokens: {text: 6}}
"""
VARIABLES = {"PLAIT_CODECS": "byte_text", "PYTHONPATH": "."}
"""With which a run of LETTERS finds its codec."""

PHOTOS = """
name: photos
model:
  width: 32
  num_layers: 1
  num_heads: 2
  modalities:
    text: {codec: text_bpe, codec_options: {vocab_size: 300}}
    image:
      codec: image_pixels
      codec_options: {size: 16, patch_size: 8}
      objective: diffusion
      attention: bidirectional
prepare: {source: photos, validation_share: 0.2, num_workers: 1}
data: {batch_tokens: 128, tasks: {"text,image": 1, "image,text": 1}}
train: {steps: 2, log_every: 1, validate_every: 2, warmup_steps: 1, device: cpu}
generate: {max_tokens: {text: 6}, sampling: {image: {steps: 2}}}
"""


def write_letters(folder: Path) -> None:
    """Write a config, its texts and its codec, for which the core is enough."""
    rows = [{"parts": [{"text": f"fox number {number} sees {number * 7} owls"}]} for number in range(40)]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "letters.yaml").write_text(LETTERS)
    shutil.copy(ROOT / "tests" / "helpers" / "byte_text.py", folder)


def write_photos(folder: Path) -> None:
    """Write a config of images and captions, which `program("media")` makes."""
    (folder / "photos.yaml").write_text(PHOTOS)


def program(extra: str) -> str:
    """Return a program that does what an extra is for, where the files above are."""
    return (ROOT / "tests" / "extras" / f"{extra}.py").read_text(encoding="utf-8")
