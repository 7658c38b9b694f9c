"""The layers of two public mixtures, from their own sources, over plait's step. Nothing of them is kept here.

    git clone https://github.com/facebookresearch/Mixture-of-Transformers ../playbook
    git clone https://github.com/ByteDance-Seed/Bagel ../bagel
    OMP_NUM_THREADS=1 python benchmarks/originals.py --playbook ../playbook --bagel ../bagel      (CPU: 2 minutes)

Both stand between an embedding and a head of this benchmark, of plait's width, depth and feed-forward, on the same
documents and with the same loss; two towers. benchmarks/patterns.py has the same ideas written anew with plait's
mathematics; here the code is theirs, with what has to be replaced before it runs:

playbook  src/ of Meta's release: `torch.nn.Linear` and `MultiheadAttention` are called with arguments that they do not
          have, and `merge_modalities` makes room for the first modality's tokens only. So linear layers take and forget
          `params_dtype`, attention is scaled_dot_product_attention with the dense mask that it is given, and merging
          makes room for all tokens. It has norms behind its layers and no rotation; residuals are added here.
bagel     modeling/bagel/qwen2_navit.py (training): flash_attn is imported and not called, and on a CPU, which lacks the
          attention kernel that it asks for, torch's own choice takes its place. Its parameters are in bfloat16, as it
          assigns one precision to the other; plait's stay in float32 under autocast and are cast in every step.

Rows: step_ratio/original-<name>/... is forward + backward over plait's.
"""

import argparse
import contextlib
import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from harness import Measurement, Row, paired, parsed, parser, ratio_row, run
from patterns import towers_of_tokens
from shapes import Case, Shape, dense_reference, sequence_loss
from step import TWO, Arm, case_of, mot_arm
from torch import Tensor, nn

from plait.common.errors import ConfigError

LAYER_FILES = {"playbook": "src/simple_ModalityUntiedAttention.py", "bagel": "modeling/bagel/qwen2_navit.py"}


class Playbook(nn.Module):
    """One layer of Meta's playbook on x [T, D]."""

    def __init__(self, case: Case):
        super().__init__()
        attention = importlib.import_module("src.simple_ModalityUntiedAttention")
        feed_forward = importlib.import_module("src.simple_ModalityUntiedFeedForward")
        attention.merge_modalities = feed_forward.merge_modalities = merged
        c = case.shape.config()
        with replaced(torch.nn, Linear=PlainLinear, MultiheadAttention=PlainAttention):
            self.attention = attention.SimpleModalityUntiedAttention(
                dim=c.width, head_dim=c.head_dim, n_heads=c.num_heads, dropout=0.0, qk_normalization=True
            )
            # its own rule takes two thirds of hidden_dim
            self.feed_forward = feed_forward.SimpleModalityUntiedFeedForward(
                dim=c.width, hidden_dim=c.towers["text"].ffn_width * 3 // 2, multiple_of=1
            )
        towers = towers_of_tokens(case.batch)
        self.masks = [(towers == k).to(case.device) for k in range(2)]
        document = torch.repeat_interleave(torch.arange(len(case.batch.lengths)), torch.tensor(case.batch.lengths))
        self.visible = (document[:, None] == document[None]).tril().to(case.device)

    def forward(self, x: Tensor) -> Tensor:
        """Add attention and feed-forward to x."""
        x = x + self.attention(x, self.visible, self.masks)[0]
        return x + self.feed_forward(x, self.masks)


class PlainLinear(nn.Linear):
    """A linear layer that takes the argument that the playbook gives it."""

    def __init__(self, *arguments, params_dtype: torch.dtype | None = None, **others):
        super().__init__(*arguments, **others)


class PlainAttention(nn.Module):
    """What the playbook calls MultiheadAttention: attention without projections, as it has its own."""

    def __init__(self, head_dim: int, n_heads: int, dropout: float):
        super().__init__()
        self.heads = n_heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor) -> tuple[Tensor, None]:
        """Attend: all [T, H d], attn_mask [T, T]. Returns [1, T, H d]."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(0, 1)[None] for x in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask).transpose(1, 2).flatten(2), None


def merged(outputs: list[Tensor], masks: list[Tensor]) -> Tensor:
    """Write each modality's rows where its tokens are, with room for all."""
    out = outputs[0].new_empty(masks[0].numel(), *outputs[0].shape[1:])
    for output, mask in zip(outputs, masks, strict=True):
        out[mask] = output
    return out


