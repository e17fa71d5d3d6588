"""What a training run shows of itself: router, memory gates, rows read, collisions, memory used."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from engram_eval.models.memory import EngramMemory
from engram_eval.models.moe import MoE, Router
from engram_eval.models.table import RowTable
from engram_eval.training.collisions import Collisions
from engram_eval.training.data import Batch
from engram_eval.training.lookup import Lookup

GATE_QUANTILES = {"gate_p10": 0.1, "gate_p50": 0.5, "gate_p90": 0.9}


class Watch:
    """Counts what experts and memories do in training, until ``close``.

    Gates and routers are read after a step, from its last forward pass: hooks on them would cut
    compiled blocks into pieces.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._read: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        self._rates: list[Tensor] = []
        self._collisions: dict[int, Collisions] = {}
        self._decoder = model.model
        self._device = model.device
        # Made once: to bring numbers to a GPU is to wait for it.
        self._quantiles = torch.tensor(list(GATE_QUANTILES.values()), device=model.device)
        modules = list(model.modules())
        self._experts = [module for module in modules if isinstance(module, MoE)]
        self._memories = [module for module in modules if isinstance(module, EngramMemory)]
        for name, module in model.named_modules():
            if isinstance(module, RowTable):
                self._read[name] = module.weight.new_zeros(len(module.weight), dtype=torch.bool)
                self._hooks.append(module.register_forward_pre_hook(self._mark(name)))

    def see(self, batch: Batch) -> dict[str, Tensor]:
        """Count the collisions of what a batch reads, and return ``numbers``."""
        if batch.lookup is not None:
            self.look(batch.lookup)
        return self.numbers()

    def look(self, lookup: Lookup) -> None:
        """Count the collisions of what a batch reads."""
        for layer, mixes in lookup.mixes.items():
            if layer not in self._collisions:
                self._collisions[layer] = self._new(layer, mixes.device)
            self._rates.append(self._collisions[layer].see(lookup.rows[layer], mixes))

    def numbers(self) -> dict[str, Tensor]:
        """Return what the last training step showed, scalars in double precision.

        Empty for a dense model without memory.
        """
        found = self._layer_by_layer()
        loads = found.pop("load", [])
        self._rates.clear()
        numbers = {name: _mean(values) for name, values in found.items()}
        if loads:
            numbers["router_load_max"] = torch.stack(loads).max().double()
        return numbers

    def _layer_by_layer(self) -> dict[str, list[Tensor]]:
        """Return scalars, one for each layer or one for all."""
        found: dict[str, list[Tensor]] = {}
        if self._experts:
            counts = [_counts(module) for module in self._experts]
            found["load"] = [c.max() / c.mean() for c in counts]
            found["router_load_entropy_bits"] = [_entropy_bits(c / c.sum()) for c in counts]
            found["router_entropy_bits"] = [_router_bits(module.gate) for module in self._experts]
        if self._read:
            found["rows_touched"] = [torch.cat(list(self._read.values())).float().mean()]
        if self._rates:
            found["collision_rate"] = list(self._rates)
        seen = [memory.last_gate for memory in self._memories if memory.last_gate is not None]
        if seen:
            gates = torch.cat([gate.float().flatten() for gate in seen])
            found["gate_mean"] = [gates.mean()]
            spread = torch.quantile(gates, self._quantiles)
            found |= {name: [value] for name, value in zip(GATE_QUANTILES, spread, strict=True)}
        return found

    def pack(self) -> dict[str, Tensor]:
        """Return what has to survive an interruption: who has read which rows, on the CPU."""
        read = {f"read.{name}": read for name, read in self._read.items()}
        read |= {f"reader.{layer}": each.last for layer, each in self._collisions.items()}
        return {name: tensor.cpu() for name, tensor in read.items()}

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the tensors of ``pack`` back."""
        for name in self._read:
            self._read[name].copy_(tensors[f"read.{name}"])
        for name, tensor in tensors.items():
            kind, _, layer = name.partition(".")
            if kind == "reader":
                self._collisions[int(layer)] = self._new(int(layer), self._device)
                self._collisions[int(layer)].last.copy_(tensor)

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _new(self, layer: int, device: torch.device) -> Collisions:
        return Collisions(len(self._decoder.memory(layer).table.weight), device)

    def _mark(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            if module.training:
                read = self._read[name]
                read.index_fill_(0, args[0].to(read.device).flatten(), True)

        return hook


def _counts(module: MoE) -> Tensor:
    """Return the tokens that each expert got, (E,)."""
    if module.last_expert_counts is None:
        raise ValueError("router load needs a forward pass first")
    return module.last_expert_counts.float()


def _router_bits(router: Router) -> Tensor:
    """Return the mean entropy of a router's choice for one token."""
    if router.last_logits is None:
        raise ValueError("router entropy needs a forward pass first")
    logits = router.last_logits.float()
    scores = logits.sigmoid() if router.scoring == "sigmoid" else logits.softmax(dim=-1)
    return _entropy_bits(scores / scores.sum(-1, keepdim=True))


def _entropy_bits(shares: Tensor) -> Tensor:
    """Return the entropy of ``shares`` (..., E), averaged over all but the last axis."""
    return torch.special.entr(shares).sum(-1).mean().double() / math.log(2)


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.double() for value in values]).mean()


def reset_peak_memory() -> None:
    """Count the process's peaks anew: the kernel's (on Linux), and that of its GPU."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def peak_memory_mb() -> float | None:
    """Return the process's peak resident memory since the reset; None where it is not counted."""
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    line = next(line for line in path.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def peak_gpu_memory_mb() -> float | None:
    """Return the most memory that tensors took of this process's GPU; None where none is used."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else None
