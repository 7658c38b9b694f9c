"""Small random encoders of transformers, saved as their checkpoints are, and documents with features of an image."""

from pathlib import Path

import numpy as np
import torch

from plait.batch.documents import Document, Part
from plait.config.model import ModalityConfig, ModelConfig

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
PATCH, SIDE = 8, 32
"""Of the vision encoders, in pixels."""

CHANNELS, FEATURES = 3, 5
"""Of the model of `model_config`: numbers of a latent of an image, and of a feature."""


def save_vision(folder: Path, kind: str = "SiglipVision") -> Path:
    """Save a vision encoder: SiglipVision, ClipVision, Dinov2, or Siglip with its text tower."""
    import transformers

    sizes = SIZES | {"image_size": SIDE, "patch_size": PATCH}
    torch.manual_seed(0)
    if kind == "Siglip":
        text = SIZES | {"vocab_size": 30, "max_position_embeddings": 8}
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=sizes))
    elif kind == "ClipVision":
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes))
    elif kind == "Dinov2":
        sizes.pop("intermediate_size")
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, mlp_ratio=2))
    else:
        model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes))
    model.save_pretrained(folder)
    return folder


def save_speech(folder: Path, kind: str = "Hubert") -> Path:
    """Save a speech encoder: Hubert, HubertForCTC, or a Whisper with its decoder."""
    import transformers

    torch.manual_seed(0)
    if kind == "Whisper":
        sizes = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24,
                 "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 24, "vocab_size": 40,
                 "num_mel_bins": 80, "max_source_positions": 25, "max_target_positions": 8, "pad_token_id": 0,
                 "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}  # fmt: skip
        config = transformers.WhisperConfig(**sizes)
        model = transformers.WhisperForConditionalGeneration(config)
    else:
        config = transformers.HubertConfig(**SIZES, vocab_size=30, conv_dim=[8] * 7, num_conv_pos_embeddings=4,
                                           num_conv_pos_embedding_groups=2)  # fmt: skip
        model = {"Hubert": transformers.HubertModel, "HubertForCTC": transformers.HubertForCTC}[kind](config)
    model.save_pretrained(folder)
    return folder


def model_config(*, beside: bool = False, later_sees: str = "clean_copy", network: str = "mlp", **settings):
    """Return a model of BAGEL's kind: text and features in one tower, images in the other."""
    modalities = {
        "text": ModalityConfig(vocab_size=20, tower="understanding"),
        "image": ModalityConfig(objective="diffusion", attention="bidirectional", latent_channels=CHANNELS,
                                tower="generation", later_sees=later_sees),
        "vit": ModalityConfig(objective="input", attention="bidirectional", latent_channels=FEATURES,
                              tower="understanding", reads="image", beside=beside, patch_network=network,
                              place_embedding=True),
    }  # fmt: skip
    sizes = {"width": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 32,
             "position_axes": ("time", "row", "column")}  # fmt: skip
    return ModelConfig(modalities, **(sizes | settings))


def text(rng: np.random.Generator, count: int = 4) -> Part:
    return Part("text", rng.integers(0, 20, count).astype(np.int32))


def image(rng: np.random.Generator, role: str = "generation") -> Part:
    """Return an image of 2 x 3 latents, with features of 2 x 2 patches."""
    features = Part("vit", latents=rng.standard_normal((4, FEATURES)).astype(np.float32), grid=(2, 2))
    latents = rng.standard_normal((6, CHANNELS)).astype(np.float32)
    return Part("image", latents=latents, grid=(2, 3), role=role, features=features)


def interleaved(rng: np.random.Generator, index: int = 0) -> Document:
    """Return texts and images in any order, of which some images are given."""
    parts = []
    for _ in range(int(rng.integers(1, 5))):
        role = ("understanding", "generation")[int(rng.integers(2))]
        parts.append(image(rng, role) if rng.random() < 0.6 else text(rng, int(rng.integers(1, 6))))
    return Document(parts, index=index)
