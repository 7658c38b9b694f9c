"""What the weights of a model are: modalities, towers and shape, as dataclasses that check themselves. No torch here.

What a run adds to each modality and tower (codecs, loss weights, rates, freezing) is in `plait.config.run_records`.
Nothing here changes once it was checked: `dataclasses.replace` makes, and checks, another one.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from plait.common.errors import ConfigError, require, unknown
from plait.config.bounds import Checked, FilledInt, bounded
from plait.config.id_layout import IdLayout

COMPONENTS = ("qkv", "o", "ffn", "norm")
ROLES = ("understanding", "generation")
NOISE_STATES = ("clean", "noised")
SHARED_SETTINGS = {"qkv": ("qk_norm", "qkv_bias", "norm_eps"), "norm": ("norm_eps",)}
"""Settings of towers that a component depends on, so that towers which differ in them cannot share it."""


class FixedDict(dict[Any, Any]):
    """A mapping that cannot be changed. Copies of it by `|` and `dict` can."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a checked config does not change: make another one with dataclasses.replace")

    __setitem__ = __delitem__ = __ior__ = pop = popitem = clear = update = setdefault = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FixedDict, (dict(self),)


def fixed(value: Any) -> Any:
    """Return a value with lists as tuples and mappings as `FixedDict`, however deep."""
    if isinstance(value, Mapping):
        return FixedDict({name: fixed(v) for name, v in value.items()})
    return tuple(fixed(v) for v in value) if isinstance(value, list | tuple) else value


