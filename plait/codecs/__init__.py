"""Raw media to ids or latents and back. One codec a file; this registry is the only list of them."""

import importlib
from pathlib import Path

from plait.codecs.base import Codec, Encoded, Media
from plait.codecs.saved import description_of
from plait.common.errors import ConfigError, unknown

__all__ = ["CODECS", "Codec", "Encoded", "Media", "codec_class", "fixed_grids", "load_codec"]

# name in a config -> module and class; imported when used, so that training needs none of their libraries
CODECS = {
    "text_bpe": "plait.codecs.text:BytePairCodec",
    "text_pretrained": "plait.codecs.text:PretrainedTokenizerCodec",
    "image_tokens": "plait.codecs.image_tokens:ImageTokenCodec",
    "image_layers": "plait.codecs.image_layers:ImageLayerCodec",
    "image_latents": "plait.codecs.image_latents:ImageLatentCodec",
    "image_components": "plait.codecs.image_components:ImageComponentCodec",
    "image_pixels": "plait.codecs.image_pixels:ImagePixelCodec",
    "image_tokens_pretrained": "plait.codecs.image_pretrained:PretrainedImageCodec",
    "speech_tokens": "plait.codecs.speech_tokens:SpeechTokenCodec",
    "speech_latents": "plait.codecs.speech_latents:SpeechLatentCodec",
    "speech_tokens_pretrained": "plait.codecs.speech_pretrained:PretrainedSpeechCodec",
}


def codec_class(name: str) -> type[Codec]:
    """Return the codec class of a registered name."""
    if name not in CODECS:
        raise ConfigError(unknown("codec", name, CODECS))
    module, _, cls = CODECS[name].partition(":")
    return getattr(importlib.import_module(module), cls)


def fixed_grids(codecs: dict[str, Codec]) -> dict[str, tuple[int, ...]]:
    """Return the extent of one generated item, for the modalities where it is fixed."""
    return {name: tuple(codec.default_grid) for name, codec in codecs.items() if codec.default_grid}


def load_codec(folder: str | Path) -> Codec:
    """Load the codec that `Codec.save_pretrained` wrote into ``folder``."""
    folder = Path(folder)
    return codec_class(description_of(folder)["codec"]).from_pretrained(folder)
