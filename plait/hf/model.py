"""A Mixture-of-Transformers as a model of transformers: its loss, its logits, and what it makes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils.hub import cached_file

from plait.batch.assemble import assemble, spell
from plait.batch.batch import Batch
from plait.batch.documents import Part
from plait.common.errors import CheckpointError, ConfigError, require
from plait.common.files import write_json, write_text
from plait.config.generation import DiffusionConfig, GenerateConfig
from plait.generate.engine import Generator, generate
from plait.generate.request import Result
from plait.generate.saved import SETTINGS, check_settings, generation_of
from plait.hf.config import PlaitConfig
from plait.hf.generation import FREE, MODES, requests_of, settings_of, stream
from plait.hf.inputs import Row, names_of_media, rows_of
from plait.model.mot import MixtureOfTransformers
from plait.model.pretrained import CODE, CODE_TEXT
from plait.objectives import loss_factors, weighted_loss
from plait.objectives.diffusion import corrupt

_WHERE_IT_IS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
"""What `from_pretrained` passes on to whatever fetches a file."""


class PlaitForMultimodalLM(PreTrainedModel, GenerationMixin):
    """Text, images and sound in; text, images or sound out. Its weights have the names that plait gives them.

    Inputs are what `plait.hf.PlaitProcessor` makes (plait.hf.inputs).
    """

    config_class = PlaitConfig
    config: PlaitConfig
    main_input_name = "input_ids"
    input_modalities = "text"
    """Images and sound are read too. Where they stand here, pipelines refuse to work without torchvision and librosa,
    which the codecs have no use for."""
    supports_gradient_checkpointing = True
    accepts_loss_kwargs: ClassVar[bool] = False
    """A batch's loss is its own mean: trainers divide by the number of batches that they add up."""

    def __init__(self, config: PlaitConfig):
        super().__init__(config)
        # beside the registry of modules: its parts are registered as this model's, so that weights keep their names
        self.__dict__["mot"] = mot = MixtureOfTransformers(config.model)
        for name, part in mot.named_children():
            self.add_module(name, part)
        self.set_record({})
        self.post_init()

    mot: MixtureOfTransformers

    # -- files --------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *arguments: Any, **kwargs: Any) -> Any:
        """Load a saved model as transformers does, but strictly: raises CheckpointError unless every weight fits."""
        wants_info = kwargs.pop("output_loading_info", False)
        place = {name: kwargs[name] for name in _WHERE_IT_IS if name in kwargs}
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *arguments, output_loading_info=True, **kwargs
        )
        model, info = loaded
        wrong = {
            kind: sorted(map(str, info.get(f"{kind}_keys", ()))) for kind in ("missing", "unexpected", "mismatched")
        }
        if any(wrong.values()):
            said = ", ".join(f"{len(names)} weights are {kind}" for kind, names in wrong.items() if names)
            first = next(names[0] for names in wrong.values() if names)
            raise CheckpointError(f"model: of {str(pretrained_model_name_or_path)!r} {said}, the first is {first!r}")
        path = cached_file(
            pretrained_model_name_or_path, SETTINGS, **place, _raise_exceptions_for_missing_entries=False
        )
        model.set_record(check_settings(Path(path)) if path else {})
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, *arguments: Any, **kwargs: Any) -> Any:
        """Write weights and config, which plait reads too, and the settings of generation."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CODE, CODE_TEXT)
        if self.record:
            write_json(folder / SETTINGS, self.record)
        return super().save_pretrained(save_directory, *arguments, **kwargs)

    def set_record(self, record: dict[str, Any]) -> None:
        """Take what `generation.json` says of a model: its kinds of modalities, and how it makes them."""
        self.record = record
        modalities = record.get("modalities", {})
        self.generate_config, self.diffusion = (
            generation_of(record) if record else (GenerateConfig(), DiffusionConfig())
        )
        own = {name: tuple(m.get("grid", ())) for name, m in modalities.items() if m.get("grid") and not m["reads"]}
        self.grids = own | {name: tuple(grid) for name, grid in self.generate_config.grids.items()}
        host = self.mot.config.layout.host
        self.kinds = {name: m.get("kind", "") for name, m in modalities.items() if not m["reads"]} or {host: "text"}
        records = self.mot.config.modalities
        self.output_modalities = tuple(
            dict.fromkeys(kind for name, kind in self.kinds.items() if records[name].objective != "input")
        )

    def _init_weights(self, module: Any) -> None:
        """Give what is not saved its value; parameters have theirs since they were built, or from a file."""
        for name, buffer in module.named_buffers(recurse=False):
            if name in module._non_persistent_buffers_set:
                buffer.zero_()

    # -- training -----------------------------------------------------------------------------------------------

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **inputs: Any
    ) -> CausalLMOutput:
        """Return the ``loss`` where ``labels`` are given, else the ``logits`` [B, T, V] of all ids.

        The loss is that of `plait train`: cross-entropy of ids and, of latents, the diffusion loss at levels drawn from
        torch's own generator, added up as the config says (`normalize`, `loss_weights`).
        """
        rows = rows_of(self.mot.config, input_ids, attention_mask, labels, inputs)
        batch = self._batch(rows, learns=labels is not None)
        if labels is None:
            return CausalLMOutput(logits=self._logits(batch, input_ids, attention_mask))
        corrupt(batch, self.diffusion, int(torch.randint(2**31, ())))
        factors = torch.tensor(self._factors(batch.counts), dtype=self.mot.dtype).to(self.device)
        batch = batch.to(self.device)
        loss, _ = weighted_loss(self.mot, self.mot(batch), batch, factors)
        return CausalLMOutput(loss=loss)

    def _batch(self, rows: Sequence[Row], *, learns: bool) -> Batch:
        config = self.mot.config
        spelt = [spell(row.document, config, close=row.is_closed, noised=learns) for row in rows]
        batch = assemble(spelt, config, pad_rows_to=32, indices=[row.document.index for row in rows])
        batch.documents = [row.document for row in rows]
        return batch

    def _logits(self, batch: Batch, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        inside = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        assert sum(batch.lengths) == int(inside.sum()), "what was read is spelt as it was"
        batch = batch.to(self.device)
        hidden = self.mot(batch)
        every = [torch.arange(len(h), device=self.device) for h in hidden]
        logits = self.mot.logits(hidden, every).index_select(0, batch.routing.to_sequence)
        out = logits.new_zeros(*input_ids.shape, logits.shape[-1])
        out[inside.bool().to(self.device)] = logits
        return out

    def _factors(self, counts: Sequence[float]) -> list[float]:
        config = self.config
        for name in config.loss_weights:
            require(name in self.mot.config.modalities, "loss_weights", name, "the name of a modality")
        records = self.mot.config.modalities
        weights = [config.loss_weights.get(name, 1.0) for name in records]
        return loss_factors(counts, list(records.values()), weights, config.normalize)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None, **kwargs: Any) -> None:
        """Compute blocks again in the backward pass, and keep their inputs alone."""
        self.mot.recompute_blocks = "full"

    def gradient_checkpointing_disable(self) -> None:
        """Keep what blocks compute."""
        self.mot.recompute_blocks = "none"

    # -- generation ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(  # type: ignore[override]  # it takes what has a meaning here
        self, inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, *,
        input_ids: Tensor | None = None, attention_mask: Tensor | None = None, generation_mode: str = "text",
        streamer: Any = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Continue each prompt with ``generation_mode``: "text", "image", "audio", or "any", which the model chooses.

        Text comes back as ids [B, T + new], behind the prompt and padded with the id that ends documents; all else as a
        list of `plait.Part`s for each prompt, which the processor decodes. Sampling is the run's own unless settings
        are given: do_sample, temperature, top_k, top_p, guidance_scale, num_inference_steps, max_new_tokens or
        max_length, num_return_sequences, seed. Raises ConfigError for any other.
        """
        prompt: Any = input_ids if inputs is None else inputs
        require(isinstance(prompt, Tensor), "generate.input_ids", prompt, "ids [rows, tokens], as the processor makes")
        given = {name: kwargs.pop(name) for name in names_of_media(self.mot.config) if name in kwargs}
        values = settings_of(self.generation_config, generation_config, kwargs)
        rows = rows_of(self.mot.config, prompt, attention_mask, None, given)
        output, config = self._output(generation_mode), self.mot.config
        requests = requests_of(
            [row.document.parts for row in rows], output, config, self.generate_config, values, prompt.shape[1]
        )
        options: dict[str, Any] = {
            "grids": self.grids, "max_rows": self.generate_config.batch_size, "max_length": config.max_positions,
            "diffusion": self.diffusion,
        }  # fmt: skip
        if streamer is None:
            results = generate(self.mot, requests, **options)
        else:
            require(len(requests) == 1, "generate.streamer", len(requests), "used with one prompt at a time")
            streamer.put(prompt.cpu())
            results = [stream(Generator(self.mot, **options), requests[0], lambda ids: streamer.put(torch.tensor(ids)))]
            streamer.end()
        if generation_mode != "text":
            return [result.parts for result in results]
        return self._sequences(prompt, results)

    def _output(self, mode: str) -> str | None:
        """Return the modality to make."""
        if mode == FREE:
            return None
        if mode not in MODES:
            raise ConfigError(
                f"generation_mode: {mode!r} is not allowed, it must be one of {', '.join([*MODES, FREE])}"
            )
        names = [
            n for n, kind in self.kinds.items() if kind == mode and self.mot.config.modalities[n].objective != "input"
        ]
        made = ", ".join(self.output_modalities)
        require(len(names) == 1, "generation_mode", mode, f"what this model makes one kind of: {made}")
        return names[0]

    def _sequences(self, prompt: Tensor, results: Sequence[Result]) -> Tensor:
        copies = len(results) // len(prompt)
        made = [self._text_ids(result.parts) for result in results]
        longest = max(map(len, made))
        out = prompt.new_full((len(results), longest), self.mot.config.layout.eos)
        for i, ids in enumerate(made):
            out[i, : len(ids)] = torch.from_numpy(ids)
        return torch.cat([prompt.repeat_interleave(copies, 0), out], 1)

    def _text_ids(self, parts: Sequence[Part]) -> np.ndarray:
        host = self.mot.config.layout.host
        ids = [np.asarray(part.ids, np.int64) for part in parts if part.modality == host]
        return np.concatenate([*ids, [self.mot.config.layout.eos]])

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModelForMultimodalLM") -> None:
        """Do nothing: what is saved names plait's own small file, and no copy of this one."""
