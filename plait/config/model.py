"""What the weights of a model are: modalities, towers and shape, as dataclasses that check themselves. No torch here.

What a run adds to each modality and tower (codecs, loss weights, rates, freezing) is in `plait.config.run_records`.
Nothing here changes once it was checked: `dataclasses.replace` makes, and checks, another one.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from plait.common.errors import ConfigError, require, unknown
from plait.config.bounds import FilledInt, bounded
from plait.config.fixed import Fixed, fixed
from plait.config.id_layout import IdLayout
from plait.config.modality import ModalityConfig

COMPONENTS = ("qkv", "o", "ffn", "norm")
SHARED_SETTINGS = {"qkv": ("qk_norm", "qkv_bias", "norm_eps"), "norm": ("norm_eps",)}
"""Settings of towers that a component depends on, so that towers which differ in them cannot share it."""


@dataclass(frozen=True)
class Llama3Rope(Fixed):
    """Rotary frequencies for longer texts, as Llama 3.1 has them: slow ones are divided by a factor, fast ones stay."""

    SECTION: ClassVar[str] = "model.rope_scaling"

    factor: float = bounded(8.0, at_least=1)
    """Frequencies that turn less than `low_frequency_factor` times in `original_positions` are divided by this."""
    low_frequency_factor: float = bounded(1.0, above=0)
    """Turns up to which a frequency is slow; from there on the division fades out."""
    high_frequency_factor: float = bounded(4.0, above=0)
    """Turns from which a frequency is fast, and stays."""
    original_positions: float = bounded(8192, above=0)
    """Longest text, in tokens, of the training before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.high_frequency_factor > self.low_frequency_factor, f"{self.SECTION}.high_frequency_factor",
                self.high_frequency_factor, f"above low_frequency_factor ({self.low_frequency_factor:g})")  # fmt: skip


@dataclass(frozen=True)
class LoraConfig(Fixed):
    """Low-rank changes to a tower's matrices, which stay as they are (LoRA, arXiv 2106.09685)."""

    SECTION: ClassVar[str] = "model.towers.lora"

    rank: int = bounded(16, at_least=1)
    """Rank of each change."""
    alpha: float = bounded(32.0, above=0)
    """Each change is multiplied by alpha / rank."""
    targets: tuple[Literal["qkv", "o", "ffn"], ...] = ("qkv", "o", "ffn")
    """Components whose matrices change; the tower must have its own copies of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.targets) > 0, f"{self.SECTION}.targets", [], "a list with at least one of qkv, o, ffn")


@dataclass(frozen=True)
class TowerConfig(Fixed):
    """One set of parameters. What is unset is the model's."""

    SECTION: ClassVar[str] = "model.towers"

    width: FilledInt = bounded(None, at_least=1)
    """Size of the hidden state in this tower."""
    ffn_width: FilledInt = bounded(None, at_least=1)
    """Hidden size of the feed-forward network; of one expert when ffn is moe."""
    ffn: Literal["swiglu", "moe"] = "swiglu"
    """Kind of feed-forward network."""
    num_experts: int = bounded(4, at_least=1)
    """Experts, when ffn is moe."""
    top_k: int = bounded(1, at_least=1)
    """Experts per token, when ffn is moe (the mean number for expert_choice)."""
    moe_routing: Literal["expert_choice", "token_choice"] = "token_choice"
    """expert_choice sees the whole batch (not causal, cannot generate); token_choice is causal and dropless."""
    qk_norm: bool | None = None
    """RMSNorm on this tower's queries and keys. Unset: the model's."""
    qkv_bias: bool | None = None
    """Biases on this tower's query, key and value projections. Unset: the model's."""
    cross_key_norm: bool = False
    """A second RMSNorm on this tower's keys, for the queries of other towers: keys of a pretrained tower that has no
    qk_norm would swamp their softmax. Attention costs as much more as there are such towers."""
    norm_eps: float | None = bounded(None, above=0)
    """Epsilon of this tower's norms. Unset: the model's."""
    rope_theta: float | None = bounded(None, above=0)
    """Base of the rotary frequencies of this tower's tokens, for towers from two language models. Unset: the model's.
    Between towers of different frequencies a score depends on the positions themselves, not on their distance alone."""
    rope_scaling: float | Llama3Rope | None = bounded(None, above=0)
    """Scaling of the rotary frequencies of this tower's tokens. Unset: the model's."""
    lora: LoraConfig | None = None
    """Train low-rank changes of this tower's matrices in place of all of its parameters, which are frozen."""


