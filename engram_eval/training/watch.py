"""What a training run shows of itself: router, memory gates, rows read, collisions, memory used."""

import math
from collections.abc import Callable, Mapping
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
from engram_eval.training.lookup import Lookup

GATE_QUANTILES = {"gate_p10": 0.1, "gate_p50": 0.5, "gate_p90": 0.9}


class Watch:
    """Counts what experts and memories do in training, by forward hooks until ``close``."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._read: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        self._gates: list[Tensor] = []
        self._router_bits: list[float] = []
        self._rates: list[float] = []
        self._collisions: dict[int, Collisions] = {}
        self._decoder = model.model
        self._experts = [module for module in model.modules() if isinstance(module, MoE)]
        for name, module in model.named_modules():
            if isinstance(module, RowTable):
                self._read[name] = torch.zeros(len(module.weight), dtype=torch.bool)
                self._hooks.append(module.register_forward_pre_hook(self._mark(name)))
            elif isinstance(module, EngramMemory):
                self._hooks.append(module.gate_tap.register_forward_hook(self._gate))
            elif isinstance(module, Router):
                self._hooks.append(module.register_forward_hook(self._route))

    def look(self, lookup: Lookup) -> None:
        """Count the collisions of what a batch reads."""
        for layer, mixes in lookup.mixes.items():
            if layer not in self._collisions:
                self._collisions[layer] = self._new(layer)
            self._rates.append(self._collisions[layer].see(lookup.rows[layer], mixes))

    def numbers(self) -> dict[str, float]:
        """Return what the last training step showed; empty for a dense model without memory."""
        found = {}
        if self._experts:
            counts = [_counts(module) for module in self._experts]
            found["router_load_max"] = max(float(c.max() / c.mean()) for c in counts)
            found["router_load_entropy_bits"] = _mean([_entropy_bits(c / c.sum()) for c in counts])
        if self._router_bits:
            found["router_entropy_bits"] = _mean(self._router_bits)
        if self._read:
            rows = torch.cat(list(self._read.values()))
            found["rows_touched"] = float(rows.float().mean())
        if self._rates:
            found["collision_rate"] = _mean(self._rates)
        if self._gates:
            gates = torch.cat(self._gates)
            found["gate_mean"] = float(gates.mean())
            spread = torch.quantile(gates, gates.new_tensor(list(GATE_QUANTILES.values())))
            found |= dict(zip(GATE_QUANTILES, spread.tolist(), strict=True))
        for seen in (self._gates, self._router_bits, self._rates):
            seen.clear()
        return found

    def pack(self) -> dict[str, Tensor]:
        """Return what has to survive an interruption: who has read which rows so far."""
        read = {f"read.{name}": read for name, read in self._read.items()}
        return read | {f"reader.{layer}": each.last for layer, each in self._collisions.items()}

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the tensors of ``pack`` back."""
        for name in self._read:
            self._read[name] = tensors[f"read.{name}"].clone()
        for name, tensor in tensors.items():
            kind, _, layer = name.partition(".")
            if kind == "reader":
                self._collisions[int(layer)] = self._new(int(layer))
                self._collisions[int(layer)].last.copy_(tensor)

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _new(self, layer: int) -> Collisions:
        return Collisions(len(self._decoder.memory(layer).table.weight))

    def _mark(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            if module.training:
                self._read[name][args[0]] = True

        return hook

    def _gate(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if module.training:
            self._gates.append(output.detach().float().flatten())

    def _route(self, module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> None:
        if module.training:
            logits = output[0].detach().float()
            scores = logits.sigmoid() if module.scoring == "sigmoid" else logits.softmax(dim=-1)
            self._router_bits.append(_entropy_bits(scores / scores.sum(-1, keepdim=True)))


def _counts(module: MoE) -> Tensor:
    """Return the tokens that each expert got, (E,)."""
    if module.last_expert_counts is None:
        raise ValueError("router load needs a forward pass first")
    return module.last_expert_counts.float()


def _entropy_bits(shares: Tensor) -> float:
    """Return the entropy of ``shares`` (..., E), averaged over all but the last axis."""
    return float(torch.special.entr(shares).sum(-1).mean()) / math.log(2)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def reset_peak_memory() -> None:
    """Let the kernel count the process's peak anew (Linux; elsewhere there is nothing to reset)."""
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
