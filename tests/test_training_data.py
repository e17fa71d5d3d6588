"""Batches: every token once per epoch, order from the seed alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_eval.errors import UserError
from engram_eval.training.data import Batches


@settings(deadline=None, max_examples=60)
@given(
    n_tokens=st.integers(9, 400),
    seq_len=st.integers(1, 8),
    batch_size=st.integers(1, 7),
    seed=st.integers(0, 5),
)
def test_every_target_once_per_epoch(
    n_tokens: int, seq_len: int, batch_size: int, seed: int
) -> None:
    tokens = np.arange(n_tokens, dtype=np.uint16)
    batches = Batches(tokens, seq_len, batch_size, seed)
    per_epoch = batches.n_sequences * seq_len
    steps = -(-2 * batches.n_sequences // batch_size)
    targets = torch.cat([batches.batch(step).labels.flatten() for step in range(steps)]).numpy()
    for epoch in range(2):
        part = np.sort(targets[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert np.array_equal(part, np.arange(1, per_epoch + 1))
    assert n_tokens - 1 - per_epoch < seq_len
    assert batches.epochs(steps) >= 2


def test_labels_follow_inputs() -> None:
    tokens = np.arange(100, dtype=np.uint16)
    batch = Batches(tokens, 8, 4, seed=1).batch(0)
    assert batch.inputs.shape == batch.labels.shape == (4, 8)
    assert batch.inputs.dtype == torch.int64
    assert torch.equal(batch.labels, batch.inputs + 1)
    assert np.array_equal(batch.inputs[:, 0].numpy(), batch.sequences * 8)


def test_a_batch_depends_on_the_step_alone() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    forward, backward = Batches(tokens, 8, 16, 3), Batches(tokens, 8, 16, 3)
    there = [forward.batch(step).inputs for step in range(20)]
    back = [backward.batch(step).inputs for step in reversed(range(20))]
    assert all(torch.equal(a, b) for a, b in zip(there, reversed(back), strict=True))


def test_seeds_and_epochs_differ_in_order() -> None:
    tokens = np.arange(1001, dtype=np.uint16)
    one, two = Batches(tokens, 10, 100, 0), Batches(tokens, 10, 100, 1)
    assert not torch.equal(one.batch(0).inputs, two.batch(0).inputs)
    assert not torch.equal(one.batch(0).inputs, one.batch(1).inputs)
    assert (one.batch(0).epoch, one.batch(1).epoch) == (0, 1)


def test_a_batch_may_hold_several_epochs() -> None:
    batch = Batches(np.arange(9, dtype=np.uint16), 4, 5, 0).batch(0)
    assert sorted(batch.sequences[:2]) == sorted(batch.sequences[2:4]) == [0, 1]


def test_too_short_a_corpus_is_named() -> None:
    with pytest.raises(UserError, match="8 training tokens; one sequence takes 9"):
        Batches(np.zeros(8, dtype=np.uint16), 8, 2, 0)
