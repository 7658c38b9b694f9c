"""plait's step against three public ways to route tokens to towers, in one run; each is written here anew.

    OMP_NUM_THREADS=1 python benchmarks/patterns.py             (CPU: about 4 minutes)

boolean-masks      a boolean mask [T] for each modality; every layer takes x[mask] for each projection group and
                   writes results back by mask. So the layers of Meta's playbook do it
                   (github.com/facebookresearch/Mixture-of-Transformers, README and src/).
boolean-masks-whole  the same with the playbook's one dense attention mask [T, T] over the packed documents.
index-lists        a list of token indices for each tower, gathered and scattered in every layer, as in BAGEL
                   (arXiv 2505.14683; github.com/ByteDance-Seed/Bagel, modeling/bagel/qwen2_navit.py).
separate-streams   each tower has a padded tensor [B, L, D] of its own; attention joins them with torch.cat and splits
                   its output again, as in Stable Diffusion 3 (MM-DiT, arXiv 2403.03206, figure 2) and Flux. Documents
                   are not packed: each is a row, as long as the longest.

All have plait's parameters and mathematics (tests/benchmarks/test_benchmarks.py compares hidden states in float64), the
same loss, and are favoured where their sources are not: one matrix for queries, keys and values, and, but for the whole
playbook and the streams, attention that never sees two documents at once. Rows: step_ratio/<pattern>/... is the
pattern's forward + backward over plait's.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from harness import Measurement, Row, paired, parsed, parser, ratio_row, run
from shapes import Case, Shape, dense_reference, sequence_loss
from step import THREE, TWO, Arm, case_of, mot_arm
from torch import Tensor, nn

from plait.batch.batch import Batch


class Layer(nn.Module):
    """One layer with a block of parameters for each tower, on the packed sequence.

    ``places`` says for each tower where its tokens are: booleans [T] or indices [n_k].
    """

    def __init__(self, num_towers: int, *shape):
        super().__init__()
        self.towers = nn.ModuleList(dense_reference.DenseBlock(*shape) for _ in range(num_towers))

    def forward(self, x: Tensor, places: list[Tensor], cos: Tensor, sin: Tensor, attend) -> Tensor:
        projected = [tower.project(tower.attention_norm(x[at])) for tower, at in zip(self.towers, places, strict=True)]
        q, k, v = (self.merged(list(side), places) for side in zip(*projected, strict=True))
        out = attend(dense_reference.turn(q, cos, sin), dense_reference.turn(k, cos, sin), v).flatten(1)
        x = x + self.merged([tower.o(out[at]) for tower, at in zip(self.towers, places, strict=True)], places)
        update = [tower.ffn(tower.ffn_norm(x[at])) for tower, at in zip(self.towers, places, strict=True)]
        return x + self.merged(update, places)

    def merged(self, pieces: list[Tensor], places: list[Tensor]) -> Tensor:
        """Write each tower's rows where its tokens are."""
        total = places[0].numel() if places[0].dtype == torch.bool else sum(map(len, places))
        out = pieces[0].new_empty(total, *pieces[0].shape[1:])
        for piece, at in zip(pieces, places, strict=True):
            out[at] = piece
        return out


class StreamLayer(Layer):
    """One layer on separate streams [B, L_k, D]; ``mask`` [B, 1, L, L] is that of the joined sequence."""

    def forward(self, streams: list[Tensor], cos: Tensor, sin: Tensor, mask: Tensor) -> list[Tensor]:
        projected = [tower.project(tower.attention_norm(x)) for tower, x in zip(self.towers, streams, strict=True)]
        q, k, v = (torch.cat(side, 1) for side in zip(*projected, strict=True))
        q, k = dense_reference.turn(q, cos, sin), dense_reference.turn(k, cos, sin)
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask)
        out = out.transpose(1, 2).flatten(2).split([x.shape[1] for x in streams], 1)
        streams = [x + tower.o(y) for tower, x, y in zip(self.towers, streams, out, strict=True)]
        return [x + tower.ffn(tower.ffn_norm(x)) for tower, x in zip(self.towers, streams, strict=True)]


class PatternModel(nn.Module):
    """Embedding, layers of one pattern, a last norm for each tower, one head; MHA, since the streams know no other."""

    def __init__(self, case: Case, pattern: str):
        super().__init__()
        c, batch = case.shape.config(), case.batch
        layer = StreamLayer if pattern == "separate-streams" else Layer
        shape = (c.width, c.num_heads, c.num_heads, c.head_dim, c.towers["text"].ffn_width, True, c.norm_eps)
        self.embed = nn.Embedding(c.layout.size, c.width)
        self.blocks = nn.ModuleList(layer(len(c.towers), *shape) for _ in range(c.num_layers))
        self.final_norms = nn.ModuleList(dense_reference.Norm(c.width, c.norm_eps) for _ in c.towers)
        self.head = nn.Linear(c.width, c.layout.size, bias=False)
        towers = towers_of_tokens(batch).cpu()
        self.places = [torch.nonzero(towers == k).squeeze(1).to(case.device) for k in range(len(c.towers))]
        if pattern.startswith("boolean-masks"):
            self.places = [(towers == k).to(case.device) for k in range(len(c.towers))]
        cos, sin = dense_reference.angles(tuple(batch.lengths), c.head_dim, c.rope_theta, batch.ids.device)
        dtype = torch.get_default_dtype()
        self.cos, self.sin = cos.to(dtype), sin.to(dtype)
        self.attend = one_dense_mask(batch.lengths, case.device) if pattern.endswith("whole") else case.attention()
        self.streams = Streams(towers, batch.lengths, case.device) if pattern == "separate-streams" else None

    def forward(self, ids: Tensor) -> Tensor:
        """ids [T]: the final hidden states [T, D] in sequence order."""
        x = self.embed(ids)
        if self.streams is not None:
            return self.streams_forward(x)
        for block in self.blocks:
            x = block(x, self.places, self.cos, self.sin, self.attend)
        last = [norm(x[at]) for norm, at in zip(self.final_norms, self.places, strict=True)]
        return self.blocks[0].merged(last, self.places)

    def streams_forward(self, x: Tensor) -> Tensor:
        """The same on separate streams."""
        s = self.streams
        streams = [x[tokens] for tokens in s.tokens]
        cos, sin = self.cos[s.joined], self.sin[s.joined]
        for block in self.blocks:
            streams = block(streams, cos, sin, s.mask)
        last = [norm(x) for norm, x in zip(self.final_norms, streams, strict=True)]
        return torch.cat(last, 1).flatten(0, 1)[s.back]


