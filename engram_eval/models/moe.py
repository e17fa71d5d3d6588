"""Feed-forward layers: SwiGLU (arXiv:2002.05202) and a dropless mixture of SwiGLU experts.

Routing follows DeepSeek-V3 (arXiv:2412.19437): sigmoid scores, and a bias per expert that is added
for the choice of experts only; ``balance`` moves it.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .configuration_engram import EngramConfig
from .grouped_experts import (
    BLOCK,
    experts_by_kernel,
    fits_grouped_kernel,
    grouped_experts,
)
from .hooks import is_unhooked
from .linear import Linear, is_plain
from .native_routing import NativeRouting, Routed, routing_for, top_k
from .precision import as_operand, widened
from .swiglu import swiglu, swiglu_layer


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size)
        self.up_proj = Linear(hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform ``x`` (..., D)."""
        x, weights = as_operand(x), self.plain_weights()
        output = swiglu_layer(x, *weights) if weights else None
        if output is not None:
            return output
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))

    def plain_weights(self) -> tuple[torch.Tensor, ...]:
        """Return the weights of gate, up (F, D) and down (D, F); none if more than they decides."""
        parts = self.gate_proj, self.up_proj, self.down_proj
        return tuple(p.weight for p in parts) if all(is_plain(part) for part in parts) else ()


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
        routed = self._by_kernel(hidden_states)
        if routed is not None:
            self.last_logits = routed[0].detach()
            return routed
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

    def _by_kernel(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Return what ``forward`` does in one compiled pass each way, where there is one."""
        bias = self.e_score_correction_bias
        plain = self.scoring == "sigmoid" and self.groups == 1
        types = {each.dtype for each in (x, self.weight, bias)}
        routing = routing_for(x, self.weight, bias) if plain and types == {torch.float32} else None
        if routing is None:
            return None
        manner = self.top_k, self.norm_topk_prob, self.routed_scaling_factor
        routed: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _Route.apply(
            x, self.weight, bias, *manner, routing
        )
        return routed

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


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        top_k: int,
        normalised: bool,
        scale: float,
        routing: NativeRouting,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
        made = routing.route(x, weight, bias, top_k, normalised, scale)
        ctx.save_for_backward(x, weight, *made)
        ctx.routing, ctx.manner = routing, (normalised, scale)
        ctx.mark_non_differentiable(made.chosen)
        ctx.set_materialize_grads(False)
        return made.logits, made.weights, made.chosen

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logits: torch.Tensor | None, grad: torch.Tensor | None, _: None
    ) -> tuple[torch.Tensor | None, ...]:
        x, weight, *made = ctx.saved_tensors
        routed = Routed(*made)
        given = torch.zeros_like(routed.weights) if grad is None else grad.contiguous()
        logits = None if grad_logits is None else grad_logits.contiguous()
        grads = ctx.routing.route_backward(given, logits, x, weight, routed, *ctx.manner)
        return *grads, None, None, None, None, None


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
        if _are_padded(x, chosen, counts):
            return self._padded(x, weights, chosen, counts, int(counts.max()))
        by_kernel = experts_by_kernel(x, weights, chosen, self.gate_up_proj, self.down_proj, counts)
        if by_kernel is not None:
            return by_kernel
        gate_up, down = (widened(as_operand(each)) for each in (self.gate_up_proj, self.down_proj))
        return grouped_experts(widened(x), weights, chosen, gate_up, down, counts).to(x.dtype)

    def with_shared(
        self,
        shared: SwiGLU,
        x: torch.Tensor,
        weights: torch.Tensor,
        chosen: torch.Tensor,
        counts: torch.Tensor,
    ) -> torch.Tensor | None:
        """Return ``self(x, ...) + shared(x)`` if compiled functions can make it at once."""
        unhooked = is_unhooked(self) and is_unhooked(shared)
        beside = shared.plain_weights() if unhooked else ()
        if not beside or _are_padded(x, chosen, counts):
            return None
        own = self.gate_up_proj, self.down_proj
        return experts_by_kernel(x, weights, chosen, *own, counts, beside)

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


def _are_padded(x: torch.Tensor, chosen: torch.Tensor, counts: torch.Tensor) -> bool:
    few = chosen.numel() <= 2 * len(counts)
    return not fits_grouped_kernel(x) and (few or _are_few_on_a_cpu(counts))


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

    def forward(
        self, hidden_states: torch.Tensor, operand: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Transform ``hidden_states`` (B, T, D).

        Args:
            hidden_states: what the router reads.
            operand: the same in autocast's type, if it exists already.
        """
        flat = hidden_states.flatten(0, -2)
        _, weights, chosen = self.gate(flat)
        counts = expert_counts(chosen, len(self.gate.weight))
        self.last_expert_counts = counts
        x = as_operand(flat) if operand is None else operand.flatten(0, -2)
        output = self._experts(x, weights, chosen, counts)
        return output.view_as(hidden_states).to(x.dtype)

    def _experts(self, x: torch.Tensor, *routed: torch.Tensor) -> torch.Tensor:
        """Return the sum of routed and shared experts' outputs for ``x`` (N, D)."""
        shared, output = self.shared_experts, None
        # What others put in their place knows how to be called, and no more.
        if type(self.experts) is Experts and type(shared) is SwiGLU:
            output = self.experts.with_shared(shared, x, *routed)
        if output is None:
            output = self.experts(x, *routed)
            output = output if shared is None else output + shared(x)
        return output