class Fixed(Checked):
    """A frozen dataclass whose lists and mappings do not change either; it fills its unset fields while it is built."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fill(**{f.name: fixed(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]

    def _fill(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class ModalityConfig(Fixed):
    """One kind of data that flows through the model."""

    SECTION: ClassVar[str] = "model.modalities"

    objective: Literal["next_token", "diffusion", "input"] = "next_token"
    """next_token: discrete ids, cross-entropy. diffusion: continuous latents, denoising. input: continuous features,
    such as a frozen encoder's, that are read, and neither learned nor made."""
    reads: str = ""
    """Modality for whose given parts these features (input) stand: the same image as a vision encoder sees it. Empty:
    they have parts of their own."""
    beside: bool = False
    """Whether a given part's own latents or ids stay, before the features that are read of it (BAGEL's editing)."""
    attention: Literal["causal", "bidirectional"] = "causal"
    """Attention inside one span of this modality. Bidirectional needs a continuous objective."""
    attention_by_role: Mapping[str, Literal["causal", "bidirectional"]] = field(default_factory=dict)
    """Attention inside spans of a certain role (understanding, generation), where that differs from `attention`."""
    tower: str = ""
    """Tower that carries these tokens. Empty: the tower of the modality's own name."""
    tower_by_role: Mapping[str, str] = field(default_factory=dict)
    """Towers for spans of a certain role (understanding, generation), where that differs from `tower`."""
    tower_by_noise: Mapping[str, str] = field(default_factory=dict)
    """Towers for clean and for noised spans (continuous), where that differs; it goes before `tower_by_role`."""
    tower_at_random: tuple[str, ...] = ()
    """Towers among which the tokens (discrete) are dealt out by a draw for each document and place, in equal shares,
    whatever they are: the control that says what modalities are worth as a key. Such a model cannot generate."""
    later_sees: Literal["noised", "clean_copy", "nothing"] = "noised"
    """What later tokens see of a generated span (continuous): the noised tokens themselves (Transfusion), a clean copy
    beside them (BAGEL), or nothing (Cosmos 3)."""
    vocab_size: int = bounded(0, at_least=0)
    """Number of ids reserved for the codec (discrete). Training takes the codec's own number where this is 0."""
    latent_channels: int = bounded(0, at_least=0)
    """Numbers per token (continuous). Training takes the codec's own where this is 0."""
    patch_size: int = bounded(0, at_least=0)
    """Latents folded into one token along each side (continuous). Training takes the codec's own where this is 0."""
    patch_network: Literal["linear", "unet", "mlp"] = "linear"
    """How latents enter and leave the tower: one matrix, U-Net down and up blocks on the grid of latents (diffusion),
    or two matrices with a GELU between, as in BAGEL (input)."""
    predicts: Literal["target", "clean"] = "target"
    """What the latent head predicts (continuous): the objective's target, or the clean latents, from which flow's
    velocity follows; better for tokens of many numbers, such as patches of pixels (JiT, arXiv 2511.13720)."""
    place_embedding: bool = False
    """Add sinusoids of each latent token's place in its item (row, column), as DiT and BAGEL do: the rotary positions
    of attention only tell tokens how far apart they are."""

    @property
    def towers(self) -> list[str]:
        """Every tower that may carry these tokens, `tower` first."""
        if self.tower_at_random:
            return list(self.tower_at_random)
        return list(dict.fromkeys([self.tower, *self.tower_by_role.values(), *self.tower_by_noise.values()]))

    @property
    def noised_towers(self) -> list[str]:
        """The towers that may carry noised spans (continuous), and so predict latents."""
        if self.objective == "input":
            return []
        roles = ROLES if self.later_sees == "noised" else ("generation",)
        by_role = [self.tower_by_role.get(role, self.tower) for role in roles]
        return list(dict.fromkeys(self.tower_by_noise.get("noised", tower) for tower in by_role))


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
        return replace(tower, width=width, ffn_width=ffn_width)

    def _check_modalities(self) -> None:
        for i, (name, m) in enumerate(self.modalities.items()):
            where = f"model.modalities.{name}"
            require(name.isidentifier(), "model.modalities", name, "a name of letters, digits and underscores")
            if m.objective == "next_token":
                require(m.attention == "causal", f"{where}.attention", m.attention,
                         "causal where the objective is next_token (a later id would leak)")  # fmt: skip
            require(i > 0 or m.objective == "next_token", f"{where}.objective", m.objective,
                     "next_token for the first modality, which hosts the delimiters")  # fmt: skip
            for field_name, keys in (
                ("attention_by_role", ROLES),
                ("tower_by_role", ROLES),
                ("tower_by_noise", NOISE_STATES),
            ):
                for key in getattr(m, field_name):
                    if key not in keys:
                        raise ConfigError(unknown(f"{where}.{field_name}", key, keys))
            for field_name, plain in _UNUSED[m.objective].items():
                require(getattr(m, field_name) == plain, f"{where}.{field_name}", getattr(m, field_name),
                        f"{plain!r} where the objective is {m.objective}")  # fmt: skip
            require(m.patch_network != "unet" or m.objective == "diffusion", f"{where}.patch_network", "unet",
                    "linear or mlp where the objective is input")  # fmt: skip
            require(m.patch_network != "mlp" or m.objective == "input", f"{where}.patch_network", "mlp",
                    "linear or unet where the objective is diffusion")  # fmt: skip
            self._check_reads(name, m)
            self._check_random(where, m)
            if m.patch_network == "unet" and m.patch_size and m.latent_channels:
                require(m.patch_size in (2, 4, 8), f"{where}.patch_size", m.patch_size, "2, 4 or 8 with a U-Net")
                require(m.latent_channels % m.patch_size**2 == 0, f"{where}.latent_channels", m.latent_channels,
                        f"a multiple of {m.patch_size**2} (patch_size squared) with a U-Net")  # fmt: skip

    def _check_reads(self, name: str, m: ModalityConfig) -> None:
        where = f"model.modalities.{name}"
        require(not m.beside or bool(m.reads), f"{where}.beside", m.beside, "false without reads")
        if m.reads:
            readable = [n for n, other in self.modalities.items() if other.objective != "input"][1:]  # not the host
            if m.reads not in readable:
                raise ConfigError(unknown(f"{where}.reads", m.reads, readable))
            first = next(n for n, other in self.modalities.items() if other.reads == m.reads)
            require(first == name, f"{where}.reads", m.reads, f"a modality that no other one reads ({first} does)")

    def _check_random(self, where: str, m: ModalityConfig) -> None:
        dealt = list(m.tower_at_random)
        if dealt:
            require(m.objective == "next_token", f"{where}.tower_at_random", dealt,
                    f"empty where the objective is {m.objective} (the latents of an item stay together)")  # fmt: skip
            require(len(set(dealt)) == len(dealt) >= 2, f"{where}.tower_at_random", dealt, "two towers or more")
            require(m.tower in dealt, f"{where}.tower", m.tower, "left out beside tower_at_random")
            require(not m.tower_by_role, f"{where}.tower_by_role", m.tower_by_role, "left out beside tower_at_random")

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


_UNUSED: dict[str, dict[str, Any]] = {
    "next_token": {
        "attention_by_role": {}, "tower_by_noise": {}, "later_sees": "noised", "patch_network": "linear",
        "predicts": "target", "reads": "",
    },
    "diffusion": {"reads": ""},
    "input": {
        "attention_by_role": {}, "tower_by_role": {}, "tower_by_noise": {}, "later_sees": "noised",
        "predicts": "target",
    },
}  # fmt: skip
"""Settings of a modality that its objective has no use for, with the value that they keep."""


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