@dataclass(frozen=True)
class ModelConfig(Fixed):
    """The Mixture-of-Transformers: its modalities, towers and shape (paper, sections 2 and 3)."""

    SECTION: ClassVar[str] = "model"

    modalities: Mapping[str, ModalityConfig] = field(default_factory=dict)
    """Modalities in append-only order. The first one hosts the delimiters and is written without them."""
    towers: Mapping[str, TowerConfig] = field(default_factory=dict)
    """Towers by name. One of a modality's own name need not be listed; empty: none that the modalities use need be."""
    width: int = bounded(256, at_least=1)
    """Size of the hidden state, for towers that set none."""
    num_layers: int = bounded(4, at_least=1, at_most=10_000)
    """Transformer blocks."""
    num_heads: int = bounded(8, at_least=1)
    """Attention heads (global: every tower's queries meet in one attention)."""
    num_kv_heads: FilledInt = bounded(None, at_least=1)
    """Key and value heads; fewer than num_heads is grouped-query attention. Unset: num_heads."""
    head_dim: FilledInt = bounded(None, at_least=1)
    """Size of one head. Unset: width / num_heads."""
    ffn_width: int | None = bounded(None, at_least=1)
    """Hidden size of the feed-forward network. Unset: 8/3 of the width, rounded up to 256 (64 below width 256)."""
    norm_order: Literal["pre", "post"] = "pre"
    """pre: x + f(norm(x)). post: x + norm(f(x)), the paper's equations and Chameleon-34B."""
    norm_eps: float = bounded(1e-5, above=0)
    """Epsilon of every RMSNorm."""
    qk_norm: bool = True
    """RMSNorm on queries and keys over head_dim, one per tower (Chameleon found it essential)."""
    qkv_bias: bool = False
    """Biases on the query, key and value projections."""
    rope_theta: float = bounded(10000.0, above=0)
    """Base of the rotary frequencies."""
    rope_scaling: float | Llama3Rope = bounded(1.0, above=0)
    """Scaling for longer texts. A number divides all frequencies (linear interpolation); {factor: 8,
    low_frequency_factor: 1, high_frequency_factor: 4, original_positions: 8192} slow ones alone (Llama 3.1)."""
    unrotated_layers: tuple[int, ...] = bounded(tuple, at_least=0)
    """Layers whose queries and keys are not rotated, so that they see no positions (SmolLM3 has every fourth so)."""
    position_axes: tuple[str, ...] = ("sequence",)
    """Axes of a position: one is the usual RoPE, several (time, height, width) share one frequency ladder in turn
    (interleaved mRoPE)."""
    untied: tuple[str, ...] | Mapping[str, tuple[str, ...]] = COMPONENTS
    """Components with one copy per tower: of qkv, o, ffn, norm. A mapping from layer ranges ("0-3", "4") sets it
    per layer; layers not named there are shared."""
    tie_embeddings: bool = False
    """Use the embedding table as the output head."""
    max_positions: int = bounded(8192, at_least=1)
    """Longest document, in tokens."""
    bos: int | Literal["added", "none"] | None = bounded(None, at_least=0)
    """Id that opens a document: one of the first modality's own ids, as language models have it; `added`: an id behind
    them; `none`: documents open without. Unset: the codec's own where it has one, else `added`."""
    eos: int | Literal["added"] | None = bounded(None, at_least=0)
    """Id that ends a document: one of the first modality's own ids, or `added`. Unset: as for `bos`."""
    stops: tuple[int, ...] = bounded(tuple, at_least=0)
    """More ids of the first modality that end its text in generation, such as a chat's end of turn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.modalities) > 0, "model.modalities", {}, "a mapping with at least one modality")
        groups, head_dim = self.num_heads if self.num_kv_heads is None else self.num_kv_heads, self.head_dim
        require(1 <= groups <= self.num_heads and self.num_heads % groups == 0, "model.num_kv_heads", groups,
                f"a divisor of num_heads ({self.num_heads})")  # fmt: skip
        if head_dim is None:
            require(self.width % self.num_heads == 0, "model.width", self.width,
                     f"a multiple of num_heads ({self.num_heads}) where head_dim is unset")  # fmt: skip
            head_dim = self.width // self.num_heads
        axes = len(self.position_axes)
        require(axes >= 1, "model.position_axes", list(self.position_axes), "a list of at least one axis name")
        require(
            head_dim % 2 == 0 and head_dim // 2 >= axes, "model.head_dim", head_dim, f"even and at least {2 * axes}"
        )
        self._fill(num_kv_heads=groups, head_dim=head_dim)
        self._fill_towers()
        self._check_modalities()
        self._check_untied()
        self._check_ends()
        for layer in self.unrotated_layers:
            require(layer < self.num_layers, "model.unrotated_layers", layer, f"0 to {self.num_layers - 1}")

    def _fill_towers(self) -> None:
        own = {name: m.tower or next(iter(m.tower_at_random), name) for name, m in self.modalities.items()}
        self._fill(modalities=fixed({name: replace(m, tower=own[name]) for name, m in self.modalities.items()}))
        used = [tower for modality in self.modalities.values() for tower in modality.towers]
        implied = used if not self.towers else [name for name in own if own[name] == name]
        order = dict.fromkeys([*implied, *self.towers] if not set(implied) <= set(self.towers) else self.towers)
        for name, modality in self.modalities.items():
            for tower in modality.towers:
                if tower not in order:
                    raise ConfigError(unknown(f"model.modalities.{name}.tower", tower, order))
        self._fill(towers=fixed({name: self._filled(name, name in used) for name in order}))

    def _filled(self, name: str, is_used: bool) -> TowerConfig:
        """Return a tower with its sizes set, checked."""
        tower, where = self.towers.get(name, TowerConfig()), f"model.towers.{name}"
        require(is_used, "model.towers", name, "the tower of some modality (none uses it)")
        require(name.isidentifier() and name != "shared", "model.towers", name,
                "a name of letters, digits and underscores, other than 'shared'")  # fmt: skip
        width = self.width if tower.width is None else tower.width
        ffn_width = tower.ffn_width
        if ffn_width is None:
            ffn_width = self.ffn_width or default_ffn_width(width)
        if tower.ffn == "moe":
            require(tower.top_k <= tower.num_experts, f"{where}.top_k", tower.top_k,
                    f"between 1 and num_experts ({tower.num_experts})")  # fmt: skip
        self._check_lora(tower, where)
        return replace(tower, width=width, ffn_width=ffn_width)

    def _check_lora(self, tower: TowerConfig, where: str) -> None:
        targets = list(tower.lora.targets) if tower.lora else []
        for target in targets:
            require(target != "ffn" or tower.ffn != "moe", f"{where}.lora.targets", targets,
                    "a list without 'ffn': experts have no LoRA")  # fmt: skip
            shared = [layer for layer in range(self.num_layers) if target not in self.untied_at(layer)]
            require(not shared or len(self.towers) == 1, f"{where}.lora.targets", targets,
                    f"a list without {target!r}, which towers share in layer {next(iter(shared), 0)}")  # fmt: skip

    def _check_modalities(self) -> None:
        for i, (name, m) in enumerate(self.modalities.items()):
            where = f"model.modalities.{name}"
            require(name.isidentifier(), "model.modalities", name, "a name of letters, digits and underscores")
            require(i > 0 or m.objective == "next_token", f"{where}.objective", m.objective,
                     "next_token for the first modality, which hosts the delimiters")  # fmt: skip
            m.check(where)
            self._check_reads(name, m)

    def _check_reads(self, name: str, m: ModalityConfig) -> None:
        where = f"model.modalities.{name}"
        if m.reads:
            readable = [n for n, other in self.modalities.items() if other.objective != "input"][1:]  # not the host
            if m.reads not in readable:
                raise ConfigError(unknown(f"{where}.reads", m.reads, readable))
            first = next(n for n, other in self.modalities.items() if other.reads == m.reads)
            require(first == name, f"{where}.reads", m.reads, f"a modality that no other one reads ({first} does)")

    def _check_ends(self) -> None:
        """Check that the ids which open and end documents are the host's; one of 0 ids gets them from its codec."""
        host = next(iter(self.modalities.values()))
        for name, ids in (("bos", [self.bos]), ("eos", [self.eos]), ("stops", self.stops)):
            for i in ids:
                if isinstance(i, int) and host.vocab_size:
                    allowed = f"0 to {host.vocab_size - 1}, an id of the first modality"
                    require(i < host.vocab_size, f"model.{name}", i, allowed)

    def _check_untied(self) -> None:
        for layer in range(self.num_layers):
            for component in COMPONENTS:
                if component not in self.untied_at(layer):
                    self._check_shared(layer, component)

    def _check_shared(self, layer: int, component: str) -> None:
        widths = {t.width for t in self.towers.values()}
        where = f"model.untied (layer {layer})"
        require(len(widths) == 1, where, sorted(self.untied_at(layer)),
                 f"a list with {component!r}: towers of different width cannot share it")  # fmt: skip
        crossing = [name for name, t in self.towers.items() if t.cross_key_norm]
        require(component != "qkv" or not crossing, f"model.towers.{next(iter(crossing), '')}.cross_key_norm", True,
                "false where towers share qkv (model.untied)")  # fmt: skip
        for name in SHARED_SETTINGS.get(component, ()):
            values = {self.of_tower(tower, name) for tower in self.towers}
            require(len(values) == 1, where, sorted(self.untied_at(layer)),
                    f"a list with {component!r}: towers with different {name} cannot share it")  # fmt: skip
        kinds = {
            (t.ffn, t.ffn_width, t.num_experts, t.top_k, t.moe_routing) if t.ffn == "moe" else (t.ffn, t.ffn_width)
            for t in self.towers.values()
        }
        require(component != "ffn" or len(kinds) == 1, where, sorted(self.untied_at(layer)),
                 "a list with 'ffn': towers with different feed-forward networks cannot share it")  # fmt: skip

    def untied_at(self, layer: int) -> frozenset[str]:
        """Return the components that have one copy per tower in this layer."""
        if not isinstance(self.untied, Mapping):
            names = list(self.untied)
        else:
            ranges = {r: _layer_range(r, self.num_layers) for r in self.untied}
            names = [c for r, components in self.untied.items() if layer in ranges[r] for c in components]
        for name in names:
            if name not in COMPONENTS:
                raise ConfigError(unknown("model.untied", name, COMPONENTS))
        return frozenset(names)

    def of_tower(self, tower: str, name: str) -> Any:
        """Return a setting that a tower may have of its own, such as ``qk_norm``: the tower's, or else the model's."""
        value = getattr(self.towers[tower], name)
        return getattr(self, name) if value is None else value

    @functools.cached_property
    def layout(self) -> IdLayout:
        """The shared id space of all modalities."""
        sizes = {name: m.vocab_size for name, m in self.modalities.items()}
        bos, eos = ("added" if end is None else end for end in (self.bos, self.eos))
        return IdLayout.of(sizes, bos, eos, self.stops)

    @property
    def crossing_towers(self) -> list[int]:
        """The numbers of the towers that have other keys for other towers' queries."""
        return [i for i, tower in enumerate(self.towers.values()) if tower.cross_key_norm]

    @property
    def attended_head_dim(self) -> int:
        """Numbers of a head in attention and its cache: with `cross_key_norm`, a part for each way to be seen."""
        return self.head_dim * (1 + len(self.crossing_towers))

    @functools.cached_property
    def readers(self) -> dict[str, str]:
        """For each modality whose given parts are read as features, the modality of these (`ModalityConfig.reads`)."""
        return {m.reads: name for name, m in self.modalities.items() if m.reads}

    @property
    def same_width(self) -> bool:
        """Whether all towers have one width, so that embedding and head can be shared."""
        return len({t.width for t in self.towers.values()}) == 1


def _layer_range(text: str, num_layers: int) -> range:
    first, _, last = str(text).partition("-")
    allowed = f"a layer or a range like '0-3' within 0-{num_layers - 1}"
    require(first.isdigit() and (last or first).isdigit(), "model.untied", text, allowed)
    start, stop = int(first), int(last or first)
    require(start <= stop < num_layers, "model.untied", text, allowed)
    return range(start, stop + 1)


def default_ffn_width(width: int) -> int:
    """Return 2/3 of four times the width, rounded up to a multiple of 256 (of 64 for widths below 256)."""
    step = 256 if width >= 256 else 64
    return -(-(8 * width // 3) // step) * step
