"""The documented training loop of one's own is ours, step for step."""

import re
from pathlib import Path

import numpy as np
import torch
from models_fixture import full, tokens
from torch import nn

from engram_eval.config import TrainConfig
from engram_eval.training.data import Batch
from engram_eval.training.optim import build_optimizer, parameter_groups, set_learning_rate
from engram_eval.training.step import stepper

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
BATCHES = [tokens(2, 12, seed) for seed in range(4)]


def documented() -> str:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (block,) = [block for block in blocks if "parameter_groups" in block]
    return str(block)


def test_it_takes_our_steps() -> None:
    model, twin = full(), full()
    exec(documented(), {"model": model, "batches": BATCHES})
    config = TrainConfig(
        lr=2e-3, table_lr_multiplier=5.0, embedding_lr_multiplier=5.0, router_bias_rate=0.01,
        clip_norm=1.0, beta1=0.9, beta2=0.95, weight_decay=0.1, autocast_bf16=False,
    )  # fmt: skip
    optimizer = build_optimizer(twin, config)
    step = stepper(twin, optimizer, config)
    for number, ids in enumerate(BATCHES):
        set_learning_rate(optimizer, config.lr * 0.99**number)
        labels = nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
        step(Batch(ids, labels, np.arange(2), 0))
    fresh = full().state_dict()
    for (name, found), expected in zip(
        model.state_dict().items(), twin.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)
        # Only the hash's constants stay.
        changed = not torch.equal(found, fresh[name])
        assert changed == (".hash." not in name and "token_history" not in name), name


def test_rates_by_hand() -> None:
    config = TrainConfig(lr=0.01, table_lr_multiplier=5.0, expert_lr_multiplier=0.5)
    rates = {group["name"]: group["lr"] for group in parameter_groups(full(), config)}
    assert rates == {"matrices": 0.01, "vectors": 0.01, "experts": 0.005, "table": 0.05}
