"""Steps whose kernels are replayed: on a CPU by a stand-in for CUDA graphs, on a GPU for real."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import replay
import torch
import training_tools as tools
from test_variants import build
from test_variants import text as read

from engram_eval.costs.ledger import architecture_config
from engram_eval.models import grouped_experts, loss, moe
from engram_eval.models.compiled import compile_blocks, keep_variants
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.training import optim, step
from engram_eval.training.data import Batches
from engram_eval.training.optim import build_optimizer, set_learning_rate
from engram_eval.training.prefetch import prefetched
from engram_eval.training.recorded import PLAIN, can_be_recorded, reads_back
from engram_eval.training.step import stepper
from engram_eval.training.watch import Watch
from engram_eval.variants import VARIANTS

STEPS, BAD = 9, 6
"""The batch of one step has a token whose embedding is no number."""
POISON = 299


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", replay.Graph)
    monkeypatch.setattr(torch.cuda, "graph", replay.record)
    monkeypatch.setattr(step, "can_be_recorded", lambda model, bf16: True)
    monkeypatch.setattr(optim, "is_known", lambda number: False)
    for module in (grouped_experts, moe):
        monkeypatch.setattr(module, "fits_grouped_kernel", lambda x: True)
    plain = loss.losses_by_token
    monkeypatch.setattr(
        step, "losses_by_token", lambda *a, fused: plain(*a, fused=False, masked=True)
    )


def text() -> Any:
    """Return tokens of which only batch ``BAD`` holds ``POISON``."""
    size = 4 * 32
    tokens = torch.randint(POISON, (STEPS * size + 1,), generator=torch.Generator().manual_seed(0))
    batches = Batches(tokens.numpy(), 32, 4, 0)
    tokens[int(batches.batch(BAD).sequences[0]) * 32 + 5] = POISON
    return tokens.numpy()


def steps(
    keys: dict[str, Any],
    compiled: bool,
    device: str,
    bf16: bool = False,
    rate: float = 0.01,
) -> Iterator[dict[str, torch.Tensor]]:
    """Build and train; see ``steps_of``."""
    torch.manual_seed(0)
    model = EngramForCausalLM(architecture_config(keys | {"engram_compression": False}))
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON] = float("nan")
    yield from steps_of(model.to(device), text(), compiled, device, bf16, rate)


def steps_of(
    model: EngramForCausalLM,
    tokens: Any,
    compiled: bool,
    device: str,
    bf16: bool = False,
    rate: float = 0.01,
) -> Iterator[dict[str, torch.Tensor]]:
    """Train, and yield copies of what each step shows; the last is the model."""
    settings = dataclasses.replace(
        tools.SETTINGS, compile=compiled, autocast_bf16=bf16, accumulate=2
    )
    if compiled and device == "cuda":
        compile_blocks(model)
    optimizer, watch = build_optimizer(model, settings), Watch(model)
    take = stepper(model, optimizer, settings, watch.see)
    for number, batch in enumerate(prefetched(model, Batches(tokens, 32, 4, 0), 0, STEPS)):
        set_learning_rate(optimizer, rate * (1 + number))
        with replay.Operations() if device == "cpu" else keep_variants():
            outcome = take(batch)
        shown = {"loss": outcome.loss, "each": outcome.each, **outcome.norms._asdict()}
        yield {k: v.clone() for k, v in (shown | dict(outcome.shown)).items()}
        if number == PLAIN + 1:
            # What modules remember of a validation is not what a step has shown.
            with torch.no_grad():
                model.eval()(batch.inputs[:1, :7])
    yield {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", tools.ARCHITECTURES)
def test_replayed_steps_are_the_plain_ones(name: str) -> None:
    keys = tools.ARCHITECTURES[name]
    for number, (plain, replayed) in enumerate(
        zip(steps(keys, False, "cpu"), steps(keys, True, "cpu"), strict=True)
    ):
        assert plain.keys() == replayed.keys()
        for key, value in plain.items():
            assert torch.equal(value.nan_to_num(9e9), replayed[key].nan_to_num(9e9)), (number, key)
        if number < STEPS:
            assert bool(plain["loss"].isfinite()) == (number != BAD)


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_replayed(name: str) -> None:
    tokens = read(4 * STEPS + 1).flatten().numpy()
    taken = []
    for compiled in (False, True):
        torch.manual_seed(0)
        taken.append(steps_of(build(name), tokens, compiled, "cpu"))
    for number, (plain, replayed) in enumerate(zip(*taken, strict=True)):
        for key, value in plain.items():
            assert torch.equal(value, replayed[key]), (number, key)


@pytest.mark.usefixtures("stand_in")
def test_nothing_may_be_read_while_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "is_known", lambda number: True)
    taken = steps(tools.ARCHITECTURES["dense"], True, "cpu")
    for _ in range(PLAIN):
        next(taken)
    with pytest.raises(RuntimeError, match="not permitted"):
        next(taken)


def test_what_does_not_lie_on_a_gpu_is_not_recorded() -> None:
    assert not can_be_recorded(EngramForCausalLM(architecture_config(tools.BACKBONE)), True)


def test_what_is_read_back_while_a_step_runs() -> None:
    off = {"engram_compression": False}
    moe, memory = tools.ARCHITECTURES["moe"], tools.ARCHITECTURES["engram"] | off
    sparse = tools.BACKBONE | {"attention_kind": "block_sparse"}
    elsewhere = memory | {"engram_storage": "host", "n_routed_experts": 0}
    found = [
        [reads_back(EngramForCausalLM(architecture_config(keys)), bf16) for bf16 in (True, False)]
        for keys in (tools.BACKBONE, moe, memory, elsewhere, sparse)
    ]
    assert found == [[False, False], [False, True], [False, True], [True, True], [True, True]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", tools.ARCHITECTURES)
@pytest.mark.parametrize(("bf16", "rate", "close"), [(False, 0.01, 2e-3), (True, 1e-4, 3e-2)])
def test_a_gpu_replays_the_plain_steps(name: str, bf16: bool, rate: float, close: float) -> None:
    """Compiled blocks round elsewhere, and large rates would make much of it."""
    keys = tools.ARCHITECTURES[name]
    taken = [steps(keys, compiled, "cuda", bf16, rate) for compiled in (False, True)]
    for number, (plain, replayed) in enumerate(zip(*taken, strict=True)):
        for key in ("loss", "total", "backbone", "table") if number < STEPS else ():
            torch.testing.assert_close(
                replayed[key], plain[key], rtol=close, atol=close, equal_nan=True
            )
