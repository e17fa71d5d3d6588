"""The fast training path against the plain one: the same losses, step for step."""

import dataclasses
from functools import cache

import native_tools
import pytest
import torch
import torch.nn.functional as F
import training_tools as tools
from torch import Tensor

from engram_eval.config import TrainConfig
from engram_eval.costs.ledger import architecture_config
from engram_eval.models import grouped_experts, moe, norm
from engram_eval.models.compiled import compile_blocks
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.scales import SCALES
from engram_eval.training.data import Batch, Batches
from engram_eval.training.optim import build_optimizer, parameter_groups, set_learning_rate
from engram_eval.training.step import stepper
from engram_eval.training.watch import Watch

STEPS = 50
SETTINGS = TrainConfig(seq_len=64, batch_size=3, router_bias_rate=0.0, router_aux_loss_coef=0.0)
WIDE = {
    **{"vocab_size": 320, "hidden_size": 32, "moe_intermediate_size": 32},
    **{"shared_expert_intermediate_size": 32, "engram_row_dim": 8},
}
"""Whole blocks of 32, which a matrix unit takes."""


def plain_experts(
    x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor, loads: Tensor
) -> Tensor:
    """Every expert on every token; what was not chosen counts nothing."""
    share = torch.zeros(len(x), len(loads)).scatter(1, chosen, weights)
    gate, up = torch.einsum("nd,edf->enf", x, gate_up).chunk(2, dim=-1)
    outputs = torch.einsum("enf,efd->end", F.silu(gate) * up, down)
    return torch.einsum("end,ne->nd", outputs.float(), share).to(x.dtype)


def plain_norm(self: norm.RMSNorm, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), None, self.eps) * self.weight


def plain_step(
    model: EngramForCausalLM, optimizer: torch.optim.Optimizer, batch: Batch, config: TrainConfig
) -> float:
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=config.autocast_bf16):
        logits = model(input_ids=batch.inputs, use_cache=False).logits
    loss = F.cross_entropy(logits.float().flatten(0, 1), batch.labels.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    return loss.item()


@cache
def losses(name: str, fast: bool, config: TrainConfig, seed: int = 0) -> Tensor:
    implementation = "sdpa" if fast else "eager"
    architecture = {**tools.ARCHITECTURES[name], **WIDE, "engram_compression": False}
    tokens = torch.randint(300, (4000,), generator=torch.Generator().manual_seed(1))
    # Half of the text repeats, so that there is something to learn.
    tokens[2000:] = tokens[:50].repeat(40)
    batches = Batches(tokens.numpy(), config.seq_len, config.batch_size, 0)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        if not fast:
            native_tools.take_away(patch)
            patch.setattr(moe, "grouped_experts", plain_experts)
            patch.setattr(norm.RMSNorm, "forward", plain_norm)
        torch.manual_seed(seed)
        config_of_model = architecture_config(architecture)
        config_of_model._attn_implementation = implementation
        model = EngramForCausalLM(config_of_model).train()
        optimizer: torch.optim.Optimizer = (
            build_optimizer(model, config)
            if fast
            else torch.optim.AdamW(
                parameter_groups(model, config),
                lr=config.lr,
                betas=(config.beta1, config.beta2),
                foreach=False,
            )
        )
        set_learning_rate(optimizer, config.lr)
        take = stepper(model, optimizer, config)
        found = [
            take(batches.batch(step)).loss.item()
            if fast
            else plain_step(model, optimizer, batches.batch(step), config)
            for step in range(STEPS)
        ]
    return torch.tensor(found)


@pytest.mark.parametrize("name", ["dense", "moe", "engram"])
def test_fifty_steps_equal_the_plain_path(name: str) -> None:
    assert moe.grouped_experts is grouped_experts.grouped_experts
    config = dataclasses.replace(SETTINGS, autocast_bf16=False)
    fast, plain = (losses(name, kind, config) for kind in (True, False))
    assert fast[-1] < fast[0] - 1
    assert float((fast - plain).abs().max()) < 1e-4


@pytest.mark.parametrize("name", ["dense", "engram"])
def test_in_bf16_it_is_as_close_to_float32_as_the_plain_path(name: str) -> None:
    single = dataclasses.replace(SETTINGS, autocast_bf16=False)
    # What rounding does to fifty steps varies threefold between seeds: a token may go to another
    # expert.
    away: dict[bool, list[Tensor]] = {True: [], False: []}
    for seed in range(3):
        truth = losses(name, False, single, seed)
        for fast, found in away.items():
            found.append(losses(name, fast, SETTINGS, seed) - truth)
    fast, plain = (torch.stack(found) for found in away.values())
    assert 0 < float(fast.norm()) < 1.5 * float(plain.norm())
    assert float(fast.abs().max()) < 0.05


@pytest.mark.slow
def test_compiled_steps_have_the_same_losses() -> None:
    """Blocks and loss through the compiler, routers, gates and tables included."""
    sizes = SCALES["smoke"]
    architecture = {**sizes.backbone, **sizes.experts, **sizes.memory, "vocab_size": 512}
    architecture |= {"engram_compression": False}
    tokens = torch.randint(512, (16 * 64 * 4 + 1,), generator=torch.Generator().manual_seed(0))
    batch = Batches(tokens.numpy(), 64, 16, 0).batch(0)
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = EngramForCausalLM(architecture_config(architecture))
        # In bf16 rounding alone sends a token to another expert now and then.
        settings = dataclasses.replace(sizes.train, compile=compiled, autocast_bf16=False)
        optimizer, watch = build_optimizer(model, settings), Watch(model)
        if compiled:
            compile_blocks(model)
        take = stepper(model, optimizer, settings)
        losses.append([float(take(batch).loss) for _ in range(4)])
        assert 0 < watch.numbers()["gate_mean"] < 1
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and losses[0][3] < losses[0][0]
