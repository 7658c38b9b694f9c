"""What transformers' `generate` may be asked for, as requests of plait's generator, and answers as they are made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig

from plait.batch.documents import Part
from plait.common.errors import ConfigError, unknown
from plait.config.generation import GenerateConfig, SamplingConfig
from plait.config.model import ModelConfig
from plait.config.shipped import sampling_from
from plait.generate.engine import Generator
from plait.generate.request import Request, Result

MODES = ("text", "image", "audio")
FREE = "any"
"""The mode in which the model opens and closes items itself; the others name the kind of item that follows."""

_SAMPLING = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "guidance_scale": "guidance",
             "num_inference_steps": "steps"}  # fmt: skip
_TAKEN = (*_SAMPLING, "do_sample", "max_new_tokens", "max_length", "num_return_sequences", "seed")
_WITHOUT_EFFECT = ("pad_token_id", "eos_token_id", "bos_token_id", "transformers_version", "tokenizer")
"""What pipelines and trainers pass along, and what changes nothing here."""


def settings_of(
    own: GenerationConfig | None, given: GenerationConfig | None, more: Mapping[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """Return the settings of one call by transformers' names: the model's or the given config's, and those by name.

    What a config has at the library's own default is not set: sampling is then the model's own. Raises ConfigError for
    what has no meaning here.
    """
    config = own if given is None else given
    differing = {} if config is None else config.to_diff_dict()
    plain = GenerationConfig._get_default_generation_params()
    values = {n: v for n, v in differing.items() if not n.startswith("_") and v != plain.get(n)} | dict(more)
    for name, value in values.items():
        if name not in (*_TAKEN, *_WITHOUT_EFFECT) and value is not None and value != plain.get(name):
            raise ConfigError(unknown("generate", name, _TAKEN))
    return {k: v for k, v in values.items() if k in _TAKEN and v is not None}


def requests_of(
    prompts: Sequence[Sequence[Part]], output: str | None, model: ModelConfig, config: GenerateConfig,
    values: Mapping[str, Any], prompt_length: int,
) -> list[Request]:  # fmt: skip
    """Return the requests of a batch of prompts of a length, each as many times as `num_return_sequences` says."""
    options = {own: values[theirs] for theirs, own in _SAMPLING.items() if theirs in values}
    sampling = sampling_from(config.sampling, model, options, lambda own: f"generate.{_called(own)}")
    if values.get("do_sample") is False:
        sampling = {name: _greedy(sampling.get(name), name, model) for name in model.modalities}
    longest, most = config.max_tokens, values.get("max_new_tokens")
    if most is None and "max_length" in values:
        most = values["max_length"] - prompt_length
    if most is not None:
        longest = dict.fromkeys(model.modalities, most)
    # from torch's own generator, so that torch.manual_seed and transformers.set_seed hold
    seed = values["seed"] if "seed" in values else int(torch.randint(2**31, ()))
    copies = values.get("num_return_sequences", 1)
    return [
        Request(list(prompt), output, sampling, longest, seed=seed, number=copies * i + k)
        for i, prompt in enumerate(prompts)
        for k in range(copies)
    ]


def _called(own: str) -> str:
    return next(theirs for theirs, name in _SAMPLING.items() if name == own)


def _greedy(settings: SamplingConfig | None, name: str, model: ModelConfig) -> SamplingConfig:
    settings = settings or SamplingConfig()
    return replace(settings, temperature=0.0) if model.modalities[name].objective == "next_token" else settings


def stream(generator: Generator, request: Request, tell: Callable[[list[int]], None]) -> Result:
    """Carry out one request, and tell of each id of the host's text as it is drawn."""
    host, number, told = generator.layout.host, generator.add(request), 0
    while True:
        ended = generator.step()
        result = next(iter(ended), None)
        row = next((row for row in generator.rows if row.id == number), None)
        parts = result.parts if result is not None else row.parts if row else []
        ids = [int(i) for part in parts if part.modality == host and part.ids is not None for i in part.ids]
        if result is None and row is not None and row.span is None:
            ids += row.tokens
        if len(ids) > told:
            tell(ids[told:])
            told = len(ids)
        if result is not None:
            return result
