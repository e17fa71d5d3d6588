"""New passages told to a model by gradient descent: on all weights, or on the memory's rows alone.

Both take as many steps on the same passages in the same order, with the optimiser of the training
at a constant rate. The rate is the one of several after which people who are not scored come off

best: the mean of exact answers on their changed facts, as told and in other words, and on all else
that is asked of them.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram_eval.adapters.load import load_model
from engram_eval.arrays import Floats, Ints
from engram_eval.environment import compute_device
from engram_eval.errors import UserError
from engram_eval.evaluation.heldout import token_bits
from engram_eval.evaluation.heldout_stage import windows
from engram_eval.evaluation.stage import fast_lm
from engram_eval.models.offload import HostTable
from engram_eval.models.table import RowTable
from engram_eval.records import MetricRow
from engram_eval.training.optim import (
    TABLE_SUFFIX,
    build_optimizer,
    clip_gradients,
    set_learning_rate,
    trained,
)
from engram_eval.updates.changes import passages
from engram_eval.updates.told import BEFORE, NAME, Told, answered, cost_rows, groups, measure

NOT_COUNTED = -100

State = Mapping[str, Tensor]


def finetune(told: Told) -> list[MetricRow]:
    """Tell a model by moving all of its weights."""
    return _by_gradients(told, rows_alone=False)


def rows(told: Told) -> list[MetricRow]:
    """Tell a model by moving the rows that the passages read, and nothing else.

    Raises:
        UserError: it has no table of rows that are trained.
    """
    return _by_gradients(told, rows_alone=True)


def _by_gradients(told: Told, rows_alone: bool) -> list[MetricRow]:
    assert told.model is not None
    model = load_model(told.model).to(compute_device())
    movable(model, rows_alone)
    lm = fast_lm(model, told.corpus.tokenizer(), told.evaluate.batch_size)

    def bits(tokens: Ints) -> Floats:
        per_pass = windows(told.evaluate)
        end_id = told.corpus.end_id
        return token_bits(model, tokens, told.evaluate.seq_len, per_pass, model.device, end_id)

    before = measure(told, lm, bits, BEFORE)
    old = state_of(model)
    best = _chosen(told, model, lm, old, rows_alone)
    restore(model, best.state)
    return [
        *before,
        *measure(told, lm, bits),
        *cost_rows(best.seconds, changed_bytes(model, old)),
        MetricRow(NAME, "update_rate", best.rate),
    ]


class Tried(NamedTuple):
    """What came of one rate; ``score`` is over the people who choose."""

    score: float
    rate: float
    seconds: float
    state: State


def _chosen(told: Told, model: nn.Module, lm: Any, old: State, rows_alone: bool) -> Tried:
    """Try all rates and return the best; of equals the lowest."""
    tokenizer, end_id = told.corpus.tokenizer(), told.corpus.end_id
    texts = [
        [end_id, *ids, end_id]
        for ids in tokenizer(passages(told.changes), add_special_tokens=False)["input_ids"]
    ]
    rates = told.options.row_rates if rows_alone else told.options.weight_rates
    best: Tried | None = None
    with told.report.task("tell, rate by rate", len(rates)) as task:
        for rate in sorted(rates):
            restore(model, old)
            started = time.perf_counter()
            tell(model, texts, told, rate)
            seconds = time.perf_counter() - started
            score = score_of(told, lm)
            task.advance(1, f"rate {rate:g}: {score:.3f}")
            if best is None or score > best.score:
                best = Tried(score, rate, seconds, state_of(model))
    assert best is not None
    return best


def score_of(told: Told, lm: Any) -> float:
    """Return how well a model answers about those people by whom rates are chosen, 0 to 1."""
    asked = told.asked(choosing=True)
    right = answered(lm, asked)
    found = {tuple(labels.values()): right[places] for labels, places in groups(asked)}
    other = np.concatenate([found.get((kind,), right[:0]) for kind in ("neighbours", "unchanged")])
    parts = [found[("changed", wording)] for wording in ("told", "untold")]
    return float(np.mean([part.mean() for part in (*parts, other)]))


def movable(model: nn.Module, rows_alone: bool) -> None:
    """Let gradients reach all weights, or rows of a table alone.

    Raises:
        UserError: rows are asked for, and there is no trained table; or one lies elsewhere.
    """
    if any(isinstance(module, HostTable) for module in model.modules()):
        raise UserError("weights are moved on the device; this model's table lies elsewhere")
    frozen = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, RowTable) and module.frozen
    }
    for name, parameter in model.named_parameters():
        wanted = not rows_alone or name.endswith(TABLE_SUFFIX)
        parameter.requires_grad_(wanted and name not in frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            "way 'rows' moves a memory's rows; this model has no table of rows that are trained"
        )


def state_of(model: nn.Module) -> State:
    """Return a copy of everything that gradients reach."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def restore(model: nn.Module, state: State) -> None:
    """Put a copy back."""
    parameters = dict(model.named_parameters())
    for name, values in state.items():
        parameters[name].copy_(values)


def changed_bytes(model: nn.Module, old: State) -> int:
    """Return the bytes of the numbers that are not what they were."""
    parameters = dict(model.named_parameters())
    return sum(
        int((parameters[name] != values).sum()) * values.element_size()
        for name, values in old.items()
    )


def tell(model: nn.Module, texts: Sequence[Sequence[int]], told: Told, rate: float) -> None:
    """Take all steps at one rate, on passages shuffled anew for each pass over them.

    Args:
        model: left in evaluation mode, so that no router balances its load meanwhile.
        texts: tokens of each passage, ends of text before and behind it.
        told: steps, and how the model was trained. Rows that are not read must stay, so that a
            table does not decay.
        rate: over the peak rate in training.
    """
    config = dataclasses.replace(told.train, table_weight_decay=0.0, lr=told.train.lr * rate)
    optimizer = build_optimizer(model, config)
    set_learning_rate(optimizer, config.lr)
    parts = trained(model)
    device = next(model.parameters()).device
    batches = _batches(len(texts), told.options.batch_size, told.seed)
    for _ in range(told.options.steps):
        inputs, labels = _padded([texts[place] for place in next(batches)])
        logits = model(input_ids=inputs.to(device), use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.to(device).flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(parts, config.clip_norm)
        optimizer.step()


def _batches(count: int, size: int, seed: int) -> Iterator[Ints]:
    """Yield places of passages for ever: permutations, one behind the other, cut into batches."""
    rng, left = np.random.default_rng(seed), np.zeros(0, np.int64)
    while True:
        while len(left) < size:
            left = np.concatenate([left, rng.permutation(count)])
        yield left[:size]
        left = left[size:]


def _padded(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return inputs and labels, (B, T); what pads is no label."""
    width = max(map(len, texts)) - 1
    inputs = torch.zeros((len(texts), width), dtype=torch.int64)
    labels = torch.full((len(texts), width), NOT_COUNTED)
    for row, tokens in enumerate(texts):
        inputs[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        labels[row, : len(tokens) - 1] = torch.tensor(tokens[1:])
    return inputs, labels
