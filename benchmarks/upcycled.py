"""Text of an upcycled language model: tokens a second beside transformers' own generate, taking turns in one run.

    plait upcycle --from MODEL --out smollm2
    python benchmarks/upcycled.py smollm2 MODEL                 (two cores, about 3 minutes)

MODEL is what it was made of, a folder or a GGUF file. Greedy, float32, by the wall clock, on a machine that does
nothing else; both feed the same prompt in every row and make the same number of tokens.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from plait.batch.documents import Part
from plait.common.malloc import keep_freed_memory
from plait.config.generation import SamplingConfig
from plait.generate import Request, generate
from plait.run.load import load

PROMPT = "Write a long story about a fox, an owl and the sea."
ROWS = (1, 8, 32)


def theirs_of(model: str):
    """Load a model by transformers."""
    from transformers import AutoModelForCausalLM, GgufConfig

    path = Path(model)
    if path.suffix == ".gguf":
        options = {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}
        return AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **options).eval()
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def main() -> None:
    """Print a table of both, by the number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("upcycled", help="folder of plait upcycle")
    parser.add_argument("model", help="what it was made of")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each row (default: 64)")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does
    pipeline, theirs = load(options.upcycled, device="cpu"), theirs_of(options.model)
    ids = pipeline.codecs["text"].tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    print("| rows | plait, tokens/s | transformers, tokens/s | plait / transformers |\n|---|---|---|---|")
    for rows in ROWS:
        arms = {"plait": lambda n=rows: ours(pipeline.model, ids, n, options.tokens),
                "transformers": lambda n=rows: reference(theirs, ids, n, options.tokens)}  # fmt: skip
        print(line(rows, arms, options.turns, options.tokens), flush=True)


def ours(model, ids: list[int], rows: int, tokens: int) -> list[int]:
    """Generate and return the first row's ids."""
    greedy = {"text": SamplingConfig(temperature=0.0)}
    requests = [Request([Part("text", np.array(ids))], "text", greedy, {"text": tokens}, number=i) for i in range(rows)]
    return generate(model, requests, grids={}, max_rows=rows, max_length=2048)[0].parts[0].ids.tolist()


@torch.no_grad()
def reference(model, ids: list[int], rows: int, tokens: int) -> list[int]:
    """Generate as many by transformers."""
    out = model.generate(torch.tensor([ids] * rows), do_sample=False, max_new_tokens=tokens, pad_token_id=0)
    return out[0, len(ids) :].tolist()


def line(rows: int, arms: dict[str, Callable[[], list[int]]], turns: int, tokens: int) -> str:
    """Let both take turns; return a line of the table."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    made = {}
    for turn in range(turns + 1):
        for name in list(arms)[:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            made[name] = arms[name]()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    assert made["plait"] == made["transformers"] and len(made["plait"]) == tokens, "both must make the same text"
    rates = {name: rows * tokens / statistics.median(times) for name, times in seconds.items()}
    ratios = sorted(b / a for a, b in zip(seconds["plait"], seconds["transformers"], strict=True))
    return (f"| {rows} | {rates['plait']:.0f} | {rates['transformers']:.0f} | "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |")  # fmt: skip


if __name__ == "__main__":
    main()
