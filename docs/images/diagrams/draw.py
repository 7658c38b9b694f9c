"""Draw the diagrams of docs/how_it_works.md: `python docs/images/diagrams/draw.py`, or `--check` that none is stale.

Routing, mask and packing are those that plait computes for the documents below. Lengths are SVG units: a diagram is
560 wide, so that its text stays readable on a phone.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

import plait
from plait.data.packing import plan_bins
from plait.model.mask import dense_mask, segments

FOLDER, WIDTH = Path(__file__).parent, 560
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
FILL = {"text": "#dbeafe", "image": "#ffedd5", "speech": "#dcfce7", "shared": "#e9eef4", "pad": "#ffffff"}
LINE = {"text": "#2563eb", "image": "#ea580c", "speech": "#15803d", "shared": "#64748b", "pad": "#94a3b8"}
INK = {"text": "#1e3a8a", "image": "#7c2d12", "speech": "#14532d", "shared": "#1e293b", "white": "#ffffff"}
TOWERS = ("text", "image", "speech")
STRIPES = (
    '<defs><pattern id="noise" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    f'<path d="M0 0h5v5h-5z" fill="{FILL["image"]}"/><path d="M0 0h2.4v5h-2.4z" fill="{LINE["image"]}"/>'
    "</pattern></defs>"
)
LABELS = "bos a b < n₁ n₂ n₃ c₁ c₂ c₃ > d eos bos < c₁ c₂ c₃ > a b eos"
"""Of the tokens of `mask`."""


class Drawing:
    """The text of one SVG file, on a white ground; the docstring of what draws it is its title and description."""

    def __init__(self, drawn_by: Callable, height: int):
        self.name = drawn_by.__name__
        title, description = (" ".join(part.split()) for part in drawn_by.__doc__.split("\n\n"))
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="700" '
            f'height="{round(height * 1.25)}" role="img" aria-labelledby="title desc" font-family="{FONT}">',
            f'<title id="title">{escape(title)}</title>\n<desc id="desc">{escape(description)}</desc>\n{STRIPES}',
        ]
        self.rect(0.5, 0.5, WIDTH - 1, height - 1, "#ffffff", "#dbe2ea", radius=12)

    def content(self) -> str:
        return "\n".join([*self.parts, "</svg>"]) + "\n"

    def rect(self, x, y, w, h, fill, line="", *, radius=0.0, more="") -> None:
        stroke = f' stroke="{line}" stroke-width="1.3"{more}' if line else ""
        corner = f' rx="{radius:g}"' if radius else ""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}"{corner} fill="{fill}"{stroke}/>')

    def text(self, x, y, words, kind="shared", *, size=14, anchor="middle", bold=False) -> None:
        """Write words around the height y."""
        style = f'text-anchor="{anchor}"' + ' font-weight="600"' * bold
        place = f'x="{x:g}" y="{y + 0.35 * size:g}" font-size="{size}"'
        self.parts.append(f'<text {place} fill="{INK[kind]}" {style}>{escape(words)}</text>')

    def notes(self, x, y, *lines) -> None:
        for i, words in enumerate(lines):
            self.text(x, y + 19 * i, words, anchor="start")

    def heading(self, x, y, words) -> None:
        self.text(x, y, words, anchor="start", size=15, bold=True)

    def box(self, x, y, w, h, kind, *lines, size=14, bold=False) -> None:
        """Draw a rounded box with lines of words in its middle; words that may not fit are refused."""
        self.rect(x, y, w, h, FILL[kind], LINE[kind], radius=8)
        for i, words in enumerate(lines):
            assert len(words) * size * 0.55 <= w, f"{self.name}: {words!r} is wider than {w}"
            self.text(x + w / 2, y + h / 2 + (2 * i + 1 - len(lines)) * size * 0.65, words, kind, size=size, bold=bold)

    def cell(self, x, y, w, h, kind, words="") -> None:
        """Draw one token, or one row of padding."""
        self.rect(x, y, w, h, FILL[kind], LINE[kind], radius=3, more=' stroke-dasharray="3 2"' * (kind == "pad"))
        if words:
            self.text(x + w / 2, y + h / 2, words, kind)

    def legend(self, y, *kinds) -> None:
        for k, (kind, words) in enumerate(kinds):
            self.cell(20 + k * 520 / len(kinds), y - 8, 16, 16, kind)
            self.text(43 + k * 520 / len(kinds), y, words, anchor="start")

    def badge(self, x, y, words) -> None:
        self.rect(x - 10, y - 10, 20, 20, INK["shared"], radius=10)
        self.text(x, y, words, "white")

    def path(self, path, color, width=1.8, opacity=1.0) -> None:
        self.parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{width}" opacity="{opacity}"/>')

    def line(self, points, kind="shared", *, head=True, halo="") -> None:
        """Draw a line along points, whose corners are rounded, with the head of an arrow at its end."""
        x, y = points[-1]
        dx, dy = (side / math.dist(points[-2], points[-1]) for side in (x - points[-2][0], y - points[-2][1]))
        size = 8.0 if head else 0.0
        points = [*points[:-1], (x - dx * size * 0.8, y - dy * size * 0.8)]
        path = f"M{points[0][0]:g} {points[0][1]:g}"
        for before, corner, after in zip(points, points[1:], points[2:]):
            near, far = (_towards(corner, other) for other in (before, after))
            path += f" L{near[0]:g} {near[1]:g} Q{corner[0]:g} {corner[1]:g} {far[0]:g} {far[1]:g}"
        path += f" L{points[-1][0]:g} {points[-1][1]:g}"
        if halo:
            self.path(path, halo, 7)
        self.path(path, LINE[kind])
        if head:
            sides = [(x - dx * size - s * dy * size / 2, y - dy * size + s * dx * size / 2) for s in (1, -1)]
            corners = " ".join(f"{a:g},{b:g}" for a, b in ((x, y), *sides))
            self.parts.append(f'<polygon points="{corners}" fill="{LINE[kind]}"/>')

    def plus(self, x, y, kind) -> None:
        """Draw where an update is added to the residual stream."""
        self.rect(x - 8, y - 8, 16, 16, "#ffffff", LINE[kind], radius=8)
        self.path(f"M{x - 4:g} {y:g} h8 M{x:g} {y - 4:g} v8", LINE[kind], 1.5)


def _towards(point, other) -> tuple[float, float]:
    """Return the place on the way to another point at which a corner begins."""
    share = min(8.0, math.dist(point, other) / 2) / math.dist(point, other)
    return point[0] + (other[0] - point[0]) * share, point[1] + (other[1] - point[1]) * share


def config(**changed: plait.ModalityConfig) -> plait.ModelConfig:
    modalities = {name: plait.ModalityConfig(vocab_size=9) for name in TOWERS} | changed
    return plait.ModelConfig(width=16, num_layers=1, num_heads=2, modalities=modalities)


def document(*parts: tuple[str, int]) -> plait.Document:
    return plait.Document([plait.Part(modality, np.zeros(length, int)) for modality, length in parts])


def modalities_of(batch: plait.Batch) -> list[str]:
    """Return the modality of each token; delimiters belong to the text."""
    return [span.modality for span in batch.spans for _ in range(span.length)]


def layer() -> Drawing:
    """One layer of a Mixture-of-Transformers.

    Each modality has its own norms, projections of queries, keys, values and outputs, and feed-forward network.
    One attention over all tokens stands between them.
    """
    d = Drawing(layer, 510)
    attention, plus, second = 184, 332, 464
    d.rect(20, attention, 520, 62, FILL["shared"], LINE["shared"], radius=8)
    for i, words in enumerate(("one attention", "over all tokens,", "in sequence order")):
        d.text(302, attention + 13 + 18 * i, words, size=15 if i == 0 else 14, bold=i == 0)
    for k, tower in enumerate(TOWERS):
        left, w, below = 20 + k * 180, 126, 0
        rail, x, middle = left + 12, left + 34, left + 34 + w / 2
        d.line([(rail, 44), (rail, plus - 8)], tower, head=False)
        d.line([(rail, attention + 1), (rail, attention + 61)], tower, head=False, halo=FILL["shared"])
        d.line([(rail, plus + 8), (rail, second - 8)], tower, head=False)
        d.line([(rail, second + 8), (rail, 500)], tower)
        d.text(rail + 14, 489, "to the next layer", anchor="start")
        d.box(left, 16, 160, 28, tower, f"{tower} tower", size=15, bold=True)
        for branch, y, height, *words in (
            (52, 62, 30, "norm"), (0, 106, 48, "Q, K, V", "norm of Q and K"), (0, attention, 62), (0, 274, 30, "O"),
            (344, 354, 30, "norm"), (0, 398, 36, "FFN (SwiGLU)"),
        ):  # fmt: skip
            start = [(rail, branch), (middle, branch)] if branch else [(middle, below)]
            d.line([*start, (middle, y)], tower)
            if words:
                d.box(x, y, w, height, tower, *words)
            below = y + height
        for y, start in ((plus, 304), (second, 434)):
            d.line([(middle, start), (middle, y), (rail + 8, y)], tower)
            d.plus(rail, y, tower)
    return d


def routing() -> Drawing:
    """Tokens are sorted by tower once per step.

    Tokens are sorted by tower before the first layer. In each layer to_sequence brings queries, keys and values
    back to sequence order for attention, and to_towers sorts its output again.
    """
    d = Drawing(routing, 596)
    batch = plait.pack([document(("text", 2), ("image", 4), ("speech", 3))], model := config(), pad_rows_to=4)
    kinds, rows, sizes = modalities_of(batch), batch.routing.to_sequence.tolist(), batch.routing.padded_sizes
    step, cell, starts = 23.3, 21.3, np.cumsum([0, *sizes]).tolist()
    row_x = [46 + r * step + k * 14 for k in range(len(sizes)) for r in range(starts[k], starts[k + 1])]
    left, right = row_x[0] - 6, row_x[-1] + cell + 6
    token_x = [(left + right - len(kinds) * step) / 2 + t * step for t in range(len(kinds))]

    def sequence(y: float) -> None:
        for t, kind in enumerate(kinds):
            d.cell(token_x[t], y, cell, 24, kind, str(t))

    def towers(y: float, words: str) -> None:
        for k, name in enumerate(model.towers):
            x, end = row_x[starts[k]] - 6, row_x[starts[k + 1] - 1] + cell + 6
            d.rect(x, y - 6, end - x, 60, FILL[name], LINE[name], radius=8)
            d.text((x + end) / 2, y + 39, words, name)
        for r, x in enumerate(row_x):
            token = rows.index(r) if r in rows else None
            d.cell(x, y, cell, 24, "pad" if token is None else kinds[token], "" if token is None else str(token))

    def curves(y: float, to_y: float, *words: str, back: bool = False) -> None:
        for t, kind in enumerate(kinds):
            ends = (row_x[rows[t]] + cell / 2, token_x[t] + cell / 2)
            (x, to_x), middle = ends if back else ends[::-1], (y + to_y) / 2
            d.path(f"M{x:g} {y:g} C{x:g} {middle:g} {to_x:g} {middle:g} {to_x:g} {to_y:g}", LINE[kind], 1.5, 0.75)
        d.notes(right + 10, (y + to_y) / 2 - 9, *words)

    d.heading(20, 22, "a document, in sequence order")
    sequence(40)
    curves(64, 124, "sorted by", "tower, once")
    towers(130, "norm, Q, K, V")
    curves(184, 244, "to_sequence", "Q, K, V", back=True)
    d.rect(left, 244, right - left, 60, FILL["shared"], LINE["shared"], radius=8)
    sequence(250)
    d.text((left + right) / 2, 289, "one attention over all tokens", bold=True)
    curves(304, 364, "to_towers", "its output")
    towers(370, "O, norm, FFN")
    for k in range(len(sizes)):
        middle = (row_x[starts[k]] + row_x[starts[k + 1] - 1] + cell) / 2
        d.line([(middle, 424), (middle, 442), (20, 442), (20, 154), (left, 154)])
    d.text(left, 462, "next layer: the stream stays sorted by tower", anchor="start")
    d.legend(500, *((tower, f"{tower} tower") for tower in TOWERS))
    d.legend(528, ("pad", "padding, read by nobody: here rows are a multiple of 4"))
    delimiters = ", ".join(str(t) for t, kind in enumerate(kinds) if kind == "text" and t not in (1, 2))
    d.notes(20, 556, "A number is a token's place in the sequence.", f"Delimiters ({delimiters}) are text.")
    return d


def mask() -> Drawing:
    """The attention mask of a packed batch.

    Each document sees itself up to each token, an image all of itself. The noised copy of a predicted image is
    seen by itself alone; later tokens see the clean copy. Rows are queries, columns are keys.
    """
    d = Drawing(mask, 650)
    image = plait.ModalityConfig("diffusion", attention="bidirectional", latent_channels=4, later_sees="clean_copy")
    latents = np.zeros((3, 4), np.float32)
    made = plait.Part("image", latents=latents, grid=(1, 3))
    given = plait.Part("image", latents=latents, grid=(1, 3), role="understanding")
    two, one = (plait.Part("text", np.arange(n)) for n in (2, 1))
    documents = [plait.Document([two, made, one]), plait.Document([given, two])]
    batch = plait.pack(documents, config(image=image), pad_rows_to=1)
    seen = dense_mask(segments(batch.spans), batch.num_tokens).numpy()
    spans = [span for span in batch.spans for _ in range(span.length)]
    size, left, top = 20, 62, 66
    fills = {"text": "#60a5fa", "image": "#fb923c", "noised": "url(#noise)", "": "#f1f5f9"}
    d.heading(12, 18, "queries")
    d.text(left + size * len(spans) / 2, 18, "keys: what they see", size=15, bold=True)
    for t, (span, word) in enumerate(zip(spans, LABELS.split(), strict=True)):
        at = (t + 0.5) * size
        d.text(left + at, 38 if word == "eos" else 54, word, span.modality, size=13 if len(word) > 2 else 14)
        d.text(left - 8, top + at, word, span.modality, anchor="end")
        for k, key in enumerate(spans):
            kind = ("noised" if key.noised else key.modality) if seen[t, k] else ""
            d.rect(left + k * size + 1, top + t * size + 1, size - 2, size - 2, fills[kind], radius=2.5)
    for number, at, anchor in ((0, batch.lengths[0] * size + 8, "start"), (1, batch.lengths[0] * size - 8, "end")):
        corner, length = sum(batch.lengths[:number]) * size, batch.lengths[number] * size
        d.rect(left + corner, top + corner, length, length, "none", LINE["shared"], radius=5)
        d.text(left + at, top + corner + 11, f"document {number + 1}", anchor=anchor, bold=True)
    end, y = left + size * len(spans), top + size * len(spans) + 22
    for x, kind, label in ((12, "text", "text"), (84, "image", "image, clean"), (216, "noised", "image, noised"),
                           (360, "", "not seen")):  # fmt: skip
        d.rect(x, y - 8, 16, 16, fills[kind], radius=3)
        d.text(x + 23, y, label, anchor="start")
    for i, (t, note) in enumerate((
        (4, "The noised copy sees what came before, and all of itself."),
        (7, "The clean copy, at the same positions, sees no noised one."),
        (10, "What follows sees the clean copy, never the noised one."),
        (15, "A given image stands there once, clean, and sees all of itself."),
    )):  # fmt: skip
        middle = top + (t + 1.5) * size
        d.line([(end + 7, middle - 1.5 * size + 3), (end + 7, middle + 1.5 * size - 3)], head=False)
        d.badge(end + 24, middle, str(i + 1))
        d.badge(22, y + 28 + 23 * i, str(i + 1))
        d.text(40, y + 28 + 23 * i, note, anchor="start")
    return d


def packing() -> Drawing:
    """Documents packed into batches.

    Six documents of different lengths fill two batches. In a batch each document sees itself alone. The rows of
    each tower are padded to a multiple of 8, also those of a tower without tokens.
    """
    d = Drawing(packing, 602)
    model, budget, pad, step, letters = config(), 40, 8, 12, "ABCDEF"
    shapes = [[("text", 6), ("image", 9)], [("text", 5)], [("speech", 8), ("text", 3)], [("image", 4), ("text", 2)],
              [("text", 12)], [("speech", 5), ("text", 4)]]  # fmt: skip
    documents = [document(*parts) for parts in shapes]
    alone = [modalities_of(plait.pack([doc], model)) for doc in documents]
    bins = plan_bins([len(kinds) for kinds in alone], budget)

    def strip(numbers: list[int], x: float, y: float, gap: float) -> None:
        for number in numbers:
            for i, kind in enumerate(alone[number]):
                d.cell(x + i * step, y, step, 24, kind)
            width = len(alone[number]) * step
            d.rect(x + width / 2 - 11, y + 3, 22, 18, "#ffffff", LINE["shared"], radius=9)
            d.text(x + width / 2, y + 12, letters[number], bold=True)
            x += width + gap

    d.heading(20, 22, "documents, in the loader's order")
    for row in (0, 1):
        strip([3 * row, 3 * row + 1, 3 * row + 2], 20, 38 + 34 * row, 10)
    d.line([(280, 106), (280, 132)])
    d.heading(20, 146, f"batches of at most {budget} tokens")
    for b, chosen in enumerate(bins):
        d.rect(35, 160 + 40 * b, budget * step + 10, 34, "#ffffff", LINE["shared"], radius=7)
        d.text(24, 177 + 40 * b, str(b + 1), bold=True)
        strip(chosen, 40, 165 + 40 * b, 0)
    batch = plait.pack([documents[i] for i in bins[0]], model, pad_rows_to=pad)
    size, left, top, x, y = 5, 20, 288, 252, 288.0
    seen = dense_mask(segments(batch.spans), batch.num_tokens).numpy()
    d.heading(left, 268, "batch 1: who sees whom")
    d.rect(left, top, size * batch.num_tokens, size * batch.num_tokens, "#f1f5f9")
    for q, row in enumerate(seen):
        first, stop = int(row.argmax()), int(len(row) - row[::-1].argmax())
        assert row[first:stop].all(), "a causal row is one run"
        d.rect(left + first * size, top + q * size, (stop - first) * size, size, "#94a3b8")
    for number, length, at in zip(bins[0], batch.lengths, np.cumsum([0, *batch.lengths]).tolist()):
        d.rect(left + at * size, top + at * size, length * size, length * size, "none", LINE["shared"])
        d.text(left + (at + length * 0.72) * size, top + (at + length * 0.28) * size, letters[number], bold=True)
    d.notes(left, top + 218, "Each document sees", "itself alone, up to", "each of its tokens.")
    d.heading(x, 268, "batch 1: rows of each tower")
    for tower, tokens, rows in zip(model.towers, batch.routing.sizes, batch.routing.padded_sizes):
        d.text(x, y + 8, f"{tower}: {tokens} tokens in {rows} rows", tower, anchor="start")
        for r in range(rows):
            d.cell(x + r % 16 * 18, y + 22 + r // 16 * 21, 16, 18, tower if r < tokens else "pad")
        y += 55 + (rows - 1) // 16 * 21
    d.notes(x, top + 218, f"Rows are padded to a multiple of {pad}.", "A tower without tokens takes part too:",
            "its parameters get zero gradients.")  # fmt: skip
    d.legend(580, *((kind, kind) for kind in TOWERS), ("pad", "padding"))
    return d


def objectives() -> Drawing:
    """Objectives of one batch.

    Ids predict the next id; latents of an image are noised, and their velocity is predicted. The losses of each
    modality are summed, divided by a count, weighted, and added to one loss.
    """
    d = Drawing(objectives, 576)
    runs = [("text", "bos a fox <"), ("image", "x₀ x₀ x₀ x₀"), ("text", "> <"), ("speech", "s s s"), ("text", "> eos")]
    step, x = 34.8, 20.0
    d.heading(20, 20, "a document: ids of text and speech, latents of an image")
    for i, (kind, words) in enumerate(runs):
        for j, word in enumerate(words.split()):
            d.cell(x + j * step, 34, step - 2, 28, kind, word)
        middle = {"text": 96, "image": 280, "speech": 464}[kind]
        if i in (0, 1, 3):
            start = middle if kind == "text" else x + (len(words.split()) * step - 2) / 2
            corners = [(start, 72), (middle, 72)] if start != middle else []
            d.line([(start, 62), *corners, (middle, 88 if kind == "image" else 174)], kind)
        x += len(words.split()) * step
    d.box(182, 88, 196, 66, "image", "noised at a level t,", "one per image; flow:", "xₜ = (1 − t) x₀ + t ε")
    d.line([(280, 154), (280, 174)], "image")
    for kind, left, w in (("text", 20, 152), ("image", 182, 196), ("speech", 388, 152)):
        middle, latent = left + w / 2, kind == "image"
        if not latent:
            d.rect(middle - 62, 108, 124, 26, "#ffffff")
            d.text(middle, 121, "ids, as they are", kind)
        lines = ["head: scores", "of the next id", "cross-entropy", "of each target"]
        if latent:
            lines = ["latent head", "predicts ε − x₀", "squared error, the mean", "over each noised image"]
        d.box(left, 238, w, 48, kind, *lines[:2])
        d.box(left, 306, w, 48, kind, *lines[2:])
        d.box(left, 374, w, 30, kind, f"sum for {kind}", bold=True)
        for start, stop in ((216, 238), (286, 306), (354, 374), (404, 424), (472, 492)):
            d.line([(middle, start), (middle, stop)], kind)
    d.box(20, 174, 520, 42, "shared", "towers and one attention", size=15, bold=True)
    d.box(20, 424, 520, 48, "shared", "÷ the step's count of ids, or of noised images,", "× the modality's loss_weight")
    d.box(20, 492, 520, 34, "shared", "added: one loss, one backward pass", size=15, bold=True)
    d.text(280, 551, "Counts are those of all ranks and accumulated batches.")
    return d


def batch() -> Drawing:
    """The way of one batch.

    Rows of a manifest become shards. The loader orders, packs, noises and plans in threads. Model, heads and
    losses follow, then optimizer, averages and checkpoint.
    """
    d = Drawing(batch, 580)
    phases = [
        ("once: plait prepare", "manifest row:|paths, texts", "*codecs: ids|or latents", "shards|on disk"),
        ("ahead of the step: threads of the loader", "order,|tasks", "packing,|routing", "noise for|latents",
         "attention|plan"),
        ("each step: the model", "*embed, sort|by tower", "*towers and|attention", "*heads", "*losses,|summed"),
        ("each step: the update", "÷ counts,|× weights", "backward,|clip", "optimizer", "EMA of|weights"),
        ("every so many steps", "validation,|samples", "checkpoint: weights, averages,|optimizer, place in the data"),
    ]  # fmt: skip
    for i in range(len(phases)):
        d.rect(12, 12 + 114 * i, 536, 98, "#f8fafc", "#e2e8f0", radius=10)
    start = None
    for i, (title, *boxes) in enumerate(phases):
        top, x = 12 + 114 * i, 46.0
        d.heading(x, top + 17, title)
        for box in boxes:
            w = {2: 310 if "averages" in box else 150, 3: 144, 4: 104}[len(boxes)]
            y = top + 62
            if start:
                turn = [(start[0], start[1] - 2), (start[0], top - 8), (27, top - 8), (27, y)] if x == 46 else [start]
                d.line([*turn, (x, y)])
            d.box(x, top + 34, w, 56, "shared", *box.lstrip("*").split("|"))
            for k, tower in enumerate(TOWERS if box.startswith("*") else ()):
                d.rect(x + 9 + k * (w - 15) / 3, top + 84, (w - 18) / 3 - 3, 3, LINE[tower], radius=1.5)
            start = (x + w / 2, top + 92) if box == boxes[-1] else (x + w, y)
            x += w + (490 - {2: 460, 3: 432, 4: 416}[len(boxes)]) / (len(boxes) - 1)
    return d


def main(arguments: list[str]) -> int:
    drawings = [make() for make in (layer, routing, mask, packing, objectives, batch)]
    texts = {FOLDER / f"{drawing.name}.svg": drawing.content() for drawing in drawings}
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if "--check" in arguments:
            print(f"{path.name} is not what draw.py draws: run `python docs/images/diagrams/draw.py`")
        else:
            path.write_text(texts[path], encoding="utf-8")
    return int("--check" in arguments and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
