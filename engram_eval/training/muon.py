"""Muon for the hidden matrices, AdamW for all else (arXiv:2502.16982).

Muon moves a matrix by its momentum made orthogonal. This is what ``torch.optim.Muon`` does, for
more than single matrices, which is all that it takes: experts lie in one tensor (E, D, F); many
small matrices of one shape take a seventh of the time together; and some are spread over processes.
An update is scaled to the size that AdamW's has (``match_rms_adamw``), so that one learning rate
and one weight decay serve all parameters.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
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
LARGE = 2**18
"""Numbers in a matrix from which on it is multiplied by itself."""
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


def orthogonal(x: Tensor) -> Tensor:
    """Return the nearest orthogonal matrix to each of ``x`` (..., A, B), about, in bfloat16.

    Five steps of a Newton-Schulz iteration that brings singular values near 1 (0.7 to 1.2); a
    matrix of zeros stays one. One matrix, or a stack of them.
    """
    a, b, c = COEFFICIENTS
    add_product = torch.addmm if x.ndim == 2 else torch.baddbmm
    tall = x.shape[-2] > x.shape[-1]
    x = x.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = add_product(x, add_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def orthogonal_each(tensors: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Yield places and ``orthogonal`` of tensors (..., A, B); small matrices of a shape together.

    Each of those on its own is mostly spent on calling: twelve of 64 x 64 took 6.9 ms, and 0.95 as
    a stack. Large ones gain nothing.
    """
    alike: dict[object, list[int]] = {}
    for place, tensor in enumerate(tensors):
        small = tensor.ndim == 2 and tensor.numel() < LARGE
        alike.setdefault(tensor.shape if small else place, []).append(place)
    for places in alike.values():
        if len(places) == 1:
            yield places[0], orthogonal(tensors[places[0]])
        else:
            stack = torch.stack([tensors[place] for place in places])
            yield from zip(places, orthogonal(stack), strict=True)


class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` for matrices and stacks (E, A, B), whose matrices move each on its own.

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
            moved = [p for p in group["params"] if p.grad is not None]
            spread = [p for p in moved if _is_spread(p)]
            for parameter in spread:
                update = _own_update(self._momentum(parameter, group["momentum"]))
                _move(parameter, update, group)
            whole = [p for p in moved if not _is_spread(p)]
            updates = [self._momentum(p, group["momentum"]) for p in whole]
            for place, update in orthogonal_each(updates):
                _move(whole[place], update, group)

    def _momentum(self, parameter: Tensor, share: float) -> Tensor:
        """Add a gradient to the momentum; return the one that Nesterov looks ahead to."""
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        buffer: Tensor = state["momentum_buffer"].lerp_(grad, 1 - share)
        return grad.lerp(buffer, share)


def _move(parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
    """Decay a parameter and move it by ``update``; of a spread one what lies here."""
    mine: Any = parameter
    if _is_spread(parameter):
        mine = mine.to_local()
    rate = group["lr"]
    mine.mul_(1 - rate * group["weight_decay"])
    mine.add_(update, alpha=-rate * 0.2 * math.sqrt(max(parameter.shape[-2:])))


def _is_spread(tensor: Tensor) -> bool:
    """Tell a ``DTensor``; importing its class takes a second, which one process need not wait."""
    return hasattr(tensor, "full_tensor")


def _own_update(momentum: Any) -> Tensor:
    """Return this process's part of ``orthogonal`` of a spread momentum."""
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
    muon = _only(groups, lambda p: id(p) in hidden)
    rest = adamw(_only(groups, lambda p: id(p) not in hidden))
    return Together([Muon(muon, lr, MOMENTUM), rest] if muon else [rest])


def _only(
    groups: Sequence[dict[str, Any]], wanted: Callable[[Tensor], bool]
) -> list[dict[str, Any]]:
    """Return the groups with the wanted parameters alone; what is then empty is left out."""
    kept = [{**group, "params": [p for p in group["params"] if wanted(p)]} for group in groups]
    return [group for group in kept if group["params"]]
