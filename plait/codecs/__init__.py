"""Raw media to ids or latents and back. One codec a file; this registry is the only list of plait's own.

A class of your own is named ``package.module:Class`` in a config. As that runs its code, also where a config or
prepared data came from somebody else, the environment variable PLAIT_CODECS must name its module (several: by commas).
"""

import importlib
import os
from pathlib import Path

from plait.codecs.base import Codec, Encoded, Media
from plait.codecs.saved import description_of
from plait.common.errors import ConfigError, require, unknown

__all__ = ["CODECS", "Codec", "Encoded", "Media", "codec_class", "fixed_grids", "load_codec"]

ALLOWED = "PLAIT_CODECS"

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
    "image_features": "plait.codecs.image_features:ImageFeatureCodec",
    "speech_tokens": "plait.codecs.speech_tokens:SpeechTokenCodec",
    "speech_latents": "plait.codecs.speech_latents:SpeechLatentCodec",
    "speech_tokens_pretrained": "plait.codecs.speech_pretrained:PretrainedSpeechCodec",
    "speech_features": "plait.codecs.speech_features:SpeechFeatureCodec",
    "voxels": "plait.codecs.voxels:VoxelCodec",
    "motion": "plait.codecs.motions:MotionCodec",
    "traffic": "plait.codecs.traffic:TrafficCodec",
    "actions": "plait.codecs.actions:ActionsCodec",
    "action_ids": "plait.codecs.action_ids:ActionIdsCodec",
}


def codec_class(name: str) -> type[Codec]:
    """Return the codec class of a registered name, or of package.module:Class where that is allowed."""
    if ":" in name:
        return _class_outside(name)
    if name not in CODECS:
        raise ConfigError(unknown("codec", name, CODECS))
    module, _, cls = CODECS[name].partition(":")
    return getattr(importlib.import_module(module), cls)


def _class_outside(name: str) -> type[Codec]:
    """Return a class that is none of plait's own. Raises ConfigError where it is not allowed or is no codec."""
    module, _, cls = name.partition(":")
    if module not in os.environ.get(ALLOWED, "").split(","):
        raise ConfigError(
            f"codec: {name!r} is code outside of plait, which runs only where you allow it: set the environment "
            f"variable {ALLOWED}={module}"
        )
    try:
        loaded = getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"codec: {name!r} cannot be imported ({error})") from None
    require(isinstance(loaded, type) and issubclass(loaded, Codec), "codec", name, "a subclass of plait.codecs.Codec")
    own_name = getattr(loaded, "name", "")
    require(own_name == name, f"codec: {cls}.name", own_name, f"{name!r}, by which saved codecs find their class")
    return loaded


def fixed_grids(codecs: dict[str, Codec]) -> dict[str, tuple[int, ...]]:
    """Return the extent of one generated item, for the modalities where it is fixed."""
    return {n: tuple(codec.default_grid) for n, codec in codecs.items() if codec.default_grid and not codec.reads_only}


def load_codec(folder: str | Path, key: str = "", reads: str = "") -> Codec:
    """Load the codec that `Codec.save_pretrained` wrote into ``folder``.

    ``key`` is that of its parts in a manifest, ``reads`` the modality whose parts it reads beside that one's codec.
    """
    folder = Path(folder)
    codec = codec_class(description_of(folder)["codec"]).from_pretrained(folder)
    codec.key, codec.reads = key or codec.kind, reads
    return codec
