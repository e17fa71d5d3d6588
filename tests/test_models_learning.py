"""Planted signal: text whose next token is a fixed random function of the last two."""

import math

import pytest
import torch
from models_fixture import build

VOCAB = 40


def planted_text(batch: int, length: int, generator: torch.Generator) -> torch.Tensor:
    rule = torch.randint(1, VOCAB, (VOCAB, VOCAB), generator=torch.Generator().manual_seed(7))
    columns = list(torch.randint(1, VOCAB, (2, batch), generator=generator))
    for _ in range(length - 2):
        noise = torch.randint(1, VOCAB, (batch,), generator=generator)
        kept = torch.rand(batch, generator=generator) < 0.8
        columns.append(torch.where(kept, rule[columns[-2], columns[-1]], noise))
    return torch.stack(columns, dim=1)


def loss_after_training(blind: bool = False, steps: int = 60, **options: object) -> float:
    """Return the last losses' mean; ``blind`` memories look up the n-grams of other text."""
    model = build(vocab_size=VOCAB, num_hidden_layers=1, initializer_range=0.05, **options).train()
    tables = [p for name, p in model.named_parameters() if "table" in name]
    others = [p for name, p in model.named_parameters() if "table" not in name]
    groups = [{"params": others, "lr": 5e-3}, {"params": tables, "lr": 2.5e-2}]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        ids = planted_text(32, 64, generator)
        rows = model.model.ngram_rows(ids.flip(0)) if blind else None
        loss = model(ids, labels=ids, engram_rows=rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-5:]) / 5


MEMORY = {
    "engram_layers": [0],
    "engram_rows": [1600, 400],
    "engram_heads": 2,
    "engram_row_dim": 16,
    "engram_compression": False,
}
# 0.8 + 0.2/39 of the mass on one token, the rest even over 38.
FLOOR = -(0.805 * math.log(0.805) + 0.195 * math.log(0.195 / 38))


@pytest.fixture(scope="module")
def without_memory() -> float:
    return loss_after_training()


@pytest.mark.parametrize("gate", ["plain", "signed_sqrt", "none"])
def test_memory_learns_what_the_backbone_has_not_yet(gate: str, without_memory: float) -> None:
    found = loss_after_training(**MEMORY, engram_gate=gate)
    assert FLOOR < found < FLOOR + 0.25
    assert without_memory > FLOOR + 1.5


def test_memory_of_other_text_does_not_help(without_memory: float) -> None:
    assert loss_after_training(**MEMORY, blind=True) > without_memory - 0.1
