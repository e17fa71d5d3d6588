"""Muon for the hidden matrices, AdamW for all else (arXiv:2502.16982).

Muon moves a matrix by its momentum made orthogonal. ``torch.optim.Muon`` does so for single
matrices and refuses stacks of them; experts lie in one tensor (E, D, F), so their update is written
out here, all experts of a tensor at once, and so is that of matrices that are spread over
processes. All scale an update to the size that AdamW's has (``match_rms_adamw``), so that one
learning rate and one weight decay serve all parameters.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engram_eval.models.moe import Experts
from engram_eval.training.row_optim import AdamWWithRows, RowAdamW

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, as in ``torch.optim.Muon``."""
ITERATIONS = 5
SMALLEST_NORM = 1e-7
HEAD = "lm_head"

AdamWMaker = Callable[[list[dict[str, Any]]], torch.optim.AdamW]


def hidden_matrices(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that Muon is for.

    Weights of linear layers and experts; neither embedding, head, router nor table, nor what is
    no matrix.
    """
    return {
        id(parameter)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Experts) and name.rpartition(".")[2] != HEAD
        for parameter in module.parameters(recurse=False)
        if parameter.ndim >= 2
    }


def orthogonal(stack: Tensor) -> Tensor:
    """Return the nearest orthogonal matrix to each of ``stack`` (..., A, B), about, in bfloat16.

    Five steps of a Newton-Schulz iteration that brings singular values near 1 (0.7 to 1.2); a
    matrix of zeros stays one.
    """
    a, b, c = COEFFICIENTS
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.bfloat16().reshape(-1, *stack.shape[-2:])
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(stack.shape)


class StackedMuon(torch.optim.Optimizer):
    """``torch.optim.Muon`` for stacks of matrices (E, A, B), each with an update of its own.

    Also for what FSDP2 has spread over processes by the first dimension: whole experts lie in one
    process, which moves them; a matrix is put together in every process for its update.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        momentum, rate = group["momentum"], group["lr"]
        buffer = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        update = _own_update(grad.lerp(buffer, momentum))
        mine: Any = parameter
        if _is_spread(parameter):
            mine = mine.to_local()
        mine.mul_(1 - rate * group["weight_decay"])
        mine.add_(update, alpha=-rate * 0.2 * math.sqrt(max(parameter.shape[-2:])))


def _is_spread(tensor: Tensor) -> bool:
    """Tell a ``DTensor``; importing its class takes a second, which one process need not wait."""
    return hasattr(tensor, "full_tensor")


def _own_update(momentum: Any) -> Tensor:
    """Return ``orthogonal`` of a momentum, and of a spread one the part of this process."""
    if not _is_spread(momentum):
        return orthogonal(momentum)
    if momentum.ndim == 3:
        return orthogonal(momentum.to_local())
    mesh = momentum.device_mesh
    parts = orthogonal(momentum.full_tensor()).chunk(mesh.size())
    rank = mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else parts[0][:0]


class Together(torch.optim.Optimizer):
    """Several optimisers as one: their groups one after the other, and one state.

    Attributes:
        rows: of tables that are no parameters, where a part trains some.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        self.rows: dict[str, RowAdamW] = {}
        for part in parts:
            part.state = self.state
            if isinstance(part, AdamWWithRows):
                self.rows |= part.rows

    def step(self, closure: Any = None) -> Any:
        """Take a step with each of them."""
        assert closure is None
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, and which rows were read."""
        for part in self.parts:
            part.zero_grad(set_to_none)


def with_muon(
    groups: Sequence[dict[str, Any]], hidden: set[int], lr: float, adamw: AdamWMaker
) -> Together:
    """Give the ``hidden`` matrices to Muon, and everything else to AdamW.

    Args:
        groups: as ``optim.parameter_groups`` returns them.
        hidden: ids of parameters.
        lr: the backbone's rate.
        adamw: makes AdamW over the groups that it is given.
    """
    parts: list[torch.optim.Optimizer] = []
    single = _only(groups, lambda p: id(p) in hidden and p.ndim == 2 and not _is_spread(p))
    if single:
        size = "match_rms_adamw"
        parts.append(torch.optim.Muon(single, lr=lr, momentum=MOMENTUM, adjust_lr_fn=size))
    stacked = _only(groups, lambda p: id(p) in hidden and (p.ndim == 3 or _is_spread(p)))
    if stacked:
        parts.append(StackedMuon(stacked, lr, MOMENTUM))
    return Together([*parts, adamw(_only(groups, lambda p: id(p) not in hidden))])


def _only(
    groups: Sequence[dict[str, Any]], wanted: Callable[[Tensor], bool]
) -> list[dict[str, Any]]:
    """Return the groups with the wanted parameters alone; what is then empty is left out."""
    kept = [{**group, "params": [p for p in group["params"] if wanted(p)]} for group in groups]
    return [group for group in kept if group["params"]]
