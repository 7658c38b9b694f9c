"""What the training benchmarks measure on: shapes, documents that fill them exactly, and plain dense models of a shape.

A document holds one part of each modality, of the shape's mix, in an order that turns round from one to the next. Each
modality has a tower of its own (delimiters are text), so that the mix is that of the towers.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plait.batch.assemble import pack
from plait.batch.batch import Batch
from plait.batch.documents import Document, Part
from plait.config.model import ModalityConfig, ModelConfig
from plait.model.attention import new_plan
from plait.model.mot import MixtureOfTransformers
from plait.objectives import weighted_loss
from plait.objectives.next_token import weighted_cross_entropy

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from helpers import dense_reference

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HEAD_DIM = 64


@dataclass(frozen=True)
class Shape:
    """A model and a batch of it; its name is part of a row's."""

    width: int
    tokens: int
    mix: tuple[int, ...]
    """Percent of the tokens, one number for each tower, the first one's modality being text."""
    layers: int = 4
    document: int = 0
    """Mean tokens of a document; 0: eight documents, or fewer of 512 tokens."""
    vocabulary: int = 4096

    def __str__(self) -> str:
        mix = "equal" if len(self.mix) > 3 else "-".join(map(str, self.mix))
        return f"d{self.width}-t{self.tokens}-{len(self.mix)}towers-{mix}"

    @property
    def modalities(self) -> dict[str, float]:
        """Each modality's share of the tokens."""
        names = ["text", *(f"m{k}" for k in range(1, len(self.mix)))]
        return {name: percent / sum(self.mix) for name, percent in zip(names, self.mix, strict=True)}

    def config(self, *, towers: int | None = None) -> ModelConfig:
        """Return the model's config; ``towers=1`` for all modalities in one."""
        size = self.vocabulary // len(self.mix)
        modalities = {n: ModalityConfig(vocab_size=size, tower="all" if towers == 1 else "") for n in self.modalities}
        return ModelConfig(
            modalities=modalities, width=self.width, num_layers=self.layers, num_heads=self.width // HEAD_DIM
        )

    def documents(self, seed: int = 0) -> list[Document]:
        """Return documents that fill the batch to the last token; their lengths vary by a quarter either way."""
        rng = np.random.default_rng(seed)
        count = max(1, self.tokens // (self.document or max(512, self.tokens // 8)))
        weights = rng.uniform(0.75, 1.25, count)
        ends = np.round(np.cumsum(weights) / weights.sum() * self.tokens).astype(int)
        documents = []
        for index, length in enumerate(np.diff(ends, prepend=0)):
            inside = length - 2 - 2 * (len(self.mix) - 1)  # <bos>, <eos>, and delimiters of all parts but text
            sizes = {n: max(1, round(length * share)) for n, share in list(self.modalities.items())[1:]}
            sizes = {"text": inside - sum(sizes.values()), **sizes}
            parts = [Part(n, rng.integers(0, self.vocabulary // len(self.mix), size)) for n, size in sizes.items()]
            documents.append(Document(parts if index % 2 else parts[::-1], index=index))
        return documents


@dataclass
class Case:
    """A shape on a device, in a precision: its batches, and models made for it."""

    shape: Shape
    device: str
    dtype: str
    mode: str
    """eager, or compiled: torch.compile of each block."""

    def __post_init__(self):
        documents = self.shape.documents()
        # one row a token, so that rows are tokens in the order of the sequence
        self.plain = pack(documents, self.shape.config(towers=1), pad_rows_to=1).to(self.device)
        self.batch = pack(documents, self.shape.config())
        device = torch.device(self.device)  # in training the loader's threads plan the attention
        self.batch.attention = new_plan(self.batch, device, DTYPES[self.dtype])
        self.batch = self.batch.to(device)
        self.plain.attention = new_plan(self.plain, device, DTYPES[self.dtype]).to(device)

    @property
    def name(self) -> str:
        """The end of the names of its rows."""
        return f"{self.shape}/{self.dtype}/{self.mode}"

    def dense(self) -> dense_reference.Dense:
        """Return the plain dense model."""
        c = self.shape.config(towers=1)
        model = dense_reference.Dense(
            c.layout.size, c.width, c.num_layers, c.num_heads, c.num_kv_heads, c.head_dim, c.towers["all"].ffn_width
        ).to(self.device)
        if self.mode == "compiled":
            for block in model.blocks:
                block.compile()
        return model

    def mot(self, *, towers: int | None = None) -> MixtureOfTransformers:
        """Return plait's model."""
        model = MixtureOfTransformers(self.shape.config(towers=towers)).to(self.device)
        if self.mode == "compiled":
            model.compile_blocks()
        return model

    def attention(self):
        """Return the dense model's attention of these documents."""
        lengths = self.plain.lengths
        if self.device == "cpu":
            return dense_reference.per_document(lengths)
        kernel = dense_reference.varlen if self.dtype == "bfloat16" else dense_reference.flex
        return kernel(lengths, self.device)

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass in the case's precision, as training has it."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16", cache_enabled=False)

    def other(self, **changes) -> "Case":
        """Return the case of a changed shape."""
        return Case(replace(self.shape, **changes), self.device, self.dtype, self.mode)


def mot_loss(model: MixtureOfTransformers, batch: Batch) -> Tensor:
    """Return the mean loss of plait's model."""
    factors = torch.full((len(model.config.modalities),), 1 / batch.num_tokens, device=model.device)
    return weighted_loss(model, model(batch), batch, factors)[0]


def sequence_loss(hidden: Tensor, weight: Tensor, batch: Batch) -> Tensor:
    """Return the mean loss of hidden states [T, D] in sequence order, by plait's own linear cross-entropy.

    The same for every model, so that ratios compare the models; benchmarks/loss.py measures the loss itself.
    """
    rows = hidden.index_select(0, batch.targets.rows[0])
    scale = torch.full((len(rows),), 1 / batch.num_tokens, device=rows.device)
    return weighted_cross_entropy(rows, weight, batch.targets.ids, scale)[0]


def flops(shape: Shape, lengths: list[int]) -> float:
    """Return the operations of a forward and a backward pass by the standard count (PaLM, arXiv 2204.02311, app. B).

    6 N T + 12 L H d pairs: N weights that a token is multiplied with (the head's too, the embedding's not), and only
    the pairs of query and key that see one another, which is less than PaLM counts.
    """
    c = shape.config(towers=1)
    per_layer = c.width * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads) + 3 * c.width * c.towers["all"].ffn_width
    weights = c.num_layers * per_layer + c.width * c.layout.size
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    return 6 * weights * sum(lengths) + 12 * c.num_layers * c.num_heads * c.head_dim * pairs
