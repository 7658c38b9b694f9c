"""What one batch of a run looks like: of its prepared data where there is any, else documents made up from the config.

Sizes that training takes from prepared data (vocabularies, latents) are asked of the codecs here, before any data.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from plait.batch.assemble import spell
from plait.batch.documents import Document, Part, role_of
from plait.codecs import codec_class
from plait.common.errors import ConfigError, require, unknown
from plait.config.bounds import Bounds, as_number
from plait.config.run import RunConfig
from plait.data.loader import Loader
from plait.data.sources import folders, resolve_vocabulary, unset_ends

ITEM_TOKENS = 1024
"""Longest made-up item of a continuous modality whose codec has no extent of its own."""


def known_sizes(config: RunConfig) -> tuple[RunConfig, dict[str, tuple[int, ...]]]:
    """Return the config with vocabularies and latents filled in, and the extents of items that are always the same.

    Raises ConfigError for a size that neither the config nor the codec tells.
    """
    if is_prepared(config):
        return resolve_vocabulary(config), {}
    grids, modalities = {}, {}
    ends: dict[str, Any] = {}
    for name, modality in config.model.modalities.items():
        settings = config.modalities[name]
        codec = (
            codec_class(settings.codec).from_options(settings.codec_options, f"model.modalities.{name}.codec_options")
            if settings.codec and not _is_sized(modality)
            else None
        )
        unset = ("vocab_size",) if modality.objective == "next_token" else ("latent_channels", "patch_size")
        sizes = {field: getattr(modality, field) or getattr(codec, field, 0) for field in unset}
        modalities[name] = replace(modality, **sizes)
        require(_is_sized(modalities[name]), f"model.modalities.{name}", "of unknown size",
                "given a vocab_size (or latent_channels), or a codec that knows it")  # fmt: skip
        if codec is not None and codec.default_grid:
            grids[name] = tuple(codec.default_grid)
        if codec is not None and not ends:
            ends = codec.ends
    return replace(config, model=replace(config.model, modalities=modalities, **unset_ends(config.model, ends))), grids


def _is_sized(modality) -> bool:
    return bool(modality.vocab_size if modality.objective == "next_token" else modality.latent_channels)


def is_prepared(config: RunConfig) -> bool:
    """Say whether the run's data has been prepared."""
    return all((Path(folder) / "index.json").is_file() for folder in folders(config))


def documents_of_a_batch(
    config: RunConfig, grids: Mapping[str, tuple[int, ...]], *, mix: Mapping[str, float], document_tokens: int = 0
) -> tuple[list[Document], str]:
    """Return the documents of a batch of data.batch_tokens tokens, and where they are from.

    Those of the run's first batch where its data is prepared and neither ``mix`` (shares of tokens by modality) nor
    ``document_tokens`` is asked for. ``config`` and ``grids`` are what `known_sizes` returned.
    """
    if is_prepared(config) and not mix and not document_tokens:
        config = replace(config, data=replace(config.data, num_workers=0))
        return next(iter(Loader(config)))[0].documents, f"the first batch of {config.data.path}"
    mix = shares(config, mix)
    longest = config.data.max_document_tokens or config.data.batch_tokens
    length = min(document_tokens or longest, config.data.batch_tokens // len(mix), config.model.max_positions)
    documents = made_up(config, grids, mix, length)
    return documents, f"made-up documents of {' and '.join(mix)}, about {length:,} tokens each ({len(documents)})"


def shares(config: RunConfig, mix: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each modality in the tokens; all alike where ``mix`` is empty (raises ConfigError)."""
    records = config.model.modalities
    names = [name for name, record in records.items() if not record.reads]  # these come with the parts that they read
    for name, weight in mix.items():
        if name not in names:
            raise ConfigError(unknown("--mix", name, names))
        as_number(weight, float, f"--mix ({name})", Bounds(at_least=0))
    weights = {name: mix.get(name, 0.0) for name in names} if mix else dict.fromkeys(names, 1.0)
    predicted = sum(weight for name, weight in weights.items() if records[name].objective != "input")
    require(predicted > 0, "--mix", dict(mix), "shares of which that of one predicted modality is above 0")
    return {name: weight / sum(weights.values()) for name, weight in weights.items() if weight}


def made_up(
    config: RunConfig, grids: Mapping[str, tuple[int, ...]], mix: Mapping[str, float], length: int
) -> list[Document]:
    """Return documents that fill a batch: each modality is in turn the last one, to be predicted from the others."""
    documents: list[Document] = []
    room, names = config.data.batch_tokens, list(mix)
    predicted = [name for name in names if config.model.modalities[name].objective != "input"]
    while True:
        last = predicted[-1 - len(documents) % len(predicted)]
        order = [*(name for name in names if name != last), last]
        document = Document(_parts(config, grids, mix, order, length), index=len(documents))
        _shorten(document, _length(document, config) - length)
        room -= _length(document, config)
        if documents and room < 0:
            return documents
        documents.append(document)


def _length(document: Document, config: RunConfig) -> int:
    return sum(len(run) for run in spell(document, config.model))


def _shorten(document: Document, excess: int) -> None:
    """Take delimiters and clean copies, which stand in a document too, from its longest discrete part."""
    longest = max((p for p in document.parts if p.ids is not None), key=len, default=None)
    if longest is not None and longest.ids is not None and excess > 0:
        longest.ids = longest.ids[: max(1, len(longest) - excess)]


def _parts(config, grids, mix, names: list[str], length: int) -> list[Part]:
    """Share a document's tokens among its parts, and cut continuous ones into items."""
    room = length - 2 - sum(2 for name in names if name != config.model.layout.host)
    parts = []
    for name in names:
        role = role_of(given=name != names[-1])
        n, modality = max(1, int(room * mix[name])), config.model.modalities[name]
        if modality.objective == "next_token":
            parts.append(Part(name, ids=np.zeros(n, np.int64), role=role))
        else:
            parts += _items(modality.latent_channels, name, n, grids.get(name), role)
    for part in parts:
        if reader := config.model.readers.get(part.modality):
            grid = grids.get(reader) or part.grid or (len(part),)
            channels = config.model.modalities[reader].latent_channels
            part.features = _items(channels, reader, len(part), grid, role_of(given=True))[0]
    return parts


def _items(channels: int, name: str, tokens: int, grid: tuple[int, ...] | None, role: str) -> list[Part]:
    size = math.prod(grid) if grid else min(tokens, ITEM_TOKENS)
    grid = grid or _extent(size)
    latents = np.zeros((math.prod(grid), channels), np.float32)
    return [Part(name, latents=latents, grid=grid, role=role) for _ in range(max(1, round(tokens / size)))]


def _extent(tokens: int) -> tuple[int, int]:
    """Return the rows and columns nearest to a square that hold at most so many tokens."""
    rows = math.isqrt(tokens)
    return rows, tokens // rows
