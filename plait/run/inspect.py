"""What the model is fed: decoded documents, a packed batch, and its attention mask as an image (plait inspect)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from plait.batch.batch import Batch
from plait.batch.documents import Document
from plait.codecs import Codec, Encoded
from plait.common.files import atomic_file
from plait.config.file import load
from plait.config.run import RunConfig
from plait.config.shipped import config_path
from plait.data.loader import Loader
from plait.data.sources import open_sources, resolve_vocabulary
from plait.model.mask import dense_mask, segments
from plait.run.load import load_codecs

MOST_TOKENS_DRAWN = 1024
COLOURS = ((68, 114, 196), (221, 132, 52), (84, 150, 84), (160, 90, 170), (190, 70, 80), (90, 160, 170))
"""Of modalities in their order, in the drawn mask."""


def inspect_run(chosen) -> None:
    """Print documents and a batch of the config that the command line names, and draw the mask where asked."""
    config = resolve_vocabulary(load(config_path(chosen.config), chosen.overrides))
    console = Console()
    codecs = load_codecs(config, list(config.model.modalities))
    source = open_sources(config, chosen.split)[0]
    for i in range(min(chosen.documents, len(source))):
        console.print(document_table(source.document(i), codecs, f"{chosen.split}, document {i}"))
    loader = iter(Loader(config, chosen.split))
    batch, _ = next(loader)
    loader.close()
    console.print(batch_table(batch, config))
    targets = ", ".join(f"{n} {c:,.0f}" for n, c in zip(config.model.layout.names, batch.counts, strict=True))
    console.print(f"targets: {targets}\ntokens: {_first_ids(batch, config)}", markup=False, highlight=False)
    if chosen.mask:
        draw_mask(batch, config, Path(chosen.mask))
        console.print(f"mask: {chosen.mask}")


def document_table(document: Document, codecs: dict[str, Codec], title: str) -> Table:
    """Return a table of a document's parts, with the weight of their loss: text decoded, other ids as they are."""
    table = Table("part", "tokens", "grid", "loss", "content", title=title, title_justify="left", box=None)
    for part in document.parts:
        codec = codecs[part.modality]
        if codec.kind == "text":
            content = codec.decode([Encoded(part.ids)])[0]
        else:
            kind = "features, read only" if codec.reads_only else "latents"
            content = " ".join(map(str, part.ids[:12])) + " ..." if part.ids is not None else kind
        figures = str(len(part)), "×".join(map(str, part.grid)), f"{part.loss:g}"
        table.add_row(part.modality, *figures, Text(content))  # a text may hold what rich would take for markup
        if (read := part.features) is not None:
            content = f"features, read of this {part.modality} where it is given"
            table.add_row(read.modality, str(len(read)), "×".join(map(str, read.grid)), "0", content)
    return table


def batch_table(batch: Batch, config: RunConfig) -> Table:
    """Return a table of a packed batch: its towers' rows."""
    filled = batch.num_tokens / config.data.batch_tokens
    title = f"packed batch: {len(batch.lengths)} documents, {batch.num_tokens} tokens, {filled:.1%} filled"
    table = Table("tower", "tokens", "rows", title=title, title_justify="left", box=None)
    for tower, size, padded in zip(config.model.towers, batch.routing.sizes, batch.routing.padded_sizes, strict=True):
        table.add_row(tower, str(size), str(padded))
    return table


def _first_ids(batch: Batch, config: RunConfig, count: int = 24) -> str:
    """Return the first tokens by name; a span of latents is one entry."""
    names: list[str] = []
    for span in batch.spans:
        if config.model.modalities[span.modality].objective == "input":
            names.append(f"[{span.length} features of {span.modality}, read only]")
        elif config.model.modalities[span.modality].objective == "diffusion":
            names.append(f"[{span.length} {'noised' if span.noised else 'clean'} latents of {span.modality}]")
        else:
            names += [config.model.layout.name_of(int(i)) for i in batch.ids[span.start : span.stop]]
        if len(names) >= count:
            break
    return " ".join(names[:count]) + " ..."


def draw_mask(batch: Batch, config: RunConfig, path: Path) -> None:
    """Draw which key each query sees, coloured by the key's modality, with a strip of modalities along the top."""
    from PIL import Image

    pixels = mask_image(batch, config.model.layout.names)
    image = Image.fromarray(pixels).resize([s * max(1, 800 // len(pixels)) for s in pixels.shape[1::-1]], 0)
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")


def mask_image(batch: Batch, names: Sequence[str]) -> np.ndarray:
    """Return the mask of the batch's first documents as uint8 [n + 8, n, 3]."""
    ends = np.cumsum(batch.lengths)
    n = int(ends[ends <= MOST_TOKENS_DRAWN].max(initial=min(ends[0], MOST_TOKENS_DRAWN)))
    modality = np.repeat([names.index(s.modality) for s in batch.spans], [s.length for s in batch.spans])[:n]
    colours = np.array(COLOURS, np.uint8)[modality % len(COLOURS)]
    seen = dense_mask(segments(batch.spans), batch.num_tokens).numpy()[:n, :n]
    body = np.where(seen[:, :, None], colours[None], np.uint8(250))
    strip = np.repeat(colours[None], 6, axis=0)
    return np.concatenate([strip, np.full((2, n, 3), 255, np.uint8), body])
