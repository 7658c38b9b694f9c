"""Images as a vision encoder sees them, to be read and never made: SigLIP, CLIP, DINOv2 and others in transformers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from plait.codecs import images
from plait.codecs.base import Encoded, alike, read_only
from plait.codecs.features import FeatureCodec, load_encoder
from plait.common.errors import CheckpointError, ConfigError, require

_BATCH = 8  # images encoded together


@dataclass
class ImageFeatureOptions:
    """Settings of `ImageFeatureCodec`."""

    path: str
    """Folder or Hub name of a vision encoder of transformers whose tokens are patches; of a model with a text tower
    beside, the vision tower is taken."""
    layer: int = -1
    """Whose features are taken: -1 is the encoder's output, -2 what the last block but one makes (LLaVA), and so on."""
    size: int = 0
    """Side of an image, in pixels; with ``aspect: any`` the side of a square of the same area. 0: the side that the
    encoder was made for."""
    aspect: Literal["square", "any"] = "square"
    """square: scaled and cut to size x size. any: keeps its aspect ratio, see `plait.codecs.images.image_sides`."""
    mean: list[float] = field(default_factory=list)
    """Mean of red, green and blue (0 to 1) that is subtracted. Empty: that of the encoder's preprocessor_config.json,
    or 0.5 where there is no such file."""
    std: list[float] = field(default_factory=list)
    """What red, green and blue are divided by then; empty as above."""

    def __post_init__(self):
        for name in ("mean", "std"):
            values = getattr(self, name)
            require(len(values) in (0, 3), f"codec_options.{name}", values, "three numbers, or left out")
        require(all(value > 0 for value in self.std), "codec_options.std", self.std, "above 0")


class ImageFeatureCodec(FeatureCodec):
    """Features of patches, row by row. Media: uint8 [H, W, 3] of any size."""

    name: ClassVar[str] = "image_features"
    kind: ClassVar[str] = "image"
    suffix: ClassVar[str] = ".png"
    options_class: ClassVar[type] = ImageFeatureOptions

    def __init__(self, options: ImageFeatureOptions):
        super().__init__(options, load_encoder(options.path, "vision_config"))
        config, where = self.encoder.config, "codec_options"
        sizes = [_side(getattr(config, name, None)) for name in ("patch_size", "image_size")]
        if not all(sizes):
            raise ConfigError(f"{where}.path: {options.path!r} is no vision encoder whose tokens are patches")
        self.patch, self._made_for = sizes
        self.size = options.size or self._made_for
        require(self.size >= self.patch and self.size % self.patch == 0, f"{where}.size", self.size,
                f"a multiple of {self.patch}, the side of a patch")  # fmt: skip
        self._multiple = self.patch if options.aspect == "any" else 0
        self.mean, self.std = _colours(options)
        if self.size != self._made_for or self._multiple:
            self._try()

    @torch.no_grad()
    def _try(self) -> None:
        """Raise a ConfigError where the encoder takes images of its own size alone."""
        height, width = self.size, self.size + self.patch * bool(self._multiple)
        try:
            self._tokens(torch.zeros(1, 3, height, width), (height // self.patch, width // self.patch))
        except (ValueError, RuntimeError):
            where = "codec_options.aspect" if self.size == self._made_for else "codec_options.size"
            value = self.options.aspect if self.size == self._made_for else self.size
            only = "square" if self.size == self._made_for else f"{self._made_for}, with aspect: square"
            require(False, where, value, f"{only}: this encoder takes no others")

    @property
    def default_grid(self) -> tuple[int, ...]:
        return (self.size // self.patch,) * 2

    def _features(self, media: Sequence[np.ndarray]) -> Iterator[tuple[list[int], tuple[int, ...], Tensor]]:
        shaped = [images.resize_image(p, self.size, multiple=self._multiple) for p in media]
        for (height, width), places in alike([p.shape[:2] for p in shaped], _BATCH):
            grid = (height // self.patch, width // self.patch)
            unit = images.to_unit(np.stack([shaped[i] for i in places]))
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
            yield places, grid, self._tokens(((unit + 1) / 2 - mean) / std, grid)

    def _tokens(self, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the features of the patches; what stands before them, such as a class token, is left out."""
        is_other = pixels_BCHW.shape[-2:] != (self._made_for, self._made_for)
        more = {"interpolate_pos_encoding": True} if is_other and _interpolates(self.encoder) else {}
        features = self._run(pixel_values=pixels_BCHW.to(self.encoder.device), **more)
        count = grid[0] * grid[1]
        if features.ndim != 3 or features.shape[1] < count:
            raise ConfigError(f"codec_options.path: {self.options.path!r} has no token for each patch of an image")
        return features[:, -count:]

    def read(self, value: Any, base: Path) -> np.ndarray:
        return images.read_image(value, base, self.size, multiple=self._multiple)

    def write(self, media: np.ndarray, path: Path) -> None:
        images.write_image(media, path)

    def to_html(self, media: np.ndarray | Encoded) -> str:
        return read_only(media) if isinstance(media, Encoded) else images.image_html(media)

    def _description(self) -> dict[str, Any]:
        return {"image_mean": self.mean, "image_std": self.std}

    def _restore(self, description: dict[str, Any]) -> None:
        for name in ("mean", "std"):
            values = description.get(f"image_{name}")
            listed = isinstance(values, list) and len(values) == 3 and all(isinstance(n, int | float) for n in values)
            if not listed:
                raise CheckpointError(f"codec: image_{name} in codec.json is {values!r}, it must be three numbers")
            setattr(self, name, values)


def _side(value: Any) -> int:
    """Return a size of a config that may be one number or two alike; 0 where it is neither."""
    sides = set(value) if isinstance(value, list | tuple) else {value}
    side = sides.pop() if len(sides) == 1 else 0
    return side if isinstance(side, int) else 0


def _colours(options: ImageFeatureOptions) -> tuple[list[float], list[float]]:
    """Return mean and deviation by which colours are normalised."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(options.path)
    except (OSError, ValueError):
        values = {}
    half = [0.5, 0.5, 0.5]
    return options.mean or values.get("image_mean") or half, options.std or values.get("image_std") or half


def _interpolates(encoder: Any) -> bool:
    """Say whether an encoder stretches its places only where it is asked to."""
    import inspect

    return "interpolate_pos_encoding" in inspect.signature(encoder.forward).parameters
