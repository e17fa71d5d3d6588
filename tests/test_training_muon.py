"""Muon: torch's own for matrices, ours for stacks of them, AdamW for the rest; resumed exactly."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import training_tools as tools
from safetensors.torch import load_file
from torch import nn

from engram_eval.config import TrainConfig
from engram_eval.costs.ledger import architecture_config
from engram_eval.errors import UserError
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.progress import Reporter
from engram_eval.stage_config import TrainStage
from engram_eval.training import muon
from engram_eval.training.checkpoint import pack, unpack
from engram_eval.training.data import Batches
from engram_eval.training.muon import Muon, hidden_matrices, orthogonal
from engram_eval.training.optim import build_optimizer, set_learning_rate
from engram_eval.training.stage import train
from engram_eval.training.step import stepper

CONFIG = dataclasses.replace(tools.SETTINGS, optimizer="muon", autocast_bf16=False)
Step = Callable[[int, int], None]


def model_of(name: str = "engram", **options: Any) -> EngramForCausalLM:
    torch.manual_seed(0)
    keys = {**tools.ARCHITECTURES[name], "engram_compression": False, **options}
    return EngramForCausalLM(architecture_config(keys))


def names_of(model: nn.Module, group: dict[str, Any]) -> set[str]:
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)] for p in group["params"]}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("shape", [(4, 12, 6), (3, 5, 20), (2, 8, 8)])
def test_all_move_as_torchs_muon_moves_each_matrix(
    shape: tuple[int, ...], together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stack of matrices, the same ones singly, and another one among them."""
    monkeypatch.setattr(muon, "LARGE", 2**18 if together else 0)
    torch.manual_seed(0)
    stack = nn.Parameter(torch.randn(shape))
    copies = [[nn.Parameter(m.clone()) for m in stack.detach()] for _ in range(2)]
    other = [nn.Parameter(torch.ones(3, 7)) for _ in range(2)]
    settings = {"lr": 0.02, "momentum": 0.95}
    mine = [stack, copies[0][0], other[0], *copies[0][1:]]
    ours = Muon([{"params": mine, "weight_decay": 0.3}], **settings)
    torchs = torch.optim.Muon(
        [*copies[1], other[1]], weight_decay=0.3, adjust_lr_fn="match_rms_adamw", **settings
    )
    for _ in range(3):
        stack.grad = torch.randn(shape)
        for number, grad in enumerate(stack.grad):
            for matrices in copies:
                matrices[number].grad = grad.clone()
        other[0].grad = torch.randn(3, 7)
        other[1].grad = other[0].grad.clone()
        before = stack.detach().clone()
        ours.step()
        torchs.step()
        moved = (stack.detach() - before).abs().mean()
        truth = torch.stack(list(copies[1])).detach()
        # All iterate in bfloat16, in another order.
        for found in (stack.detach(), torch.stack(list(copies[0])).detach()):
            assert (found - truth).abs().mean() < 0.01 * moved
        assert (other[0] - other[1]).abs().mean() < 0.01 * moved
    with pytest.raises(ValueError, match="only supports 2D"):
        torch.optim.Muon([stack])


@pytest.mark.parametrize("shape", [(3, 40, 16), (3, 16, 40)])
def test_updates_are_orthogonal_in_the_directions_of_the_gradient(shape: tuple[int, ...]) -> None:
    """Singular vectors stay (to bfloat16), singular values come near 1."""
    draw = torch.Generator().manual_seed(0)
    stack = torch.randn(shape, generator=draw) * torch.tensor([1e-3, 1.0, 1e3]).view(3, 1, 1)
    found = orthogonal(stack).float()
    left, _, right = torch.linalg.svd(stack, full_matrices=False)
    inner = left.mT @ found @ right.mT
    values = inner.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.6 and values.max() < 1.3
    assert (inner - torch.diag_embed(values)).abs().max() < 0.1
    assert torch.equal(orthogonal(torch.zeros(2, 4, 6)), torch.zeros(2, 4, 6).bfloat16())


