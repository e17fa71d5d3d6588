"""AdamW in groups, or Muon for some of them, their schedule, and clipping.

The memory's table has its own rate and weight decay (arXiv:2601.07372 App. A: Adam, rate x5, none).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engram_eval.config import TrainConfig
from engram_eval.errors import UserError, look_up
from engram_eval.models.convolution import DepthwiseCausalConv
from engram_eval.models.moe import Experts
from engram_eval.models.offload import NOT_TRAINED, HostTable
from engram_eval.training.muon import AdamWMaker, hidden_matrices, with_muon
from engram_eval.training.row_optim import AdamWWithRows, trained_tables

UNDECAYED = (nn.Embedding, nn.Conv1d, DepthwiseCausalConv)
TABLE_SUFFIX = "table.weight"
EMBEDDING = "embed_tokens"


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Split the parameters; every trainable one is in exactly one group.

    - ``matrices``: weights of linear layers, experts, router and output head; weight decay.
    - ``experts``: the routed experts' weights, likewise, where they have a rate of their own.
    - ``vectors``: norms, biases, the depthwise convolution and the token embedding; no decay.
    - ``embedding``: the token embedding, likewise, where it has a rate of its own.
    - ``table``: the n-gram memory's rows; a decay of their own, ``lr * table_lr_multiplier``.

    Each has a ``name``, its ``weight_decay`` and its ``lr``, which is ``lr_scale`` times
    ``config.lr``: any of torch's optimisers takes them, and schedules that multiply rates keep
    their proportions.
    """
    own = {id(p): "vectors" for p in _undecayed(model)}
    if config.expert_lr_multiplier != 1.0:
        own |= {id(p): "experts" for p in _routed(model)}
    if config.embedding_lr_multiplier != 1.0:
        own |= {id(p): "embedding" for p in _embedding(model)}
    settings = {
        "matrices": (config.weight_decay, 1.0),
        "experts": (config.weight_decay, config.expert_lr_multiplier),
        "vectors": (0.0, 1.0),
        "embedding": (0.0, config.embedding_lr_multiplier),
        "table": (config.table_weight_decay, config.table_lr_multiplier),
    }
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in settings}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_table = name.endswith(TABLE_SUFFIX)
            groups["table" if is_table else own.get(id(parameter), "matrices")].append(parameter)
    return [
        {
            "params": params,
            "name": name,
            "weight_decay": decay,
            "lr": config.lr * scale,
            "lr_scale": scale,
        }
        for (name, params), (decay, scale) in zip(groups.items(), settings.values(), strict=True)
        if params
    ]


def _routed(model: nn.Module) -> Iterable[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, Experts):
            yield from module.parameters()


def _embedding(model: nn.Module) -> Iterable[nn.Parameter]:
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == EMBEDDING:
            yield from module.parameters()


def _undecayed(model: nn.Module) -> Iterable[nn.Parameter]:
    for module in model.modules():
        whole = isinstance(module, UNDECAYED)
        for parameter in module.parameters(recurse=False):
            if whole or parameter.ndim < 2:
                yield parameter


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser that ``config`` names, over ``parameter_groups``.

    Tables that do not lie on the device are trained row by row; see ``row_optim``.

    Raises:
        UserError: an unknown optimiser, or quantised rows that would be trained.
    """
    tables = trained_tables(model)
    for table in tables.values():
        if table.format is not None:
            raise UserError(NOT_TRAINED.format(table.quantization))
    build = look_up("optimizer", config.optimizer, OPTIMIZERS)
    return build(model, config, partial(_adamw, config=config, tables=tables))


def _adamw(
    groups: list[dict[str, Any]], config: TrainConfig, tables: Mapping[str, HostTable]
) -> torch.optim.AdamW:
    """Return AdamW; fused: one pass over each tensor."""
    if tables:
        return AdamWWithRows(groups, config, tables)
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)


def _adamw_alone(model: nn.Module, config: TrainConfig, adamw: AdamWMaker) -> torch.optim.Optimizer:
    return adamw(parameter_groups(model, config))


def _muon(model: nn.Module, config: TrainConfig, adamw: AdamWMaker) -> torch.optim.Optimizer:
    return with_muon(parameter_groups(model, config), hidden_matrices(model), config.lr, adamw)


Maker = Callable[[nn.Module, TrainConfig, AdamWMaker], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Maker] = {"adamw": _adamw_alone, "muon": _muon}


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Return the backbone's rate of a 0-based step.

    Linear warm-up over ``warmup_fraction`` of the steps, then a half cosine that reaches
    ``lr * min_lr_ratio`` at the last step.
    """
    warmup = math.ceil(config.warmup_fraction * steps)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the backbone's rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


class Norms(NamedTuple):
    """Gradient norms before clipping, scalars: of all parameters, without and of the tables."""

    total: Tensor
    backbone: Tensor
    table: Tensor


class Trained(NamedTuple):
    """What has gradients: to look for it in every module at every step takes a CPU milliseconds.

    Attributes:
        parameters: by name.
        tables: that do not lie on the device, by name.
    """

    parameters: dict[str, nn.Parameter]
    tables: dict[str, HostTable]


def trained(model: nn.Module) -> Trained:
    """Return what has gradients in training."""
    return Trained(dict(model.named_parameters()), trained_tables(model))


def clip_gradients(parts: Trained, max_norm: float) -> Norms:
    """Scale all gradients down to a global norm; return the norms before it.

    The CPU does not wait for a GPU to learn them.
    """
    named = list(_gradients(parts))
    grads = [grad for _, grad in named]
    each = torch._foreach_norm(grads)
    total = _norm(each)
    of_tables = [
        norm for (name, _), norm in zip(named, each, strict=True) if name.endswith(TABLE_SUFFIX)
    ]
    table = _norm(of_tables).to(total.device) if of_tables else torch.zeros_like(total)
    if not is_known(total):
        torch._foreach_mul_(grads, (max_norm / (total + 1e-6)).clamp(max=1).float())
    elif total > max_norm:
        torch._foreach_mul_(grads, max_norm / (float(total) + 1e-6))
    return Norms(total, (total.square() - table.square()).clamp_min(0).sqrt(), table)


def is_known(number: Tensor) -> bool:
    """Whether a number can be looked at without waiting for it."""
    return number.device.type == "cpu"


def runs_ahead(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Whether a step can be asked for before it is known to have finite gradients.

    So it is on a GPU whose optimiser has one kernel that leaves a step out by itself.
    """
    return device.type == "cuda" and type(optimizer) is torch.optim.AdamW


def step_where(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Take a step if the scalar ``finite`` is true, without waiting for it where that is possible.

    A skipped step does not count as one.
    """
    if not runs_ahead(optimizer, finite.device):
        if finite:
            optimizer.step()
        return
    kernel: Any = optimizer
    # What ``torch.amp.GradScaler`` leaves there for fused kernels.
    kernel.grad_scale, kernel.found_inf = None, (~finite).float()
    try:
        optimizer.step()
    finally:
        del kernel.grad_scale, kernel.found_inf


def _gradients(parts: Trained) -> Iterable[tuple[str, Tensor]]:
    """Yield names and gradients, also of the rows that were read from tables elsewhere."""
    for name, parameter in parts.parameters.items():
        if parameter.grad is not None:
            yield name, parameter.grad
    for name, table in parts.tables.items():
        for used in table.merge_used():
            if used.values.grad is not None:
                yield f"{name}.weight", used.values.grad


def _norm(norms: Sequence[Tensor]) -> Tensor:
    """Return the norm of what has these ``norms``."""
    return torch.stack(tuple(norms)).norm().double()
