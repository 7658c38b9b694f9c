"""The Mixture-of-Transformers: embed, sort by tower once, run the blocks, read the heads (arXiv 2411.04996).

Shapes: T tokens in sequence order, N_k rows of tower k (padded), R = sum of N_k, D_k its width, V ids.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from plait.batch.batch import Batch, Latents, Place
from plait.batch.spans import refuse_generation
from plait.common import hub
from plait.config.bounds import as_number
from plait.config.modality import ModalityConfig
from plait.config.model import ModelConfig
from plait.model.attention import plan_for
from plait.model.block import Block, Step, heads_kernel, is_token
from plait.model.cache import CacheStep, KVCache
from plait.model.latent_patches import LatentIn, LatentOut
from plait.model.layers import SMALL, Embedding, Linear, RMSNorm, widened
from plait.model.lora import Adapters, merge, without_lora
from plait.model.moe import MixtureOfExperts
from plait.model.ranks import Ranks
from plait.model.recompute import Recompute
from plait.model.rope import frequencies, rotation
from plait.model.routing import ByName, PerTower, Stack, merged
from plait.model.traits import WeightRecord


class MixtureOfTransformers(nn.Module):
    """Towers of parameters joined by one global attention; with one tower, the dense transformer.

    Parameter names follow one grammar, ``blocks.{layer}.{component}.{tower | shared}[.{projection}].weight``, where
    the component is qkv, o, ffn, attention_norm or ffn_norm; then ``embed``, ``head``, ``final_norm`` (each with
    ``.{tower | shared}.weight``) and ``latent_in``, ``latent_out`` (``.{modality}.{tower}...``).
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0):
        super().__init__()
        self.config = config
        towers, size, untied = config.towers, config.layout.size, not config.same_width
        self.embed = PerTower(lambda t: Embedding(size, towers[t].width), towers, untied=untied)
        self.blocks: Stack[Block] = Stack(Block(config, i) for i in range(config.num_layers))
        norm_untied = untied or "norm" in config.untied_at(config.num_layers - 1)
        self.final_norm = PerTower(
            lambda t: RMSNorm(towers[t].width, config.of_tower(t, "norm_eps")), towers, untied=norm_untied
        )
        if not config.tie_embeddings:
            self.head = PerTower(
                lambda t: Linear(towers[t].width, size, bias=False, std=SMALL, cut="outputs"), towers, untied=untied
            )
        self.latent_in: ByName[PerTower[LatentIn]] = ByName()
        self.latent_out: ByName[PerTower[LatentOut]] = ByName()
        for name, modality in config.modalities.items():
            if modality.objective != "next_token":
                self.latent_in[name] = self._latent_in(modality)
            if modality.objective == "diffusion":
                self.latent_out[name] = self._latent_out(modality)
        self.is_compiled = False
        self.recompute_blocks: Recompute = "none"
        self.adapters = Adapters()
        """What requests may ask for besides; `plait.model.adapters` sets it."""
        self.ranks = Ranks()
        """Who computes a batch together; plait.train.parallel sets it."""
        self.use_kernels = True
        """Whether a GPU runs kernels of plait's own where plain torch would do the same."""
        self.parts = {part.name: part for part in self._parts()}
        """What each parameter and saved buffer is, by its name."""
        self.init_weights(as_number(seed, int, "seed"))

    def _latent_in(self, modality: ModalityConfig) -> PerTower[LatentIn]:
        """Return what leads a modality's latents into its towers."""
        towers, places, is_noised = self.config.towers, modality.place_embedding, modality.objective == "diffusion"
        channels, network, patch = modality.latent_channels, modality.patch_network, modality.patch_size or 1

        def latent_in(tower: str) -> LatentIn:
            width = towers[tower].width
            return LatentIn(channels, width, patch_size=patch, network=network, places=places, is_noised=is_noised)

        return PerTower(latent_in, modality.towers, untied=True)

    def _latent_out(self, modality: ModalityConfig) -> PerTower[LatentOut]:
        """Return what leads a modality's latents out of the towers that carry noised ones."""
        towers, channels = self.config.towers, modality.latent_channels
        network, patch = modality.patch_network, modality.patch_size or 1

        def latent_out(tower: str) -> LatentOut:
            return LatentOut(channels, towers[tower].width, patch_size=patch, network=network)

        return PerTower(latent_out, modality.noised_towers, untied=True)

    def _parts(self) -> Iterator[WeightRecord]:
        for component in ("embed", "final_norm", *(() if self.config.tie_embeddings else ("head",))):
            yield from getattr(self, component).parts(component, component)
        for i, block in enumerate(self.blocks):
            for component, modules in block.named_children():
                assert isinstance(modules, PerTower)
                yield from modules.parts(f"blocks.{i}.{component}", component, layer=i)
        for component in ("latent_in", "latent_out"):
            for name, modules in getattr(self, component).items():
                yield from modules.parts(f"{component}.{name}", component, modality=name)

    def weights(self) -> Iterator[tuple[WeightRecord, nn.Parameter]]:
        """Yield each parameter with what it is."""
        for name, parameter in self.named_parameters():
            yield self.parts[name], parameter

    def merge_lora(self) -> None:
        """Add what LoRA learned to the matrices that it changes: the same model to rounding, without LoRA."""
        merge(self.blocks)
        self.config = without_lora(self.config)
        self.parts = {part.name: part for part in self._parts()}

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw every parameter from a generator keyed by its own name, so that none depends on the others.

        The modules say how: matrices and convolutions have standard deviation 1/sqrt(fan in), those that write to the
        residual stream 1/sqrt(2 L) of that; embedding, head and the last step of latent output are small.
        """
        for part, parameter in self.weights():
            if not parameter.is_meta:
                part.trait.fill(parameter, f"{seed}/{part.name}")

    def forward(self, batch: Batch, cache: CacheStep | None = None) -> list[Tensor]:
        """Return the final hidden states, one [N_k, D_k] per tower; of several ranks each returns its own rows.

        With ``cache``, the batch's documents go on where their rows of the cache are, and are added to it.
        """
        config = self.config
        device, dtype = batch.ids.device, self.dtype
        cos, sin = rotation(batch.positions, self._ladder(batch), dtype)
        short = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype
        plan = None if cache else plan_for(batch, device, short)
        kernel = heads_kernel(device, config) if self.use_kernels else None
        mask = is_token(batch.routing, device, self.ranks)
        owners = None
        if config.crossing_towers:
            owners = self._by_token(batch, torch.arange(len(config.towers), device=device)[:, None, None])
        step = Step(batch.routing, cos, sin, mask, plan, cache, self.ranks, self.recompute_blocks, owners, kernel)
        self.adapters.choose(batch.routing, cache.asked if cache else None)
        streams = self._embed(batch)
        # the steps of generation are short, and the cache is no work for the compiler
        with torch.compiler.set_stance("force_eager") if cache and self.is_compiled else contextlib.nullcontext():
            for block in self.blocks:
                streams = block(streams, step)
        if cache is not None:
            cache.commit()
        out: list[Tensor] = self.final_norm(streams)
        return out

    def _ladder(self, batch: Batch) -> Tensor:
        """Return the rotary frequencies [head_dim / 2], or [T, head_dim / 2] where towers differ in them."""
        config, device = self.config, batch.ids.device
        pairs = [(config.of_tower(t, "rope_theta"), config.of_tower(t, "rope_scaling")) for t in config.towers]
        ladders = {pair: frequencies(config.head_dim, *pair, device) for pair in dict.fromkeys(pairs)}
        if len(ladders) == 1:
            return ladders[pairs[0]]
        return self._by_token(batch, torch.stack([ladders[pair] for pair in pairs]))

    def _by_token(self, batch: Batch, values: Tensor) -> Tensor:
        """Return for each token [T, ...] the value of its tower, of values [K, ...]; no device is asked for sizes."""
        routing = batch.routing
        rows = [
            value[None].expand(size, *value.shape) for value, size in zip(values, routing.padded_sizes, strict=True)
        ]
        return torch.cat(rows).index_select(0, routing.to_sequence)

    def compile_blocks(self, **options: Any) -> None:
        """Compile each block; ``options`` are torch.compile's. Only numbers of tokens and segments are dynamic."""
        self.is_compiled = True
        for block in self.blocks:
            block.compile_layers(**options)

    def _embed(self, batch: Batch) -> list[Tensor]:
        sizes = batch.routing.padded_sizes
        ids = batch.ids.index_select(0, batch.routing.to_towers)
        if self.ranks.share_batch:
            tables = [m.weight for m in self.embed.values()] * (len(sizes) if self.embed.is_shared else 1)
            streams = self.ranks.embed(list(ids.split(sizes)), tables)
        else:
            streams = self.embed([ids] if self.embed.is_shared else list(ids.split(sizes)))
        if len(streams) < len(sizes):  # copies: a compiler takes views for something else than the streams to come
            whole = streams[0]
            streams = list(torch.split_with_sizes_copy(whole, sizes))  # type: ignore  # its stub returns nothing
        streams = [x.to(self.dtype) for x in streams]
        towers = list(self.config.towers)
        for name, latent_in in self.latent_in.items():
            group = batch.latents.get(name)
            for tower, module in latent_in.items():
                k = towers.index(tower)
                if group is not None and tower in group.places:
                    place = group.places[tower]
                    x = module(*self._latents_of(group, place)).to(streams[k].dtype)
                    if self.ranks.share_batch:  # the ids of latents gave zeros
                        whole = x.new_zeros(sizes[k], x.shape[1]).index_copy(0, place.rows, x)
                        streams[k] = streams[k] + self.ranks.scatter_all(whole)
                    else:
                        streams[k] = streams[k].index_copy(0, place.rows, x)
                elif torch.is_grad_enabled():  # no such token here: the parameters take part, with zero gradients
                    empty = streams[k].new_zeros(0, self.config.modalities[name].latent_channels)
                    streams[k] = streams[k] + module(empty, None, []).sum()
        return streams

    def head_weights(self) -> PerTower[Embedding] | PerTower[Linear]:
        """Return the modules whose ``weight`` [V, D_k] scores the ids: the head, or the embedding where tied."""
        return self.embed if self.config.tie_embeddings else self.head

    def logits(self, hidden: list[Tensor], rows: list[Tensor]) -> Tensor:
        """Return logits [n, V] of the chosen rows of each tower, tower after tower."""
        heads = self.head_weights()
        chosen = [h.index_select(0, r) for h, r in zip(hidden, rows, strict=True)]
        chosen = merged(chosen) if heads.is_shared else chosen
        weights = [module.weight for module in heads.values()]
        return torch.cat([nn.functional.linear(x, widened(w, x)) for x, w in zip(chosen, weights, strict=True)])

    def predict_latents(self, hidden: list[Tensor], batch: Batch, modality: str) -> Tensor:
        """Return what the latent head says for each token [n, C] of a continuous modality, in sequence order.

        Zero where a tower has no head, as it never carries noised ones.
        """
        towers, group = list(self.config.towers), batch.latents[modality]
        out = hidden[0].new_zeros(group.values.shape)
        for tower, place in group.places.items():
            if tower not in self.latent_out[modality]:  # it carries clean latents only
                continue
            tower_rows = self.ranks.gather_all(hidden[towers.index(tower)]).index_select(0, place.rows)
            y = self.latent_out[modality][tower](tower_rows, *self._latents_of(group, place))
            out = out.index_copy(0, place.tokens, y.to(out.dtype))
        return out

    def _latents_of(self, group: Latents, place: Place) -> tuple[Tensor, Tensor | None, list[tuple[int, ...]]]:
        """Return a tower's latents, their noise levels and their extents."""
        # noise levels keep their precision: bfloat16 would round the last ones to 1
        times = None if group.timesteps is None else group.timesteps.index_select(0, place.tokens)
        return group.values.index_select(0, place.tokens).to(self.dtype), times, place.grids

    def new_cache(self, num_rows: int, max_length: int, dtype: torch.dtype | None = None) -> KVCache:
        """Return an empty KV cache for ``num_rows`` sequences of up to ``max_length`` tokens."""
        for name, tower in self.config.towers.items():
            if tower.ffn == "moe" and tower.moe_routing == "expert_choice":
                raise ValueError(
                    f"tower {name!r} routes by expert_choice, which sees future tokens: it cannot generate"
                )
        refuse_generation(self.config)
        c = self.config
        return KVCache(c.num_layers, num_rows, max_length, c.num_kv_heads, c.attended_head_dim, device=self.device,
                       dtype=dtype or self.dtype)  # fmt: skip

    def update_balance(
        self, rates: Mapping[str, float], skipped: Tensor | None = None, frozen: Collection[str] = ()
    ) -> None:
        """Move the biases of token-choice experts against their load, by each tower's rate; shared ones by the first's.

        Call it after each optimizer step. ``skipped`` [] is 1 where the step was skipped; the biases that ``frozen``
        towers own stay.
        """
        for block in self.blocks:
            for tower, module in block.ffn.owned():
                if isinstance(module, MixtureOfExperts) and module.routing == "token_choice":
                    rate = rates[tower or next(iter(self.config.towers))]
                    module.update_balance(0.0 if tower in frozen else rate, skipped)

    @classmethod
    def from_pretrained(
        cls, place: str | Path, *, revision: str = "", device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:  # fmt: skip
        """Load a saved model: a folder, or ``owner/name`` on the Hugging Face Hub, of which weights are fetched.

        Every weight must be there and fit. ``dtype`` torch.bfloat16 keeps matrices and embeddings in half the memory,
        to generate with under autocast. Raises CheckpointError, and ResourceError without the network.
        """
        from plait.model.pretrained import load_pretrained

        return cast(Self, load_pretrained(place, revision=revision, device=device, dtype=dtype, model_class=cls))

    def save_pretrained(self, folder: str | Path, *, max_shard_size: int | str = "5GB") -> None:
        """Write ``config.json`` and the weights (safetensors) into ``folder``, in place of an earlier model's there.

        They become several files with an index, as Hugging Face's libraries read it, where one would be larger than
        ``max_shard_size``, a number of bytes or a text such as "500MB".
        """
        from plait.model.pretrained import save_pretrained

        save_pretrained(self, folder, max_shard_size=max_shard_size)

    def push_to_hub(
        self, name: str, *, private: bool = False, revision: str = "", message: str = "",
        max_shard_size: int | str = "5GB",
    ) -> str:  # fmt: skip
        """Publish config and weights as ``owner/name`` on the Hugging Face Hub, and return the commit's address.

        ``plait export --push`` publishes a run with its codecs and a card. Raises ConfigError and ResourceError.
        """

        def write(folder: Path) -> None:
            self.save_pretrained(folder, max_shard_size=max_shard_size)

        return hub.pushed(name, write, private=private, revision=revision, message=message)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the stream: that of the norms, and under autocast float32 at least."""
        own = next(self.final_norm.parameters()).dtype
        kind = self.device.type
        is_cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        return torch.promote_types(own, torch.float32) if is_cast else own

    def num_parameters(self) -> int:
        """Return the number of parameters in all."""
        return sum(p.numel() for p in self.parameters())

    def owned_parameters(self) -> dict[str | None, int]:
        """Return the number of each tower's own parameters, and by None of those that all share."""
        owned: dict[str | None, int] = dict.fromkeys([None, *self.config.towers], 0)
        for part, parameter in self.weights():
            owned[part.tower] += parameter.numel()
        return owned

    def passed_parameters(self) -> dict[str, int]:
        """Return the number of parameters that one token of each tower passes through."""
        owned = self.owned_parameters()
        return {tower: owned[tower] + owned[None] for tower in self.config.towers}
