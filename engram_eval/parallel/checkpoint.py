"""Resume points of many processes: each writes its parts, any number of processes reads them."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from engram_eval.errors import UserError
from engram_eval.files import write_atomic
from engram_eval.parallel.folders import ABOUT, PREFIX, resume_folders
from engram_eval.parallel.model import spread_state
from engram_eval.parallel.ranks import Ranks

KEPT = 2


def save_parts(
    out: Path,
    about: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
) -> None:
    """Write a resume point and remove all but the newest two; all processes must call it.

    Args:
        out: folder of the run.
        about: ``run``, which names it, ``step``, and what else the run wants back; of the first
            process. Written last: without it a folder is not finished.
        model: spread over the processes.
        optimizer: its own.
        ranks: the processes.
    """
    folder = out / f"{PREFIX}{about['step']:06d}"
    if ranks.first and folder.exists():
        shutil.rmtree(folder)
    ranks.wait()
    dcp.save(spread_state(model, optimizer, ranks), checkpoint_id=folder)
    if ranks.first:
        write_atomic(folder / ABOUT, json.dumps(about).encode())
        for old in resume_folders(out)[KEPT:]:
            shutil.rmtree(old)
    ranks.wait()


def load_parts(
    out: Path, run: str, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks
) -> dict[str, Any] | None:
    """Read the newest resume point into model and optimiser; None where there is none.

    Returns:
        What was saved as ``about``.

    Raises:
        UserError: a resume point of another run.
    """
    folder = ranks.share(next(iter(resume_folders(out)), None))
    if folder is None:
        return None
    about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    if about["run"] != run:
        raise UserError(f"{folder}: resume point of another run; delete it to train from the start")
    _prepare(optimizer)
    dcp.load(spread_state(model, optimizer, ranks), checkpoint_id=folder)
    return about


def _prepare(optimizer: torch.optim.Optimizer) -> None:
    """Make room for what is loaded: neither AdamW nor Muon has a state before its first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            zeros = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            if "momentum" in group:
                optimizer.state[parameter] = {"momentum_buffer": zeros}
                continue
            moments = {"exp_avg": zeros, "exp_avg_sq": zeros.clone()}
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            optimizer.state[parameter] = {"step": step, **moments}
