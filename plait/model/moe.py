"""Feed-forward networks: SwiGLU, and a mixture of SwiGLU experts as one tower's network.

Shapes: N rows of a tower (padding included), D width, F hidden size, E experts, C rows an expert takes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.config.model import TowerConfig
from plait.model.layers import ZEROS, Linear, is_idle
from plait.model.ranks import local
from plait.model.traits import Trait


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, *, gain: float = 1.0):
        """``gain`` scales the first values of what is written to the residual stream."""
        super().__init__()
        self.gate = Linear(width, hidden, bias=False, cut="outputs")
        self.up = Linear(width, hidden, bias=False, cut="outputs")
        self.down = Linear(hidden, width, bias=False, gain=gain, cut="inputs")

    def forward(self, x: Tensor, num_tokens: Tensor | None = None) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class ExpertWeight(nn.Module):
    """The weights of all experts of one projection, stacked: [E, in, out]."""

    def __init__(self, num_experts: int, fan_in: int, fan_out: int, *, cut: int, gain: float = 1.0):
        super().__init__()
        self.traits = {"weight": Trait("normal", fan_in**-0.5 * gain, is_matrix=True, cut=cut)}
        self.weight = nn.Parameter(torch.empty(num_experts, fan_in, fan_out))


class MixtureOfExperts(nn.Module):
    """Experts chosen by a router; no step asks the device for a size.

    - expert_choice (arXiv 2202.09368): each expert takes its C = top_k * N / E best rows. It compares tokens of the
      whole batch, so it sees the future and cannot generate.
    - token_choice: each token goes to its top_k experts, none dropped, gates normalised over the chosen if they are
      several. A bias per expert, moved against the load after each optimizer step, balances without an auxiliary loss
      (arXiv 2408.15664), so that gradients do not depend on how a batch is cut.
    """

    expert_bias: Tensor
    tokens_per_expert: Tensor

    def __init__(self, width: int, config: TowerConfig, *, gain: float = 1.0):
        super().__init__()
        self.traits = {"expert_bias": ZEROS}
        self.num_experts, self.top_k = config.num_experts, config.top_k
        self.routing = config.moe_routing
        hidden = config.ffn_width
        self.router = Linear(width, self.num_experts, bias=False)
        self.gate = ExpertWeight(self.num_experts, width, hidden, cut=2)
        self.up = ExpertWeight(self.num_experts, width, hidden, cut=2)
        self.down = ExpertWeight(self.num_experts, hidden, width, cut=1, gain=gain)
        self.register_buffer("expert_bias", torch.zeros(self.num_experts))
        self.register_buffer("tokens_per_expert", torch.zeros(self.num_experts), persistent=False)

    def forward(self, x: Tensor, is_token: Tensor) -> Tensor:
        """x [N, D]; ``is_token`` [N] is false on padding rows, which are routed nowhere. Returns [N, D]."""
        if is_idle(x):
            return x
        with torch.autocast(x.device.type, enabled=False):  # in 16 bits some tokens would go to other experts
            scores = self.router(x if x.dtype == torch.float64 else x.float())
        if self.routing == "expert_choice":
            return self._expert_choice(x, scores.softmax(-1), is_token)
        return self._token_choice(x, scores.sigmoid(), is_token)

    def _expert_choice(self, x: Tensor, scores: Tensor, is_token: Tensor) -> Tensor:
        capacity = min(x.shape[0], max(1, x.shape[0] * self.top_k // self.num_experts))
        gates, rows = scores.masked_fill(~is_token[:, None], 0.0).topk(capacity, dim=0)  # C E
        taken = x.index_select(0, rows.T.flatten()).unflatten(0, (self.num_experts, capacity))  # E C D
        gate, up, down = (local(side.weight) for side in (self.gate, self.up, self.down))
        y = torch.bmm(F.silu(torch.bmm(taken, gate)) * torch.bmm(taken, up), down) * gates.T[:, :, None]
        return torch.zeros_like(x).index_add(0, rows.T.flatten(), y.flatten(0, 1).to(x.dtype))

    def _token_choice(self, x: Tensor, scores: Tensor, is_token: Tensor) -> Tensor:
        chosen = (scores + self.expert_bias.to(scores.dtype)).topk(self.top_k, dim=-1).indices  # N K
        gates = scores.gather(1, chosen)
        if self.top_k > 1:  # a single gate divided by itself is 1, whatever the router says
            gates = gates / gates.sum(-1, keepdim=True)
        gates = gates * is_token[:, None]
        flat = chosen.flatten()
        if torch.is_grad_enabled():  # evaluation and generation do not move the balance
            tokens = is_token.repeat_interleave(self.top_k).to(self.tokens_per_expert.dtype)
            self.tokens_per_expert.index_add_(0, flat, tokens)
        order = flat.argsort(stable=True)
        counts = torch.zeros(self.num_experts, dtype=torch.int32, device=x.device)
        counts = counts.index_add(0, flat, torch.ones_like(flat, dtype=torch.int32))
        ends = counts.cumsum(0, dtype=torch.int32)
        taken = x.index_select(0, order // self.top_k)
        gate, up, down = (local(side.weight) for side in (self.gate, self.up, self.down))
        hidden = F.silu(grouped_matmul(taken, gate, ends)) * grouped_matmul(taken, up, ends)
        y = grouped_matmul(hidden, down, ends) * gates.flatten().index_select(0, order)[:, None]
        return torch.zeros_like(x).index_add(0, order // self.top_k, y.to(x.dtype))

    @torch.no_grad()
    def update_balance(self, rate: float, skipped: Tensor | None = None) -> None:
        """Move each expert's bias by ``rate`` against its load since the last call (its counts summed over ranks).

        ``skipped`` [] is 1 where the step was skipped, on the device: then the bias stays.
        """
        load = self.tokens_per_expert
        step = rate if skipped is None else rate * (1 - skipped)
        self.expert_bias += step * torch.sign(load.mean() - load)
        self.tokens_per_expert.zero_()


def grouped_matmul(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply rows [ends[e-1], ends[e]) of x [N, I] by weight[e], weight [E, I, O]. Group sizes stay on the device.

    torch's grouped_mm knows no float64 and wants 16-byte strides; there every expert multiplies all rows, which is
    exact and meant for tests.
    """
    aligned = all(size * x.element_size() % 16 == 0 for size in weight.shape[1:])
    if (
        x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and aligned
        and not torch.is_autocast_enabled(x.device.type)
    ):
        return F.grouped_mm(x, weight.to(x.dtype), offs=ends)
    if torch.is_autocast_enabled(x.device.type) and aligned:
        dtype = torch.get_autocast_dtype(x.device.type)
        return F.grouped_mm(x.to(dtype), weight.to(dtype), offs=ends)
    group = torch.searchsorted(ends, torch.arange(x.shape[0], device=x.device, dtype=ends.dtype), right=True)
    pieces = [(x @ weight[e]) * (group == e)[:, None] for e in range(weight.shape[0])]
    return sum(pieces[1:], pieces[0])
