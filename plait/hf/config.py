"""A model's config as transformers knows configs: plait's own settings, unchanged, under one attribute."""

import json
from typing import Any, ClassVar, Literal, Self

from transformers import PreTrainedConfig
from transformers import __version__ as transformers_version

from plait.config.file import from_dict, to_dict
from plait.config.model import ModelConfig
from plait.model.pretrained import MODEL_TYPE, config_head, model_settings


class PlaitConfig(PreTrainedConfig):
    """What `config.json` of a saved model says, and how its losses are added up in `PlaitForMultimodalLM`.

    ``settings`` are those of `plait.ModelConfig` as plain values. ``normalize`` is as `train.normalize`: one mean over
    the ids of all modalities, or one for each; a diffusion loss is always a mean over items. ``loss_weights`` are the
    factors of the modalities' losses, as `model.modalities.NAME.loss_weight`; 1 where none is given.
    """

    model_type: ClassVar[str] = MODEL_TYPE

    def __init__(
        self, settings: dict[str, Any] | None = None, normalize: Literal["all_tokens", "per_modality"] = "all_tokens",
        loss_weights: dict[str, float] | None = None, **kwargs: Any,
    ):  # fmt: skip
        self.settings = dict(settings or {})
        self.normalize, self.loss_weights = normalize, dict(loss_weights or {})
        # a shared table is one module here (`tie_embeddings` of the settings): nothing is to be tied
        super().__init__(**({"tie_word_embeddings": False} | kwargs))

    @classmethod
    def of(cls, model: ModelConfig, **more: Any) -> Self:
        """Return the config of a model's config."""
        return cls(settings=to_dict(model), **more)

    @property
    def model(self) -> ModelConfig:
        """The settings as `plait.ModelConfig` (raises ConfigError)."""
        return from_dict(ModelConfig, self.settings, "model")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read what `config.json` holds."""
        others = {name: value for name, value in config_dict.items() if name != "model"}
        return super().from_dict(others | {"settings": model_settings(config_dict, "model")}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds, which plait reads too."""
        dtype = None if self.dtype is None else str(self.dtype).removeprefix("torch.")
        more = {"transformers_version": transformers_version, "normalize": self.normalize,
                "loss_weights": dict(self.loss_weights), "dtype": dtype}  # fmt: skip
        return config_head(with_code=True) | more | {"model": dict(self.settings)}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the same: nothing of it is a default that may be left out."""
        return self.to_dict()

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return the text of `config.json`, unsorted: the order of modalities and towers is that of their ids."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: what is saved names plait's own small file, and no copy of this one."""