def test_hidden_matrices_are_muons_and_everything_else_is_adamws() -> None:
    model = model_of()
    first, *others = build_optimizer(model, CONFIG).param_groups
    hidden = names_of(model, first)
    assert hidden >= {
        f"model.layers.1.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")
    }
    assert "model.layers.0.self_attn.q_proj.weight" in hidden
    assert "model.layers.1.engram.value_proj.weight" in hidden
    rest = set().union(*(names_of(model, group) for group in others))
    assert rest == {n for n, _ in model.named_parameters()} - hidden
    assert rest >= {
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.engram.table.weight",
        "model.layers.1.engram.conv.weight",
    }
    assert {group["lr_scale"] for group in others} == {1.0, CONFIG.table_lr_multiplier}
    tied = model_of("dense", tie_word_embeddings=True)
    assert id(tied.lm_head.weight) not in hidden_matrices(tied)


def test_what_is_not_muons_moves_as_by_adamw_alone() -> None:
    models, generator = [model_of(), model_of()], torch.Generator().manual_seed(0)
    optimizers = [
        build_optimizer(model, dataclasses.replace(CONFIG, optimizer=name))
        for model, name in zip(models, ("muon", "adamw"), strict=True)
    ]
    for _ in range(2):
        for one, two in zip(*(model.parameters() for model in models), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            two.grad = one.grad.clone()
        for optimizer in optimizers:
            set_learning_rate(optimizer, 0.01)
            optimizer.step()
            optimizer.zero_grad()
    hidden = hidden_matrices(models[0])
    for one, two in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, two) != (id(one) in hidden)
        assert one.grad is None


def steps_of(model: EngramForCausalLM, optimizer: torch.optim.Optimizer) -> Step:
    text = torch.randint(1, 300, (2_000,), generator=torch.Generator().manual_seed(1)).numpy()
    batches = Batches(text, 16, 2, 0)

    take = stepper(model, optimizer, CONFIG)

    def run(first: int, last: int) -> None:
        for step in range(first, last):
            set_learning_rate(optimizer, 0.01 * (step + 1))
            take(batches.batch(step))

    return run


@pytest.mark.parametrize("storage", ["device", "host"])
def test_resumed_in_the_middle_it_ends_with_the_same_bits(storage: str) -> None:
    made = [model_of(engram_storage=storage, engram_row_dim=16) for _ in range(3)]
    whole, half, resumed = ((m, build_optimizer(m, CONFIG)) for m in made)
    steps_of(*whole)(0, 6)
    steps_of(*half)(0, 3)
    saved = pack(*half)
    assert any(name.startswith("optimizer.momentum_buffer.model.layers") for name in saved)
    unpack(saved, *resumed)
    steps_of(*resumed)(3, 6)
    ends = [model.state_dict() for model, _ in (whole, resumed)]
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name
    untouched = model_of(engram_storage=storage, engram_row_dim=16).state_dict()
    for name in ("layers.1.mlp.experts.down_proj", "layers.1.engram.table.weight"):
        assert not torch.equal(ends[0][f"model.{name}"], untouched[f"model.{name}"])


def test_a_run_trains_with_it(tmp_path: Path) -> None:
    corpus = tools.make_corpus(tmp_path / "corpus")
    weights = {}
    for name in ("adamw", "muon"):
        out = tmp_path / name
        out.mkdir()
        settings = dataclasses.replace(tools.SETTINGS, optimizer=name, checkpoints=(1.0,))
        stage = TrainStage(tools.ARCHITECTURES["moe"], settings)
        rows = train({"corpus": corpus}, stage, 0, out, Reporter(quiet=True))
        losses = [r.value for r in rows if r.metric == "loss_nats" and r.split == "val"]
        assert losses and all(0 < loss < 5.6 for loss in losses if loss is not None)
        weights[name] = load_file(out / "model" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(weights["adamw"][name], weights["muon"][name])


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown optimizer 'moun' \(did you mean 'muon'\?\)"):
        build_optimizer(model_of("dense"), TrainConfig(optimizer="moun"))
