"""Image tokens of pretrained VQ models that have a decoder: VQModel (diffusers), Emu3, Janus (transformers)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from plait.codecs import images, saved
from plait.codecs.base import Codec, Encoded, ids_of
from plait.common.errors import ConfigError, DataError, require

_BATCH = 8  # images encoded or decoded together


@dataclass
class PretrainedImageOptions:
    """Settings of `PretrainedImageCodec`."""

    path: str
    """Folder or Hub name that the model's from_pretrained loads."""
    kind: Literal["diffusers", "emu3", "janus"] = "diffusers"
    """diffusers: VQModel. emu3: Emu3VQVAE. janus: JanusVQVAE."""
    size: int = 0
    """Side of an image, in pixels. 0: the side that the model was made for (256 for emu3, which takes any)."""


class PretrainedImageCodec(Codec):
    """Pretrained image tokens, row by row. Media: uint8 [H, W, 3] of any size; decoded: [size, size, 3]."""

    name: ClassVar[str] = "image_tokens_pretrained"
    kind: ClassVar[str] = "image"
    suffix: ClassVar[str] = ".png"
    options_class: ClassVar[type] = PretrainedImageOptions

    def __init__(self, options: PretrainedImageOptions):
        super().__init__(options)
        self.model = saved.load_pretrained(_model_class(options.kind), options.path)
        config = self.model.config
        self.vocab_size = {
            "diffusers": lambda: config.num_vq_embeddings,
            "emu3": lambda: config.codebook_size,
            "janus": lambda: config.num_embeddings,
        }[options.kind]()
        self._factor = 2 ** (_num_stages(options.kind, config) - 1)  # pixels per token along one side
        made_for = {
            "diffusers": lambda: config.sample_size,
            "emu3": lambda: 256,
            "janus": lambda: config.num_patches * self._factor,
        }[options.kind]()
        self.size = options.size or made_for
        require(self.size > 0 and self.size % self._factor == 0, "codec_options.size", self.size,
                f"a multiple of {self._factor}")  # fmt: skip
        require(options.kind != "janus" or self.size == made_for, "codec_options.size", self.size,
                f"{made_for}, the only size of this model")  # fmt: skip

    @property
    def default_grid(self) -> tuple[int, ...]:
        return (self.size // self._factor,) * 2

    @torch.no_grad()
    def encode(self, media: Sequence[np.ndarray]) -> list[Encoded]:
        encoded: list[Encoded] = []
        for start in range(0, len(media), _BATCH):
            sized = np.stack([images.resize_image(p, self.size) for p in media[start : start + _BATCH]])
            ids = self._ids(images.to_unit(sized)).reshape(len(sized), -1).to(torch.int32)
            encoded += [Encoded(ids=row, grid=self.default_grid) for row in ids.numpy()]
        return encoded

    @torch.no_grad()
    def decode(self, encoded: Sequence[Encoded]) -> list[np.ndarray]:
        height, width = self.default_grid
        for item in encoded:
            if len(ids_of(item)) != height * width:
                raise DataError(f"image codec: {len(ids_of(item))} ids are not an image, it has {height} x {width}")
        decoded: list[np.ndarray] = []
        for start in range(0, len(encoded), _BATCH):
            ids = torch.from_numpy(np.stack([ids_of(e) for e in encoded[start : start + _BATCH]])).long()
            decoded += list(images.from_unit(self._images(ids.view(-1, height, width))))
        return decoded

    def _ids(self, images_BCHW: Tensor) -> Tensor:
        """Return the ids of images from -1 to 1, [B, height, width] or [B * height * width]."""
        if self.options.kind == "diffusers":
            return self.model.quantize(self.model.encode(images_BCHW).latents)[2][2]
        if self.options.kind == "emu3":
            sizes = torch.tensor([[self.size, self.size]] * len(images_BCHW))
            return torch.stack(list(self.model.encode(images_BCHW, image_sizes=sizes).image_tokens))
        return self.model.encode(images_BCHW).image_tokens

    def _images(self, ids_BHW: Tensor) -> Tensor:
        """Return the images of ids, from -1 to 1."""
        if self.options.kind == "emu3":
            return self.model.decode(ids_BHW)
        if self.options.kind == "janus":
            return self.model.decode(ids_BHW.flatten(1))
        shape = (*ids_BHW.shape, self.model.quantize.vq_embed_dim)
        if self.model.config.lookup_from_codebook:
            return self.model.decode(ids_BHW.flatten(), force_not_quantize=True, shape=shape).sample
        vectors = self.model.quantize.get_codebook_entry(ids_BHW.flatten(), shape)
        return self.model.decode(vectors, force_not_quantize=True).sample

    def read(self, value: Any, base: Path) -> np.ndarray:
        return images.read_image(value, base, self.size)

    def write(self, media: np.ndarray, path: Path) -> None:
        images.write_image(media, path)

    def to_html(self, media: np.ndarray) -> str:
        return images.image_html(media)

    def quality(self, media: Sequence[np.ndarray]) -> dict[str, float]:
        """Return ``psnr``, ``psnr_thumbnail`` (averaged to as many pixels as tokens), ``codes_used`` (share)."""
        return images.round_trip(self, np.stack([images.resize_image(p, self.size) for p in media]))

    def save_pretrained(self, folder: Path) -> None:
        """Write codec.json and the model's own files beside it."""
        self.model.save_pretrained(str(folder))
        saved.write_description(self, folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "PretrainedImageCodec":
        return saved.read_copy(cls, folder)[0]


def _model_class(kind: str) -> type:
    library = "diffusers" if kind == "diffusers" else "transformers"
    with saved.installed(library):
        if kind == "diffusers":
            from diffusers import VQModel

            return VQModel
        if kind == "emu3":
            from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

            return Emu3VQVAE
        from transformers.models.janus.modeling_janus import JanusVQVAE

        return JanusVQVAE


def _num_stages(kind: str, config: Any) -> int:
    stages = config.block_out_channels if kind == "diffusers" else config.channel_multiplier
    if not len(stages):
        raise ConfigError("codec_options.path: the model has no stages, so it is no image tokenizer")
    return len(stages)
