"""CLIPScore: how well images fit their texts, by a model that embeds both (evaluate.clip).

An item's score is 100 * max(cos, 0) of the two embeddings (arXiv 2104.08718, whose factor is 2.5), as torchmetrics has
it; scores of different models do not compare. torchmetrics' own class gives a mean alone, and cuts the end token off
long texts.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.common.errors import CheckpointError
from plait.evaluate import pretrained
from plait.evaluate.extractors import PretrainedVision

WHERE = "evaluate.clip"


class ClipScore:
    """CLIPScore by a model of transformers, such as CLIP or SigLIP: a folder, or owner/name[@revision] on the Hub."""

    def __init__(self, name: str, device: str | torch.device = "cpu"):
        self.vision = PretrainedVision(name, device, WHERE)
        if not self.vision.has_texts:
            kind = self.vision.model.config.model_type
            raise CheckpointError(f"{WHERE}: {name!r} embeds no texts (model_type {kind!r}), name a CLIP or a SigLIP")
        from transformers import AutoTokenizer

        self.tokenizer = pretrained.part_of(AutoTokenizer, self.vision.folder, name, WHERE, "tokenizer")
        config = self.vision.model.config
        self.longest = min(config.text_config.max_position_embeddings, self.tokenizer.model_max_length)
        """Tokens of a text; the rest of a longer one is left out."""
        self._is_siglip = "siglip" in config.model_type
        self.key = self.vision.key
        """Names the model and its weights."""

    def scores(self, images: Sequence[np.ndarray], texts: Sequence[str]) -> list[float]:
        """Return a score, 0 to 100, for each image, uint8 [H, W, 3], and its text."""
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} images and {len(texts)} texts, there must be a text for each image")
        if not len(images):
            return []
        cosines = F.cosine_similarity(self.vision.features(images), self.text_features(texts))
        return [float(score) for score in 100 * cosines.clamp(min=0)]

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return float32 [B, D] on the CPU."""
        # SigLIP was trained on texts that are padded, without a mask
        padding = {"padding": "max_length" if self._is_siglip else "longest",
                   "return_attention_mask": not self._is_siglip}  # fmt: skip
        rows = []
        for start in range(0, len(texts), self.vision.batch):
            batch = list(texts[start : start + self.vision.batch])
            inputs = self.tokenizer(batch, truncation=True, max_length=self.longest, return_tensors="pt",
                                    **padding).to(self.vision.device)  # fmt: skip
            rows.append(pretrained.pooled(self.vision.model.get_text_features(**inputs)).float().cpu())
        return torch.cat(rows)