class Bagel(nn.Module):
    """One layer of BAGEL on x [T, D], in training."""

    def __init__(self, case: Case):
        super().__init__()
        navit = importlib.import_module("modeling.bagel.qwen2_navit")
        if case.device == "cpu":
            navit.sdpa_kernel = lambda backends: contextlib.nullcontext()
        c, lengths, device = case.shape.config(), case.batch.lengths, case.device
        config = navit.Qwen2Config(
            hidden_size=c.width, intermediate_size=c.towers["text"].ffn_width, num_attention_heads=c.num_heads,
            num_key_value_heads=c.num_kv_heads, num_hidden_layers=c.num_layers,
        )  # fmt: skip
        self.layer = navit.Qwen2MoTDecoderLayer(config, 0).to(torch.bfloat16)
        towers = towers_of_tokens(case.batch)
        own, other = (torch.nonzero(towers == k).squeeze(1).to(device) for k in range(2))
        cos, sin = dense_reference.angles(tuple(lengths), c.head_dim, c.rope_theta, torch.device(device))
        turned = tuple(torch.cat((side, side), -1).reshape(len(towers), -1).to(torch.bfloat16) for side in (cos, sin))
        masks = [torch.full((n, n), float("-inf"), device=device).triu(1) for n in lengths]
        self.given = dict(sample_lens=lengths, attention_mask=masks, packed_position_embeddings=turned,
                          packed_und_token_indexes=own, packed_gen_token_indexes=other)  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Pass x through the layer."""
        return self.layer(x, **self.given)


class Model(nn.Module):
    """Embedding, layers of an original, a norm and a head."""

    def __init__(self, case: Case, layer: Callable[[Case], nn.Module], dtype: torch.dtype):
        super().__init__()
        c = case.shape.config()
        self.embed = nn.Embedding(c.layout.size, c.width, dtype=dtype)
        self.blocks = nn.Sequential(*(layer(case) for _ in range(c.num_layers)))
        self.norm = nn.RMSNorm(c.width, dtype=dtype)
        self.head = nn.Linear(c.width, c.layout.size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [T]: the final hidden states [T, D]."""
        return self.norm(self.blocks(self.embed(ids)))


@contextlib.contextmanager
def replaced(owner, **values):
    """Set attributes for a while."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def reachable(name: str, folder: Path) -> None:
    """Make an original's modules importable; raises ConfigError where the folder is not its sources."""
    if not (folder / LAYER_FILES[name]).is_file():
        raise ConfigError(f"--{name}: {str(folder)!r} has no {LAYER_FILES[name]}; clone its repository there (--help)")
    sys.path.insert(0, str(folder.resolve()))
    if name == "bagel" and not importlib.util.find_spec("flash_attn"):
        stub = types.ModuleType("flash_attn")
        stub.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
        stub.flash_attn_varlen_func = None
        sys.modules["flash_attn"] = stub


def compare(case: Case, name: str, turns: int) -> list[Row]:
    """Return the row of one original."""
    bagel = name == "bagel"
    model = Model(case, Bagel if bagel else Playbook, torch.bfloat16 if bagel else torch.float32).to(case.device)

    def loss() -> Tensor:
        with torch.autocast(case.device, enabled=False) if bagel else contextlib.nullcontext():
            hidden = model(case.plain.ids)
        return sequence_loss(hidden, model.head.weight, case.plain)

    arms = {"plait": mot_arm(case).phases[:1], name: Arm(case, model, loss).phases[:1]}
    times = paired(arms, turns=turns, device=case.device)
    return [ratio_row(f"step_ratio/original-{name}/{case.name}", times[name][0], times["plait"][0], against="plait")]


def measurements(options: argparse.Namespace) -> list[Measurement]:
    """Return the comparison with each original whose folder is given."""
    if options.grid == "tiny":
        shape = Shape(64, 256, TWO, layers=1, vocabulary=240)
    else:
        shape = Shape(256, 4096, TWO) if options.grid == "cpu" else Shape(1024, 4096, TWO, vocabulary=16384)
    comparisons = []
    for name, dtype in (("playbook", "float32"), ("playbook", "bfloat16"), ("bagel", "bfloat16")):
        folder = getattr(options, name)
        if folder is None:
            continue
        reachable(name, folder)

        def measure(name=name, dtype=dtype) -> list[Row]:
            return compare(case_of(options, shape, dtype, "eager"), name, options.turns)

        comparisons.append(Measurement([f"step_ratio/original-{name}/{shape}/{dtype}/eager"], measure))
    return comparisons


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is that of `harness.run`."""
    command = parser(__doc__, turns=5)
    command.add_argument("--playbook", type=Path, help="a clone of facebookresearch/Mixture-of-Transformers")
    command.add_argument("--bagel", type=Path, help="a clone of ByteDance-Seed/Bagel")
    options = parsed(command, arguments)
    if options.playbook is None and options.bagel is None:
        command.error("name at least one of --playbook and --bagel")
    return run(measurements(options), options)


if __name__ == "__main__":
    sys.exit(main())
