"""How much of the cache requests need: it is made as large as those at hand, and grows where more are added."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from plait.batch.assemble import spell_prompt
from plait.batch.documents import Part
from plait.config.model import ModelConfig
from plait.generate.request import Request


@dataclass(frozen=True)
class Room:
    """Rows of a cache, the slots of the longest one, and small pages in all (of a paged cache)."""

    rows: int
    length: int
    pages: int = 0

    @classmethod
    def of(cls, needs: Sequence[Sequence[int]], most: int, page_size: int = 0) -> "Room":
        """Return the room for the ``most`` largest of requests that need rows of so many slots (`most_tokens`)."""
        rows = sum(sorted(map(len, needs), reverse=True)[:most])
        length = max((n for need in needs for n in need), default=0)
        pages = [num_pages(need, page_size) for need in needs] if page_size else []
        return cls(rows, length, sum(sorted(pages, reverse=True)[:most]))

    def cache_shape(self, config: ModelConfig) -> tuple[int, int, int, int, int]:
        """Return the shape of a static cache's keys (values have the same): [layers, rows, heads, slots, head_dim]."""
        return config.num_layers, self.rows, config.num_kv_heads, self.length, config.attended_head_dim


def num_pages(need: Sequence[int], page_size: int) -> int:
    """Return the pages that rows of so many slots fill, each at least one."""
    return sum(max(1, -(-n // page_size)) for n in need)


def most_tokens(request: Request, config: ModelConfig, *, grids: dict[str, tuple[int, ...]], default: int) -> list[int]:
    """Return the most tokens that each branch of a request may hold at once, the one that sees everything first.

    ``default`` is the longest span of a modality for which the request names none.
    """
    layout, host = config.layout, config.layout.host
    prompt_tokens = prompt_length(request.prompt, config)

    def size(name: str) -> int:
        """Tokens of a span with its opening delimiter."""
        grid = request.grid_of(name, grids)
        return 1 + (math.prod(grid) if grid else request.max_tokens.get(name, default))

    if request.output == host:
        return [prompt_tokens + request.max_tokens.get(host, default)]
    made = [n for n in layout.names if n != host and config.modalities[n].objective != "input"]
    others = [request.output] if request.output else made
    largest = max((size(n) for n in others), default=0)
    longest = prompt_tokens + largest
    if request.output is None:
        longest = prompt_tokens + request.max_spans * (largest + 1)
        longest += (request.max_spans + 1) * request.max_tokens.get(host, default)
    settings = [request.sampling_of(n) for n in others]
    if all(s.guidance == 1.0 and s.media_guidance == 1.0 for s in settings):
        return [longest]
    free = 1 + largest
    if all(s.media_guidance == 1.0 for s in settings):
        return [longest, free]
    media = [p for p in request.prompt if p.modality != host]
    return [longest, prompt_length(media, config) + largest if request.output else longest, free]


def prompt_length(parts: Sequence[Part], config: ModelConfig) -> int:
    """Return the tokens of a prompt, <bos> and delimiters included."""
    return sum(len(run) for run in spell_prompt(parts, config))
