"""One kind of data that flows through a model: how it is learned, attended, routed and led into its towers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from plait.common.errors import ConfigError, require, unknown
from plait.config.bounds import bounded
from plait.config.fixed import Fixed

ROLES = ("understanding", "generation")
NOISE_STATES = ("clean", "noised")

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


@dataclass(frozen=True)
class ModalityConfig(Fixed):
    """One kind of data that flows through the model."""

    SECTION: ClassVar[str] = "model.modalities"

    objective: Literal["next_token", "diffusion", "input"] = "next_token"
    """next_token: discrete ids, cross-entropy. diffusion: continuous latents, denoising. input: continuous features,
    such as a frozen encoder's, that are read, and neither learned nor made."""
    reads: str = ""
    """Modality for whose given parts these features (input) stand: the same image as a vision encoder sees it. Empty:
    they have their own parts."""
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
    patch_network: Literal["linear", "unet", "conv", "mlp"] = "linear"
    """How latents enter and leave the tower: one matrix; U-Net down and up blocks on the grid of latents (diffusion);
    convolutions that halve log2(patch_size) times, and a matrix out (arXiv 2106.14881); or two matrices with a GELU
    between, as in BAGEL (input)."""
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

    def check(self, where: str) -> None:
        """Raise a ConfigError, which begins with ``where``, for settings that exclude each other."""
        if self.objective == "next_token":
            require(self.attention == "causal", f"{where}.attention", self.attention,
                    "causal where the objective is next_token (a later id would leak)")  # fmt: skip
        for field_name, keys in (
            ("attention_by_role", ROLES),
            ("tower_by_role", ROLES),
            ("tower_by_noise", NOISE_STATES),
        ):
            for key in getattr(self, field_name):
                if key not in keys:
                    raise ConfigError(unknown(f"{where}.{field_name}", key, keys))
        for field_name, plain in _UNUSED[self.objective].items():
            require(getattr(self, field_name) == plain, f"{where}.{field_name}", getattr(self, field_name),
                    f"{plain!r} where the objective is {self.objective}")  # fmt: skip
        require(not self.beside or bool(self.reads), f"{where}.beside", self.beside, "false without reads")
        self._check_network(where)
        self._check_random(where)

    def _check_network(self, where: str) -> None:
        network, patch = self.patch_network, self.patch_size
        require(network != "unet" or self.objective == "diffusion", f"{where}.patch_network", network,
                "linear, conv or mlp where the objective is input")  # fmt: skip
        require(network != "mlp" or self.objective == "input", f"{where}.patch_network", network,
                "linear, unet or conv where the objective is diffusion")  # fmt: skip
        if network in ("unet", "conv") and patch and self.latent_channels:
            is_unet = network == "unet"
            with_it, sizes = ("with a U-Net", (2, 4, 8)) if is_unet else ("with convolutions", (1, 2, 4, 8, 16))
            allowed = f"{', '.join(map(str, sizes[:-1]))} or {sizes[-1]} {with_it}"
            require(patch in sizes, f"{where}.patch_size", patch, allowed)
            require(self.latent_channels % patch**2 == 0, f"{where}.latent_channels", self.latent_channels,
                    f"a multiple of {patch**2} (patch_size squared) {with_it}")  # fmt: skip

    def _check_random(self, where: str) -> None:
        dealt = list(self.tower_at_random)
        if dealt:
            allowed = f"empty where the objective is {self.objective} (the latents of an item stay together)"
            require(self.objective == "next_token", f"{where}.tower_at_random", dealt, allowed)
            require(len(set(dealt)) == len(dealt) >= 2, f"{where}.tower_at_random", dealt, "two towers or more")
            require(self.tower in dealt, f"{where}.tower", self.tower, "left out beside tower_at_random")
            by_role = self.tower_by_role
            require(not by_role, f"{where}.tower_by_role", by_role, "left out beside tower_at_random")
