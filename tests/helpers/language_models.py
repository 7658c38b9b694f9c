"""Small random language models, as transformers itself writes them, and their logits in float64."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "llama3": {"rope_parameters": LLAMA3},
    "llama linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    "smollm3": {"no_rope_layer_interval": 2},
    "mistral": {"sliding_window": None, "head_dim": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 20},
}
"""Settings by which each differs; the first word is the family."""


def tokenizer(*, bos: str | None = None, chat: str | None = CHATML) -> Any:
    """Return a byte-level tokenizer of 300 ids, the first three special; ``bos`` is put before texts."""
    import tokenizers as t
    from transformers import PreTrainedTokenizerFast

    made = t.Tokenizer(t.models.BPE())
    made.pre_tokenizer, made.decoder = t.pre_tokenizers.ByteLevel(add_prefix_space=False), t.decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<s>"]
    alphabet = sorted(t.pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        ["a fox on a blue background, and an owl that laughs at the fox"] * 9,
        t.trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    made.add_tokens([f"<extra_{i}>" for i in range(299 - made.get_vocab_size())])
    made.add_special_tokens(["<|endoftext|>"])  # transformers' class for Qwen adds it where it is not there
    if bos:
        made.post_processor = t.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, special.index(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token="<|im_end|>", chat_template=chat)


def model(family: str, seed: int = 0, **settings: Any) -> Any:
    """Return a random model of transformers, in float64."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = {"llama3": "llama"}.get(family.split()[0], family.split()[0])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(
            kind, **(SIZES | {"tie_word_embeddings": False} | FAMILIES.get(family, {}) | settings)
        )
        made = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
        for parameter in made.parameters():  # norms and biases too, so that each of them counts
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def save(made: Any, folder: Path, *, shards: str = "5GB", bos: str | None = None) -> Path:
    """Write a model and a tokenizer as transformers does."""
    made.save_pretrained(folder, max_shard_size=shards)
    tokenizer(bos=bos).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def wide() -> Iterator[None]:
    """Let transformers compute in float64 what it rounds to float32 whatever its weights: norms, angles, softmax."""
    with contextlib.ExitStack() as stack:
        for name in ("float", "float32"):
            stack.enter_context(mock.patch.object(torch, name, torch.float64))
        stack.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
        yield


@torch.no_grad()
def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    """Return transformers' logits [n, V] of a saved model in float64."""
    with wide():
        return _loaded(folder)(torch.tensor([ids]), use_cache=False).logits[0]


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")


def random_ids(length: int, seed: int = 0) -> np.ndarray:
    """Return ids of a text that neither begins nor ends with a special one."""
    return np.random.default_rng([seed, length]).integers(3, 300, length)
