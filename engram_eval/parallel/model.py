"""A model spread over processes: FSDP2 for the backbone, rows of tables by owner."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from engram_eval.errors import UserError
from engram_eval.models.loss import Losses
from engram_eval.models.offload import HostTable
from engram_eval.models.product_keys import ValueTable
from engram_eval.models.table import RowTable
from engram_eval.parallel.ranks import Ranks
from engram_eval.parallel.sharded_table import ShardedTable
from engram_eval.training.data import Batch
from engram_eval.training.optim import TABLE_SUFFIX, Norms
from engram_eval.training.step import loss_of


class LossOfBatch(nn.Module):
    """A training loss as one module, so that all parameters are there while it runs."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, bf16: bool) -> Losses:
        """Return the losses of this process's part of a batch."""
        return loss_of(self.model, batch, bf16)


def spread(model: PreTrainedModel, ranks: Ranks) -> LossOfBatch:
    """Spread a model, which must be the same in every process, over them; it is changed.

    Raises:
        UserError: a table that lies in host memory or on disk, or is quantised.
    """
    if any(isinstance(module, HostTable) for module in model.modules()):
        config = model.config
        raise UserError(
            f"engram_storage={config.engram_storage!r}, engram_row_quantization="
            f"{config.engram_row_quantization!r}: several processes spread a table's rows over "
            "themselves; they need 'device' and 'none'"
        )
    tables = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, RowTable) and not isinstance(module, ValueTable)
    ]
    for name, table in tables:
        model.set_submodule(name, ShardedTable(table, ranks))
    model.to(ranks.device)
    apart = {m.weight for m in model.modules() if isinstance(m, ShardedTable)}
    for layer in model.model.layers:
        fully_shard(layer, mesh=ranks.mesh, ignored_params=cast(Any, apart))
    whole = LossOfBatch(model)
    fully_shard(
        whole, mesh=ranks.mesh, reshard_after_forward=False, ignored_params=cast(Any, apart)
    )
    return whole


def set_last(whole: nn.Module, last: bool) -> None:
    """Say whether the next backward pass is the last before an optimiser step."""
    assert isinstance(whole, FSDPModule)
    whole.set_requires_gradient_sync(last)


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def clip_spread_gradients(model: nn.Module, max_norm: float, ranks: Ranks) -> Norms:
    """Do what ``clip_gradients`` does, with the norm over all processes' parts."""
    named = [(n, local(p.grad)) for n, p in model.named_parameters() if p.grad is not None]
    squares = [
        sum(
            (g.double().square().sum() for n, g in named if n.endswith(TABLE_SUFFIX) == table),
            torch.zeros((), dtype=torch.float64, device=ranks.device),
        )
        for table in (False, True)
    ]
    backbone, table = ranks.sum(torch.stack(squares)).sqrt()
    total = torch.hypot(backbone, table)
    if total > max_norm:
        torch._foreach_mul_([grad for _, grad in named], max_norm / (float(total) + 1e-6))
    return Norms(total, backbone, table)


def spread_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks
) -> dict[str, Tensor]:
    """Return model and optimiser by the names of ``checkpoint.pack``, each process its parts.

    Rows of tables are given as what they are: parts of one tensor.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    totals = table_rows(model)
    found = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    found = {
        name: _whole_rows(tensor, totals.get(name.removeprefix("model.")), ranks)
        for name, tensor in found.items()
    }
    for parameter, state in optimizer.state.items():
        name = names[id(parameter)]
        for key, value in state.items():
            rows = totals.get(name) if value.dim() else None
            found[f"optimizer.{key}.{name}"] = _whole_rows(value, rows, ranks)
    return found


def table_rows(model: nn.Module) -> dict[str, int]:
    """Return the rows of each table that is spread, by the name of its weight."""
    return {
        f"{name}.weight": module.total
        for name, module in model.named_modules()
        if isinstance(module, ShardedTable)
    }


def _whole_rows(tensor: Tensor, rows: int | None, ranks: Ranks) -> Tensor:
    """Return a process's rows as a part of (rows, row_dim); what is no table's as it is."""
    if rows is None:
        return tensor.detach()
    width = tensor.shape[1]
    return DTensor.from_local(
        tensor.detach(),
        ranks.mesh,
        [Shard(0)],
        run_check=False,
        shape=torch.Size((rows, width)),
        stride=(width, 1),
    )


def whole_tensors(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor put together from all processes' parts, on the CPU; all must call it."""
    for name, tensor in state.items():
        joined = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        yield name, joined.cpu()
