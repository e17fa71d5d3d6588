"""What a training run shows of itself: router load, memory gates, rows read, memory used."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engram_eval.models.memory import EngramMemory
from engram_eval.models.moe import MoE
from engram_eval.models.table import RowTable


class Watch:
    """Counts what experts and memories do in training, by forward hooks until ``close``."""

    def __init__(self, model: nn.Module) -> None:
        self._read: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        self._gates: list[float] = []
        self._experts = [module for module in model.modules() if isinstance(module, MoE)]
        for name, module in model.named_modules():
            if isinstance(module, RowTable):
                self._read[name] = torch.zeros(len(module.weight), dtype=torch.bool)
                self._hooks.append(module.register_forward_pre_hook(self._mark(name)))
            elif isinstance(module, EngramMemory):
                self._hooks.append(module.gate_tap.register_forward_hook(self._gate))

    def numbers(self) -> dict[str, float]:
        """Return what the last training step showed; empty for a dense model without memory."""
        found = {}
        if self._experts:
            found["router_load_max"] = max(_load_max(module) for module in self._experts)
        if self._read:
            rows = torch.cat(list(self._read.values()))
            found["rows_touched"] = float(rows.float().mean())
        if self._gates:
            found["gate_mean"] = sum(self._gates) / len(self._gates)
        self._gates.clear()
        return found

    def pack(self) -> dict[str, Tensor]:
        """Return what has to survive an interruption: which rows have been read so far."""
        return {f"read.{name}": read for name, read in self._read.items()}

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the tensors of ``pack`` back."""
        for name in self._read:
            self._read[name] = tensors[f"read.{name}"].clone()

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _mark(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            if module.training:
                self._read[name][args[0]] = True

        return hook

    def _gate(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if module.training:
            self._gates.append(float(output.detach().float().mean()))


def _load_max(module: MoE) -> float:
    """Return the fullest expert's tokens over the mean; 1 is perfect balance."""
    counts = module.last_expert_counts
    if counts is None:
        raise ValueError("router load needs a forward pass first")
    return float(counts.max() / counts.float().mean())


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
