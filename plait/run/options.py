"""Options of the commands that use models: generate, serve, playground and export."""

import argparse
from typing import Any

from plait.config.generation import SamplingConfig
from plait.run.arguments import like, real, whole

MODEL = "the folder of a run or of a saved model, or a model's name on the Hugging Face Hub (owner/name)"
WEIGHTS = (
    "precision of the weights: float32, bfloat16 (matrices in half the memory), or auto, that of generate.precision "
    "(default: auto)"
)


KEYS = {"text": "TEXT", "image": "FILE", "audio": "FILE"}
"""Keys of parts that have their own option in `plait generate`, with what it takes."""


class _PromptPart(argparse.Action):
    """Collects --text, --image, --audio and --part in the order they are given."""

    def __call__(self, parser, namespace, value, option=None):
        parts = list(getattr(namespace, "prompt", None) or [])
        key = option.lstrip("-")
        if key == "part":
            key, _, value = value.partition("=")
            if not (key and value):
                parser.error(f"--part: {key!r} is not allowed, it must be KEY=VALUE, such as depth=map.npy")
        namespace.prompt = [*parts, {key: value}]


def _suffixes(text: str) -> list[str]:
    """Return the suffixes of formats as they are listed: ".ply" and ".xml" of "ply,xml"."""
    return [f".{word.strip().lstrip('.').lower()}" for word in text.split(",") if word.strip()]


def serve_arguments(step: argparse.ArgumentParser, *, several: bool) -> None:
    """Add the options of `plait serve` and `plait playground`."""
    step.add_argument("models", metavar="model", nargs="+" if several else 1, help=MODEL)
    step.add_argument("--host", default="127.0.0.1",
                      help="address to listen at (default: 127.0.0.1, this machine alone)")  # fmt: skip
    step.add_argument("--port", type=whole(at_least=1, at_most=65535), default=8000, help="(default: 8000)")
    step.add_argument("--api-key-file", default="", metavar="FILE",
                      help="file with the key that clients must send as Authorization: Bearer KEY")  # fmt: skip
    step.add_argument("--max-queue", type=whole(at_least=0), default=256, metavar="N",
                      help="requests that may wait; more are refused with 429 (default: 256)")  # fmt: skip
    step.add_argument("--timeout", type=real(above=0), default=600.0, metavar="S",
                      help="seconds after which an answer is given up (default: 600)")  # fmt: skip
    step.add_argument("--adapter", action="append", default=[], metavar="NAME=FOLDER",
                      help="an adapter of the model (LoRA), served as its own model; may be repeated")  # fmt: skip
    step.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    step.add_argument("--weights", default="auto", choices=["auto", "float32", "bfloat16"], help=WEIGHTS)


def generate_arguments(step: argparse.ArgumentParser) -> None:
    """Add the options of `plait generate`."""
    step.add_argument("run_folder", metavar="model", help=MODEL)
    for key, text in KEYS.items():
        step.add_argument(
            f"--{key}", action=_PromptPart, metavar=text, help=f"prompt part: {key}; repeat and mix parts in any order"
        )
    step.add_argument("--part", action=_PromptPart, metavar="KEY=VALUE",
                      help="prompt part of any modality, by its key or its name: depth=map.npy")  # fmt: skip
    step.add_argument("--chat", nargs="?", const="", metavar="TEXT or FILE.json",
                      help="answer a question, with the model's own chat template, or the messages of a file; without "
                      "one, the lines that you type (docs/chat.md)")  # fmt: skip
    step.add_argument("--prompts", default="", metavar="FILE",
                      help="answer each line of a file, a text or JSON with a prompt (as GenEval's), in folders below "
                      "--out; rerun the same command to go on (docs/evaluation.md)")  # fmt: skip
    step.add_argument("--output", default=None,
                      help="modality to generate, or several in turn, such as scene3d,motion: each from all before it "
                      "(default: the model chooses; with --chat, text)")  # fmt: skip
    step.add_argument("--also", type=_suffixes, default=[], metavar="FORMAT,...",
                      help="write what is made in these formats too, with --output: ply, obj, stl, npz and xml "
                      "(MuJoCo) of a scene, glb and gif of a motion")  # fmt: skip
    step.add_argument("--count", type=whole(at_least=1), default=1, help="samples (default: 1)")
    step.add_argument("--seed", type=whole(), default=0, help="the same seed gives the same samples (default: 0)")
    step.add_argument("--temperature", type=like(SamplingConfig, "temperature"), help="0 is greedy")
    step.add_argument("--top-k", type=like(SamplingConfig, "top_k"), help="keep the k likeliest ids")
    step.add_argument("--top-p", type=like(SamplingConfig, "top_p"),
                      help="keep the likeliest ids that make up this probability")  # fmt: skip
    step.add_argument("--guidance", type=like(SamplingConfig, "guidance"), help="classifier-free guidance; 1 is none")
    step.add_argument("--media-guidance", type=like(SamplingConfig, "media_guidance"),
                      help="separate guidance by the given images or sounds; 1 is none")  # fmt: skip
    step.add_argument("--steps", type=like(SamplingConfig, "steps"), help="denoising steps (latents)")
    step.add_argument("--sampler", help="auto, or one that fits diffusion.process, such as ddim or euler (latents)")
    step.add_argument("--grid", metavar="ROWSxCOLUMNS", help="extent of an image's latents, in tokens, such as 8x12")
    step.add_argument("--max-tokens", type=whole(at_least=1), help="longest text or speech, in tokens")
    step.add_argument("--adapter", default="", metavar="FOLDER",
                      help="add what `plait export --adapter` or peft wrote: a folder, or a Hub name")  # fmt: skip
    step.add_argument("--out", default="", help="folder for PNG, WAV and samples.jsonl (default: <model>/generated; "
                      "generated, of a model on the Hub)")  # fmt: skip
    step.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    step.add_argument("--weights", default="auto", metavar="PRECISION", help=WEIGHTS)


def export_arguments(step: Any) -> None:
    """Add the options of `plait export`."""
    step.add_argument("run_folder", metavar="run", help="the run's folder")
    step.add_argument("--out", "--output", default="",
                      help="folder to write (default: <run>/exported/step-..., or <run>/exported/lerobot)")  # fmt: skip
    step.add_argument("--to", choices=("model", "lerobot"), default="model",
                      help="model: the weights; lerobot: the episodes of the run's data as a LeRobotDataset v3, and "
                      "no weights (default: model)")  # fmt: skip
    step.add_argument("--step", type=whole(at_least=0),
                      help="step of the checkpoint (default: the newest complete one)")  # fmt: skip
    step.add_argument("--ema", action="store_true", help="export the averaged weights (train.ema)")
    which = step.add_mutually_exclusive_group()
    which.add_argument("--merge", action="store_true", help="of a run with LoRA: a model whose matrices hold it")
    which.add_argument("--adapter", action="store_true", help="of a run with LoRA: it alone, in peft's form")
    step.add_argument("--weights-only", action="store_true", help="leave out codecs, settings of generation and card")
    step.add_argument("--file-gb", type=real(above=0), default=5.0, metavar="GB",
                      help="largest size of one file, in GB of 1e9 bytes (default: 5)")  # fmt: skip
    step.add_argument("--push", default="", metavar="OWNER/NAME",
                      help="publish what was written as this model on the Hugging Face Hub")  # fmt: skip
    step.add_argument("--private", action="store_true", help="make the model on the Hub a private one")
