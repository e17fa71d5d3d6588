"""Resume points: everything that a killed run needs to go on bit by bit as if undisturbed.

A resume point is one safetensors file (no pickle) whose name holds its step and its own hash:
``resume-000120-<sha256>.safetensors``. It is written under a temporary name, fsynced and renamed.
The one before it is kept, and used only if the user deletes the newer one.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from engram_eval.errors import UserError
from engram_eval.files import write_atomic
from engram_eval.training.muon import Together
from engram_eval.training.row_optim import AdamWWithRows, RowAdamW, trained_tables

KEPT = 2
OPTIMIZER_STATE = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
"""What AdamW and Muon keep of a parameter."""
_NAME = re.compile(r"resume-(\d+)-([0-9a-f]{64})\.safetensors")


class ResumePoint(NamedTuple):
    """What was saved.

    Attributes:
        step: finished optimiser steps.
        tensors: model, optimiser and statistics by flat name.
        log_sizes: bytes of each log at that step.
    """

    step: int
    tensors: dict[str, Tensor]
    log_sizes: dict[str, int]


def save_resume_point(folder: Path, point: ResumePoint, run: str) -> Path:
    """Write a resume point and remove all but the newest two.

    Args:
        folder: where the stage works.
        point: what to keep.
        run: names the run (hash of configuration, seed and corpus); another run's file is refused.
    """
    metadata = {"run": run, "step": str(point.step), "log_sizes": json.dumps(point.log_sizes)}
    tensors = {name: tensor.contiguous() for name, tensor in point.tensors.items()}
    data = safetensors.torch.save(tensors, metadata)
    path = folder / f"resume-{point.step:06d}-{hashlib.sha256(data).hexdigest()}.safetensors"
    write_atomic(path, data)
    _sync_folder(folder)
    for old in _resume_files(folder)[KEPT:]:
        old.unlink()
    return path


def load_resume_point(folder: Path, run: str) -> ResumePoint | None:
    """Read the newest resume point, or return None where there is none.

    Raises:
        UserError: for a file that is truncated, changed, or of another run.
    """
    files = _resume_files(folder)
    if not files:
        return None
    path, before = files[0], files[1:]
    way_on = (
        f"delete it to go on from {before[0].name.rsplit('-', 1)[0]}"
        if before
        else "delete it to train again from the start"
    )
    data = path.read_bytes()
    match = _NAME.fullmatch(path.name)
    if match is None or hashlib.sha256(data).hexdigest() != match[2]:
        raise UserError(f"{path}: damaged resume point, its sha256 is not the one it had; {way_on}")
    metadata = _metadata(path)
    if metadata.get("run") != run:
        raise UserError(f"{path}: resume point of another run; {way_on}")
    return ResumePoint(
        int(metadata["step"]), safetensors.torch.load(data), json.loads(metadata["log_sizes"])
    )


def delete_resume_points(folder: Path) -> None:
    """Remove the resume points of a finished run."""
    for path in _resume_files(folder):
        path.unlink()


def pack(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten the state of model and optimiser into named tensors on the CPU."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with _as_they_are(model):
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, rows in _rows(optimizer).items():
        tensors |= {f"rows.{name}.{key}": value for key, value in rows.pack().items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"optimizer.{key}.{names[id(parameter)]}"] = value
    # Tied weights share memory, which safetensors refuses. A GPU may have no room for copies.
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def unpack(
    tensors: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Put the tensors of ``pack`` back."""
    model.load_state_dict(_under(tensors, "model."))
    for name, rows in _rows(optimizer).items():
        rows.unpack(_under(tensors, f"rows.{name}."))
    for name, parameter in model.named_parameters():
        for key in OPTIMIZER_STATE:
            value = tensors.get(f"optimizer.{key}.{name}")
            if value is not None:
                optimizer.state[parameter][key] = value.to(parameter.device, copy=True)


def _rows(optimizer: torch.optim.Optimizer) -> dict[str, RowAdamW]:
    return optimizer.rows if isinstance(optimizer, AdamWWithRows | Together) else {}


@contextmanager
def _as_they_are(model: nn.Module) -> Iterator[None]:
    """Let rows be saved with the steps that they have missed; these are saved beside them."""
    tables = trained_tables(model)
    refresh = {name: table.refresh for name, table in tables.items()}
    for table in tables.values():
        table.refresh = None
    try:
        yield
    finally:
        for name, table in tables.items():
            table.refresh = refresh[name]


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)
    }


def _resume_files(folder: Path) -> list[Path]:
    """Return the resume points, newest first."""
    return sorted(folder.glob("resume-*.safetensors"), key=lambda path: path.name, reverse=True)


def _metadata(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="pt") as handle:
        return handle.metadata() or {}


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, before older files go."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
