"""Feed-forward layers: SwiGLU (arXiv:2002.05202) and a dropless mixture of SwiGLU experts.

Routing follows DeepSeek-V3 (arXiv:2412.19437): sigmoid scores, and a bias per expert that is added
for the choice of experts only; ``balance`` moves it.
"""

import torch
from torch import nn

from .configuration_engram import EngramConfig
from .grouped_experts import BLOCK, fits_grouped_kernel, grouped_experts
from .native_routing import top_k
from .precision import as_operand
from .swiglu import swiglu


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform ``x`` (..., D)."""
        x = as_operand(x)
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Router(nn.Module):
    """Chooses ``num_experts_per_tok`` experts for each token.

    Attributes:
        last_logits: (N, E) of the last forward pass, without a graph.
    """

    e_score_correction_bias: torch.Tensor

    def __init__(self, config: EngramConfig) -> None:
        super().__init__()
        self.top_k, self.scoring = config.num_experts_per_tok, config.router_scoring
        self.norm_topk_prob = config.norm_topk_prob
        self.groups, self.top_groups = config.n_group, config.topk_group
        self.routed_scaling_factor = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.zeros(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))
        self.last_logits: torch.Tensor | None = None

    def forward(
        self, hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Route ``hidden_states`` (N, D).

        Returns:
            logits (N, E), weights (N, K) and expert numbers (N, K).
        """
        wide = torch.promote_types(hidden_states.dtype, torch.float32)
        # Near-equal scores would flip with half precision, and with them the experts.
        with torch.autocast(hidden_states.device.type, enabled=False):
            logits = nn.functional.linear(hidden_states.to(wide), self.weight.to(wide))
        self.last_logits = logits.detach()
        scores = self._scores(logits)
        biased = self._in_best_groups(scores.detach() + self.e_score_correction_bias)
        chosen = top_k(biased, self.top_k)
        weights = scores.gather(1, chosen)
        if self.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return logits, weights * self.routed_scaling_factor, chosen

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the scores of ``logits`` (N, E), scaled to sum to one for each token."""
        scores = self._scores(logits)
        return scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid() if self.scoring == "sigmoid" else logits.softmax(dim=-1)

    def _in_best_groups(self, scores: torch.Tensor) -> torch.Tensor:
        """Put minus infinity for experts (N, E) outside the groups with the two best experts."""
        if self.groups == 1:
            return scores
        grouped = scores.unflatten(-1, (self.groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.top_groups, dim=-1).indices
        outside = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, False)
        return grouped.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(-2)


class Experts(nn.Module):
    """All routed experts, stacked: ``gate_up_proj`` (E, D, 2F) and ``down_proj`` (E, F, D)."""

    is_transposed = True

    def __init__(self, config: EngramConfig) -> None:
        super().__init__()
        experts, width = config.n_routed_experts, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.zeros(experts, config.hidden_size, 2 * width))
        self.down_proj = nn.Parameter(torch.zeros(experts, width, config.hidden_size))

    def forward(
        self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor:
        """Send each token of ``x`` (N, D) to its ``chosen`` (N, K) experts and add their outputs.

        Few tokens run as one batched product, padded to the fullest expert's load; otherwise each
        expert multiplies its own slice, which CPUs would pad to more. Both give the same numbers.

        Args:
            x: (N, D).
            weights: (N, K) factors of the outputs.
            chosen: (N, K) expert numbers.
            counts: (E,) tokens of each expert.
        """
        x = as_operand(x)
        few = chosen.numel() <= 2 * len(counts)
        if not fits_grouped_kernel(x) and (few or _are_few_on_a_cpu(counts)):
            return self._padded(x, weights, chosen, counts, int(counts.max()))
        gate_up, down = as_operand(self.gate_up_proj), as_operand(self.down_proj)
        return grouped_experts(x, weights, chosen, gate_up, down, counts)

    def _padded(
        self,
        x: torch.Tensor,
        weights: torch.Tensor,
        chosen: torch.Tensor,
        counts: torch.Tensor,
        capacity: int,
    ) -> torch.Tensor:
        """Run all experts in two batched products over (E, capacity, D)."""
        order, experts = _by_expert(chosen)
        place = torch.arange(len(order), device=x.device) - (counts.cumsum(0) - counts)[experts]
        place = place + experts * capacity
        source = torch.full((len(counts) * capacity,), len(x), device=x.device)
        source[place] = order // chosen.shape[1]
        rows = nn.functional.embedding(source, nn.functional.pad(as_operand(x), (0, 0, 0, 1)))
        rows = rows.unflatten(0, (len(counts), capacity))
        inner = swiglu(*torch.bmm(rows, self.gate_up_proj).chunk(2, dim=-1))
        outer = torch.bmm(inner, self.down_proj).flatten(0, 1)
        back = torch.empty_like(order).index_copy_(0, order, place)
        return _combine(outer.index_select(0, back), weights)


def _are_few_on_a_cpu(counts: torch.Tensor) -> bool:
    return counts.device.type == "cpu" and int(counts.max()) <= BLOCK


def expert_counts(chosen: torch.Tensor, experts: int) -> torch.Tensor:
    """Return how many of ``chosen`` (N, K) each expert got, (E,) int64."""
    flat = chosen.flatten()
    # ``bincount`` makes the CPU wait for a GPU, to learn the largest number.
    return flat.new_zeros(experts).scatter_add_(0, flat, torch.ones_like(flat))


def _by_expert(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the flat (token, choice) pairs sorted by expert, and each one's expert."""
    experts, order = chosen.flatten().sort(stable=True)
    return order, experts


def _combine(outputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Add a token's K expert outputs: (N * K, D) and (N, K) -> (N, D)."""
    return (outputs.unflatten(0, weights.shape) * weights.unsqueeze(-1)).sum(dim=1)


class MoE(nn.Module):
    """Routed experts plus one shared expert (none where its width is 0).

    Attributes:
        last_expert_counts: (E,) int64, tokens that each expert got in the last forward pass.
    """

    def __init__(self, config: EngramConfig) -> None:
        super().__init__()
        self.gate, self.experts = Router(config), Experts(config)
        shared = config.shared_expert_intermediate_size
        self.shared_experts = SwiGLU(config.hidden_size, shared) if shared else None
        self.last_expert_counts: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform ``hidden_states`` (B, T, D)."""
        flat = hidden_states.flatten(0, -2)
        _, weights, chosen = self.gate(flat)
        counts = expert_counts(chosen, len(self.gate.weight))
        self.last_expert_counts = counts
        x = as_operand(flat)
        output = self.experts(x, weights, chosen, counts)
        if self.shared_experts is not None:
            output = output + self.shared_experts(x)
        return output.view_as(hidden_states).to(hidden_states.dtype)
