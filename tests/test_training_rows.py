"""Rows that are trained where they lie: what AdamW on the whole table gives, to the last bit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import training_tools as tools
from safetensors.torch import load_file

from engram_eval.config import TrainConfig
from engram_eval.models.offload import HostTable, Used
from engram_eval.models.table import RowTable
from engram_eval.progress import Reporter
from engram_eval.stage_config import TrainStage
from engram_eval.training.optim import build_optimizer, learning_rate, set_learning_rate
from engram_eval.training.row_optim import RowAdamW
from engram_eval.training.stage import train

WIDE = {**tools.ARCHITECTURES["engram"], "engram_row_dim": 16}
SETTINGS = dataclasses.replace(tools.SETTINGS, clip_norm=1e9, tokens=2_500, checkpoints=(1.0,))


def trained(
    corpus: Path, out: Path, settings: TrainConfig = SETTINGS, **architecture: Any
) -> tuple[dict[str, torch.Tensor], list[float]]:
    stage = TrainStage({**WIDE, **architecture}, settings)
    out.mkdir(exist_ok=True)
    train({"corpus": corpus}, stage, 0, out, Reporter(quiet=True))
    log = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    weights = load_file(out / "model" / "model.safetensors")
    return weights, [line["loss_nats"] for line in log]


@pytest.fixture(scope="module")
def on_device(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, torch.Tensor], list[float]]:
    return trained(corpus, tmp_path_factory.mktemp("device"))


@pytest.mark.parametrize("storage", ["host", "disk"])
def test_training_gives_the_bits_of_the_devices_table(
    storage: str, corpus: Path, on_device: Any, tmp_path: Path
) -> None:
    weights, losses = trained(corpus, tmp_path, engram_storage=storage)
    assert losses == on_device[1] and len(losses) == 20
    assert set(weights) == set(on_device[0])
    for name, tensor in weights.items():
        assert torch.equal(tensor, on_device[0][name]), name


def test_clipping_sums_in_another_order(corpus: Path, tmp_path: Path) -> None:
    clipped = dataclasses.replace(SETTINGS, clip_norm=0.5, tokens=1_000, checkpoints=(1.0,))
    _, expected = trained(corpus, tmp_path / "device", clipped)
    _, losses = trained(corpus, tmp_path / "disk", clipped, engram_storage="disk")
    assert losses == pytest.approx(expected, abs=1e-3)


class Rows(torch.nn.Module):
    """A table and nothing else, read at chosen rows."""

    def __init__(self, table: torch.nn.Module) -> None:
        super().__init__()
        self.table = table
        self.scale = torch.nn.Parameter(torch.ones(1))


def steps_with(model: Rows, config: TrainConfig, steps: int) -> None:
    """Give random gradients to random rows; every 50th step reads other rows, without gradient."""
    optimizer, draw = build_optimizer(model, config), torch.Generator().manual_seed(0)
    for step in range(steps):
        set_learning_rate(optimizer, learning_rate(step, steps, config))
        optimizer.zero_grad()
        rows = torch.randint(
            0, 40, (int(torch.randint(1, 6, (1,), generator=draw)),), generator=draw
        )
        grads = torch.randn(len(rows), 16, generator=draw)
        if step > 5 and step % 7 == 0:
            rows = rows % 3
        read = model.table(rows.view(1, -1, 1)).view(-1, 16)
        (read * grads).sum().backward()
        optimizer.step()
        if step % 50 == 0:
            model.table.eval()
            model.table(torch.arange(20).view(1, -1, 1))
            model.table.train()


@pytest.mark.parametrize(
    ("steps", "beta1", "decay"),
    [(60, 0.9, 0.0), (160, 0.5, 0.0), (60, 0.0, 0.0), (60, 0.99, 0.0), (60, 0.9, 0.1)],
)
def test_rows_that_wait_equal_adamw_on_all_rows(steps: int, beta1: float, decay: float) -> None:
    config = TrainConfig(lr=1e-2, beta1=beta1, table_weight_decay=decay)
    torch.manual_seed(0)
    device = Rows(RowTable(60, 16))
    torch.manual_seed(0)
    host = Rows(HostTable(60, 16))
    for model in (device, host):
        steps_with(model, config, steps)
    saved = host.state_dict()["table.weight"]
    if steps < 100:
        assert torch.equal(saved, device.table.weight)
    torch.testing.assert_close(saved, device.table.weight.detach(), rtol=1e-6, atol=1e-7)
    assert torch.equal(saved[40:], device.table.weight[40:]), "rows that nobody read stay"


def test_gradients_of_several_passes_are_summed() -> None:
    table = HostTable(10, 4)
    for rows, value in (([1, 3], 1.0), ([3, 7], 2.0)):
        leaf = torch.zeros(2, 4, requires_grad=True)
        leaf.grad = torch.full((2, 4), value)
        table.used.append(Used(torch.tensor(rows), leaf))
    (joined,) = table.merge_used()
    assert joined.rows.tolist() == [1, 3, 7]
    assert joined.values.grad is not None
    assert joined.values.grad[:, 0].tolist() == [1.0, 3.0, 2.0]


def test_a_resume_point_holds_what_rows_have_missed() -> None:
    one, two = (RowAdamW(HostTable(10, 16), (0.9, 0.95)) for _ in range(2))
    leaf = torch.zeros(1, 16, requires_grad=True)
    leaf.grad = torch.ones(1, 16)
    one.table.used.append(Used(torch.tensor([4]), leaf))
    one.step(0.1)
    one.table.used.clear()
    one.step(0.1)
    two.table.weight.copy_(one.table.weight)
    two.unpack(one.pack())
    before = two.table.weight[4].clone()
    for each in (one, two):
        each.refresh(torch.tensor([4, 5]))
    assert torch.equal(one.table.weight, two.table.weight)
    assert not torch.equal(two.table.weight[4], before), "one step was still to be made up for"


def test_frozen_rows_elsewhere_are_not_trained(corpus: Path, tmp_path: Path) -> None:
    frozen = {"engram_frozen_table": True}
    few = dataclasses.replace(SETTINGS, tokens=500, checkpoints=(1.0,))
    weights, losses = trained(corpus, tmp_path / "disk", few, engram_storage="disk", **frozen)
    expected, expected_losses = trained(corpus, tmp_path / "device", few, **frozen)
    assert losses == expected_losses
    name = "model.layers.1.engram.table.weight"
    assert torch.equal(weights[name], expected[name])
