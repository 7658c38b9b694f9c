"""Sentence similarity: how near texts are in meaning, by a model that embeds sentences (evaluate.sentences).

The cosine of the mean of a text's last hidden states with that of the other text (Sentence-BERT, arXiv 1908.10084),
as most models of sentence-transformers are made for; one that takes the class token instead says so in its folder.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.common.errors import CheckpointError, ConfigError, first_line
from plait.evaluate import pretrained

WHERE = "evaluate.sentences"
POOLING = "1_Pooling/config.json"
"""Where sentence-transformers says how a model's states become one."""
BATCH = 32


class Sentences:
    """Compares texts by a model of transformers: a folder, or owner/name[@revision] on the Hub."""

    def __init__(self, name: str, device: str | torch.device = "cpu"):
        folder = pretrained.folder_of(name, WHERE)
        pretrained.config_of(folder, name, WHERE)
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = pretrained.part_of(AutoTokenizer, folder, name, WHERE, "tokenizer")
        self.model, _ = pretrained.model_of(AutoModel, folder, name, WHERE, may_lack="pooler.")
        self.model.to(device)
        self.device, self.takes_class_token = torch.device(device), _takes_class_token(folder, name)
        longest = getattr(self.model.config, "max_position_embeddings", 512)
        self.longest = min(longest, self.tokenizer.model_max_length)
        """Tokens of a text; the rest of a longer one is left out."""
        self.key = f"{name} {pretrained.folder_checksum(folder)}"
        try:
            self.embeddings(["a text"])
        except Exception as error:  # of an image model, say
            raise CheckpointError(f"{WHERE}: {name!r} embeds no texts ({first_line(error)})") from None

    def similarities(self, texts: Sequence[str], others: Sequence[str]) -> list[float]:
        """Return the cosine, -1 to 1, of each text with the other one of its place."""
        if not len(texts):
            return []
        cosines: list[float] = F.cosine_similarity(self.embeddings(texts), self.embeddings(others)).tolist()
        return cosines

    @torch.no_grad()
    def embeddings(self, texts: Sequence[str]) -> Tensor:
        """Return float32 [B, D] on the CPU."""
        rows = []
        for start in range(0, len(texts), BATCH):
            inputs = self.tokenizer(list(texts[start : start + BATCH]), padding=True, truncation=True,
                                    max_length=self.longest, return_tensors="pt").to(self.device)  # fmt: skip
            hidden = self.model(**inputs).last_hidden_state
            weights = inputs["attention_mask"][..., None].to(hidden.dtype)
            mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
            rows.append((hidden[:, 0] if self.takes_class_token else mean).float().cpu())
        return torch.cat(rows)


def _takes_class_token(folder: Path, name: str) -> bool:
    """Say whether a model has a text's class token stand for it, not the mean. Raises ConfigError for other ways."""
    path = folder / POOLING
    settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    ways = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    chosen = [
        ways.get(key, key) for key, value in settings.items() if key.startswith("pooling_mode_") and value is True
    ]
    way = ", ".join(chosen) or settings.get("pooling_mode", "mean")
    if way not in ("cls", "mean"):
        raise ConfigError(f"{WHERE}: {name!r} pools by {way!r}, it must be by cls or mean alone")
    return way == "cls"
