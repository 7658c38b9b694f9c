"""Images as discrete tokens in two layers: a background of one colour, and what stands on it.

Drawings, icons and products often stand on one flat colour. A patch that shows nothing else has the id of that colour;
any other patch has an id that says what it shows on top, with its transparency, and not what shines through. So a
thing has nearly the same ids on every background, and a model that knows both apart can put them together: with ids of
whole patches half of an image's patches, those with an edge in them, are new on every background
(docs/experiments.md). An image without such a background has ids of whole patches. Compare mixed raster content
(ITU-T T.44), which keeps a page as foreground, mask and background.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.codecs.backgrounds import Backgrounds
from plait.codecs.image_tokens import ImageAutoencoder, ImageTokenCodec, ImageTokenOptions, new_decoder
from plait.common.errors import require


@dataclass
class ImageLayerOptions(ImageTokenOptions):
    """Settings of `ImageLayerCodec`."""

    backgrounds: int = 32
    """Number of background colours: the most frequent ones along the borders of the images it is fitted to."""

    def __post_init__(self):
        super().__post_init__()
        require(1 <= self.backgrounds <= 4096, "codec_options.backgrounds", self.backgrounds, "1 to 4096")


class ImageLayerCodec(ImageTokenCodec):
    """Trained image tokens in two layers. Media: uint8 [H, W, 3] of any size; decoded: uint8 [size, size, 3].

    Ids from the quantiser's size on are backgrounds. When ids disagree, the background that most patches have is shown.
    """

    name: ClassVar[str] = "image_layers"
    options_class: ClassVar[type] = ImageLayerOptions

    def __init__(self, options: ImageLayerOptions):
        super().__init__(options)
        self.vocab_size += options.backgrounds

    def _new_model(self, sized: np.ndarray | None = None) -> "LayeredAutoencoder":
        model = LayeredAutoencoder(self.options)
        if sized is not None:
            model.backgrounds.fit(list(sized))
        return model


class LayeredAutoencoder(ImageAutoencoder):
    """Patch encoder, quantiser, and a decoder of colours and opacity. Images are [B, 3, H, W] from -1 to 1."""

    def __init__(self, options: ImageLayerOptions):
        super().__init__(options)
        self.downsample = options.downsample
        self.encoder = PatchEncoder(4, options.downsample, options.channels)
        self.decoder = new_decoder(options, 4)
        self.empty = nn.Parameter(torch.zeros(options.channels))
        """What the decoder is given for a patch of nothing but background."""
        self.backgrounds = Backgrounds(options.backgrounds)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vectors, ids, loss, background = self._encode(images_BCHW)
        return self._show(vectors, ids, background), ids, loss

    @torch.no_grad()
    def ids(self, images_BCHW: Tensor) -> Tensor:
        self.eval()
        return self._encode(images_BCHW.to(self.empty.device))[1].flatten(1).cpu()

    @torch.no_grad()
    def decode(self, ids_BHW: Tensor) -> Tensor:
        self.eval()
        ids = ids_BHW.to(self.empty.device)
        backgrounds = (ids - self.quantizer.vocab_size).clamp_min(-1) + 1  # 0: what stands on one
        votes = F.one_hot(backgrounds, len(self.backgrounds.colours) + 1).sum((1, 2))[:, 1:]
        background = votes.argmax(1).where(votes.any(1), -1)
        vectors = self.quantizer.lookup(ids.clamp_max(self.quantizer.vocab_size - 1))
        return self._show(vectors, ids, background).cpu()

    def _encode(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return vectors [B, h, w, C], ids [B, h, w], the quantiser's loss, and backgrounds [B], -1 for none."""
        background = self.backgrounds.of(images_BCHW)
        bare = self.backgrounds.bare(images_BCHW, background).to(images_BCHW.dtype)
        z = self.encoder(torch.cat([images_BCHW * (1 - bare), bare], 1))
        vectors, ids, loss = self.quantizer(z.flatten(1, 2))
        empty = (-F.max_pool2d(-bare, self.downsample)).squeeze(1) > 0
        ids = torch.where(empty, self.quantizer.vocab_size + background[:, None, None], ids.view(z.shape[:3]))
        return vectors.view(z.shape), ids, loss, background

    def _show(self, vectors_BHWC: Tensor, ids_BHW: Tensor, background_B: Tensor) -> Tensor:
        """Decode what stands on the background, and lay it on that."""
        empty = ids_BHW >= self.quantizer.vocab_size
        vectors = torch.where(empty[..., None], self.empty, vectors_BHWC).permute(0, 3, 1, 2)
        colours, opacity = self.decoder(vectors).split([3, 1], 1)
        bare = empty[:, None].repeat_interleave(self.downsample, 2).repeat_interleave(self.downsample, 3)
        opacity = torch.sigmoid(opacity).masked_fill(bare, 0).masked_fill((background_B < 0)[:, None, None, None], 1)
        return opacity * colours + (1 - opacity) * self.backgrounds.planes(background_B)


class PatchEncoder(nn.Module):
    """A vector for each patch of p x p pixels, from its own pixels alone: [B, planes, h p, w p] to [B, h, w, C]."""

    def __init__(self, planes: int, patch_size: int, channels: int):
        super().__init__()
        self.fold = nn.PixelUnshuffle(patch_size)
        self.inner = nn.Linear(planes * patch_size**2, channels)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(channels), nn.Linear(channels, 2 * channels), nn.SiLU(), nn.Linear(2 * channels, channels)
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x = self.inner(self.fold(images_BCHW).permute(0, 2, 3, 1))
        for layer in self.layers:
            x = x + layer(x)
        return self.norm(x)
