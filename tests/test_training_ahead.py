"""Steps that are asked for before the one before them is read, as on a GPU; here on a CPU."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import training_tools as tools
from torch.utils._python_dispatch import TorchDispatchMode

from engram_eval.costs.ledger import architecture_config
from engram_eval.files import read_jsonl
from engram_eval.models import grouped_experts, loss, moe
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.models.moe import MoE
from engram_eval.progress import Reporter
from engram_eval.stage_config import TrainStage
from engram_eval.training import loop, optim, step
from engram_eval.training.data import Batches
from engram_eval.training.lookup import look_up
from engram_eval.training.loop import TrainingError
from engram_eval.training.optim import build_optimizer
from engram_eval.training.stage import train
from engram_eval.training.step import stepper
from engram_eval.training.watch import Watch

FILES = ("train.jsonl", "validation.jsonl", "model/model.safetensors")


def let_run_ahead(patch: pytest.MonkeyPatch) -> None:
    """Let a CPU's optimiser be trusted to skip a step, as a GPU's is."""
    for module in (loop, optim):
        patch.setattr(module, "runs_ahead", lambda optimizer, device: True)


def run(corpus: Path, out: Path, **settings: Any) -> None:
    out.mkdir(parents=True)
    stage = TrainStage(
        tools.ARCHITECTURES["engram"], dataclasses.replace(tools.SETTINGS, **settings)
    )
    train({"corpus": corpus}, stage, 0, out, Reporter(quiet=True))


def poison(monkeypatch: pytest.MonkeyPatch, *passes: int) -> None:
    """Let the first experts' output be no number in some forward passes."""
    forward, count = MoE.forward, iter(range(1, 10_000))

    def poisoned(self: MoE, *inputs: Any) -> Any:
        output = forward(self, *inputs)
        return output * float("nan") if self.training and next(count) in passes else output

    monkeypatch.setattr(MoE, "forward", poisoned)


@pytest.mark.parametrize("save_every_s", [0.0, 1000.0])
def test_reading_later_changes_no_bit(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_every_s: float
) -> None:
    run(corpus, tmp_path / "at_once")
    let_run_ahead(monkeypatch)
    run(corpus, tmp_path / "later", save_every_s=save_every_s)
    for file in FILES:
        one, other = ((tmp_path / way / file).read_bytes() for way in ("at_once", "later"))
        assert one == other
    steps = [line["step"] for line in read_jsonl(tmp_path / "later/timing.jsonl")]
    assert steps == list(range(1, 13))


def test_a_bad_batch_is_skipped_by_the_kernel(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {}
    for way in ("at_once", "later"):
        with monkeypatch.context() as patch:
            poison(patch, 5)
            if way == "later":
                let_run_ahead(patch)
            run(corpus, tmp_path / way, skip_bad_batches=1)
        written[way] = [(tmp_path / way / file).read_bytes() for file in FILES]
    assert written["at_once"] == written["later"]


def test_a_bad_batch_stops_the_run_and_is_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_run_ahead(monkeypatch)
    poison(monkeypatch, 5)
    with pytest.raises(TrainingError, match=r"step 5 of 12: the loss is nan on sequences \["):
        run(corpus, tmp_path / "out")
    assert [line["step"] for line in read_jsonl(tmp_path / "out/train.jsonl")] == [1, 2, 3, 4]


class Waits(TorchDispatchMode):
    """Collects what has to know a number, for which a CPU would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "is_nonzero")):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    let_run_ahead(monkeypatch)
    monkeypatch.setattr(optim, "is_known", lambda number: False)
    for module in (grouped_experts, moe):
        monkeypatch.setattr(module, "fits_grouped_kernel", lambda x: True)
    masked = loss.losses_by_token
    monkeypatch.setattr(step, "losses_by_token", lambda *a, **k: masked(*a, **k, masked=True))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("name", tools.ARCHITECTURES)
def test_a_step_waits_for_no_number(name: str) -> None:
    keys = {**tools.ARCHITECTURES[name], "engram_compression": False}
    model = EngramForCausalLM(architecture_config(keys))
    optimizer = build_optimizer(model, tools.SETTINGS)
    batch = Batches(torch.randint(300, (999,)).numpy(), 32, 4, 0).batch(0)
    batch = batch._replace(lookup=look_up(model, batch.inputs))
    assert batch.lookup is not None
    watch, waits = Watch(model), Waits()
    # What is checked once is checked before.
    take = stepper(model, optimizer, tools.SETTINGS, watch.see)
    take(batch)
    with waits:
        outcome = take(batch)
        numbers = {"loss": outcome.loss, **outcome.norms._asdict(), **outcome.shown}
    assert not waits.found
    with waits:
        assert all(math.isfinite(float(value)) for value in numbers.values())
    assert len(waits.found) == len(numbers)
