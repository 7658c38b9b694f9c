"""What a run says of each modality and tower beyond what the weights are: codecs, weights of losses, rates, freezing.

In YAML these settings stand in the modality's and the tower's own record, in the `model` section, beside those of
`plait.config.model`; `plait.config.file` sorts them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from plait.common.errors import ConfigError, unknown
from plait.config.bounds import Checked, bounded
from plait.config.model import ModelConfig


@dataclass
class ModalitySettings(Checked):
    """What a run says of one modality."""

    SECTION: ClassVar[str] = "model.modalities"

    codec: str = ""
    """Name of the codec (see plait/codecs), which turns raw media into ids or latents and back."""
    codec_options: dict[str, Any] = field(default_factory=dict)
    """Settings of that codec; checked by the codec itself."""
    loss_weight: float = bounded(1.0, at_least=0)
    """Factor of this modality's loss in the total."""
    final_loss_weight: float | None = bounded(None, at_least=0)
    """Factor at the end of the run, reached linearly from `loss_weight`. Null: constant."""
    key: str = ""
    """Key of its parts in a manifest, such as front and rear of two cameras; empty: the codec's kind (text, image,
    audio)."""

    def weight_at(self, progress: float) -> float:
        """Return the factor when this share of the run is done (0 to 1)."""
        final = self.loss_weight if self.final_loss_weight is None else self.final_loss_weight
        return self.loss_weight + (final - self.loss_weight) * progress

    @property
    def learns(self) -> bool:
        """Whether this modality's loss counts at any time."""
        return self.loss_weight > 0 or bool(self.final_loss_weight)


@dataclass
class TowerSettings(Checked):
    """How a run trains one tower."""

    SECTION: ClassVar[str] = "model.towers"

    frozen: bool | None = None
    """Keep this tower's own parameters fixed, and the biases of its experts. In embedding and head, the rows of ids
    that only frozen towers carry are fixed, in a shared table too; those of other ids train. Unset: true where another
    tower has `lora`, else false. A tower that has it is fixed but for that."""
    init_from: str = ""
    """A saved model or checkpoint to start this tower from: its only tower, or the one of this name; or hf: and a dense
    language model (folder, GGUF file or name on the Hub). All weights that the tower computes with are read, shared
    ones, embedding and head included; ids and latents by modality, new ids from the mean of the others. What does not
    fit is refused; what is left out or trains from scratch is printed."""
    narrow: bool = False
    """Let `init_from` be a wider tower, of which the channels and hidden units with the largest weights are kept."""
    zero_output: bool = False
    """Begin with output projections (of attention and feed-forward) of zero, after `init_from`: at first this tower's
    tokens pass through its blocks unchanged."""
    learning_rate_scale: float = bounded(1.0, at_least=0)
    """Factor of the learning rate for this tower's own parameters."""
    moe_balance_rate: float = bounded(1e-3, at_least=0)
    """Update rate of the expert bias that balances token_choice (arXiv 2408.15664)."""


RECORDS: dict[str, type] = {"modalities": ModalitySettings, "towers": TowerSettings}
"""Sections of `model` in the YAML file whose records hold these settings too; `RunConfig` has fields of these names."""


def records_of(section: str, given: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return a record for each name, those that are not given with their defaults; raises ConfigError."""
    for name in given:
        if name not in names:
            raise ConfigError(unknown(f"model.{section}", name, names))
    return {name: given.get(name, RECORDS[section]()) for name in names}


def fixed_towers(model: ModelConfig, towers: Mapping[str, TowerSettings]) -> list[str]:
    """Return the towers whose own parameters stay as they are, but for their LoRA."""
    return [name for name, tower in towers.items() if tower.frozen or model.towers[name].lora]