class Streams:
    """Where separate streams hold the tokens of packed documents, and what the joined sequence may see."""

    def __init__(self, towers: Tensor, lengths: list[int], device: str):
        """``towers`` [T]: the tower of each token, on the CPU."""
        documents = torch.arange(len(towers)).split(lengths)
        own = [[d[towers[d] == k] for d in documents] for k in range(int(towers.max()) + 1)]
        padded = [nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1) for rows in own]
        joined = torch.cat(padded, 1)  # [B, L], -1 where there is no token
        is_token = joined >= 0
        # rows without a token see everything: a row that sees nothing has no softmax
        mask = (joined[:, :, None] >= joined[:, None, :]) & is_token[:, None, :] | ~is_token[:, :, None]
        back = torch.empty(len(towers), dtype=torch.long)
        back[joined[is_token]] = torch.nonzero(is_token.flatten()).squeeze(1)
        self.tokens = [t.clamp_min(0).to(device) for t in padded]
        self.joined, self.mask, self.back = joined.clamp_min(0).to(device), mask[:, None].to(device), back.to(device)


def towers_of_tokens(batch: Batch) -> Tensor:
    """Return the tower of each token [T]."""
    ends = torch.tensor(batch.routing.padded_sizes).cumsum(0)
    return torch.searchsorted(ends, batch.routing.to_sequence.cpu(), right=True)


def one_dense_mask(lengths: list[int], device: str):
    """Return attention of packed causal documents with one boolean mask [T, T]."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = ((document[:, None] == document[None]).tril()).to(device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)

    return attend


def pattern_arm(case: Case, pattern: str) -> Arm:
    """Return a pattern's model as an arm."""
    model = PatternModel(case, pattern).to(case.device)
    if case.mode == "compiled":
        for block in model.blocks:
            block.compile(dynamic=True)
    return Arm(case, model, lambda: sequence_loss(model(case.plain.ids), model.head.weight, case.plain))


def compare(case: Case, patterns: Sequence[str], turns: int) -> list[Row]:
    """Return the patterns' rows: their forward + backward over plait's."""
    arms = {"plait": mot_arm(case).phases[:1]}
    arms |= {pattern: pattern_arm(case, pattern).phases[:1] for pattern in patterns}
    times = paired(arms, turns=turns, device=case.device)
    return [ratio_row(f"step_ratio/{p}/{case.name}", times[p][0], times["plait"][0], against="plait") for p in patterns]


PATTERNS = ("boolean-masks", "index-lists", "separate-streams")
WHOLE = "boolean-masks-whole"


def grid(name: str) -> list[tuple[Shape, str, str, tuple[str, ...]]]:
    """Return shape, dtype, mode and patterns of each comparison."""
    if name == "tiny":
        return [(Shape(64, 256, TWO, layers=1, vocabulary=240), "float32", "eager", (*PATTERNS, WHOLE))]
    if name == "cpu":
        return [
            (Shape(256, 4096, TWO), "float32", "eager", (*PATTERNS, WHOLE)),
            (Shape(256, 4096, TWO), "bfloat16", "eager", (WHOLE,)),
            (Shape(256, 1024, THREE), "float32", "eager", PATTERNS),
            (Shape(256, 2048, TWO), "bfloat16", "eager", PATTERNS),
        ]
    big, small = (Shape(w, t, TWO, vocabulary=16384) for w, t in ((2048, 32768), (1024, 4096)))
    return [(big, "bfloat16", "compiled", PATTERNS[:2]), (small, "bfloat16", "compiled", (*PATTERNS, WHOLE)),
            (big, "bfloat16", "eager", PATTERNS), (small, "bfloat16", "eager", (*PATTERNS, WHOLE))]  # fmt: skip


def measurements(options: argparse.Namespace) -> list[Measurement]:
    """Return the comparisons of the grid."""

    def compared(patterns: Sequence[str], *case) -> Measurement:
        names = [f"step_ratio/{p}/{'/'.join(map(str, case))}" for p in patterns]
        return Measurement(names, lambda: compare(case_of(options, *case), patterns, options.turns))

    comparisons = []
    for *case, patterns in grid(options.grid):
        # compiled ones each by itself: where the compiler gives up on one, it would not try the next
        groups = [(p,) for p in patterns] if case[-1] == "compiled" else [patterns]
        comparisons += [compared(group, *case) for group in groups]
    return comparisons


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is that of `harness.run`."""
    options = parsed(parser(__doc__, turns=5), arguments)
    return run(measurements(options), options)


if __name__ == "__main__":
    sys.exit(main())
