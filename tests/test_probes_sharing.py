"""Errors over pairs of people, where people are redrawn and where sums are done by hand."""

import math

import numpy as np
import pytest
import torch
from probes_fixture import llama, noise_sample

from engram_eval.adapters.load import open_model
from engram_eval.analysis.stats import ratio
from engram_eval.arrays import Floats
from probes.patching import Patch, patching
from probes.people import Pair, People, people_of, swapped
from probes.surgery import _flip_row

COUNT, DRAWS = 48, 400


def drawn(rng: np.random.Generator, pairs: int) -> list[Pair]:
    """Pair people as the probes do: any two, each of them in several pairs."""
    return [
        Pair((), (), (0, 0), 0, 0, *map(int, rng.choice(COUNT, 2, replace=False)), 0, 0)
        for _ in range(pairs)
    ]


def latent(rng: np.random.Generator, pairs: list[Pair], sides: tuple[float, float]) -> Floats:
    """Give each pair something of either person, and something of its own."""
    own = rng.normal(size=COUNT)
    return own[people_of(pairs)] @ np.array(sides) + rng.normal(size=len(pairs))


@pytest.mark.parametrize("sides", [(1, 1), (1, 0), (0.5, 0.5)])
def test_patching_errors_are_the_spread_over_redrawn_people(
    sides: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr("probes.patching.known", lambda _, pairs: np.ones(len(pairs), bool))
    monkeypatch.setattr("probes.patching.patches", lambda _: [Patch("resid_pre", 0, "last")])
    # All that asks it is replaced.
    adapter, text = open_model(llama()), noise_sample(2)
    found: dict[str, list[tuple[float, float]]] = {"restored": [], "flip_rate": []}
    for _ in range(DRAWS):
        pairs = drawn(rng, 96)
        effect, one = latent(rng, pairs, sides), np.ones(96)
        effects = np.stack([one, -one, effect])
        monkeypatch.setattr("probes.patching.patch_effects", lambda *_, e=effects: e)
        for row in patching(adapter, People(tuple(pairs), {}, text)).rows:
            if row.metric in found:
                found[row.metric].append((row.value, row.stderr))
    for numbers in found.values():
        values, errors = np.array(numbers).T
        assert math.sqrt(np.square(errors).mean()) == pytest.approx(values.std(), rel=0.1)


def test_surgery_errors_are_the_spread_over_redrawn_people() -> None:
    """A pair and its mirror are one exchange, and flip together."""
    rng = np.random.default_rng(0)
    numbers = []
    for _ in range(DRAWS):
        pairs = drawn(rng, 64)
        flips = latent(rng, pairs, (1, 1)) > 0
        both = torch.from_numpy(np.concatenate([flips, flips]))
        (row,) = _flip_row("rows_exchanged", "same_wording", both, [*pairs, *swapped(pairs)])
        (once,) = _flip_row("rows_exchanged", "same_wording", both[:64], pairs)
        assert row.stderr == pytest.approx(once.stderr)
        numbers.append((row.value, row.stderr))
    values, errors = np.array(numbers).T
    assert math.sqrt(np.square(errors).mean()) == pytest.approx(values.std(), rel=0.1)


def by_hand(top: Floats, bottom: Floats, sources: np.ndarray) -> float:
    """Add up the products of residuals that share a source, two at a time."""
    rest = top - top.sum() / bottom.sum() * bottom
    total = weight = 0.0
    for i, one in enumerate(sources):
        for j, two in enumerate(sources):
            if set(one) & set(two):
                total += rest[i] * rest[j]
                weight += bottom[i] * bottom[j]
    return math.sqrt(total / (1 - weight / bottom.sum() ** 2)) / bottom.sum()


@pytest.mark.parametrize("width", [2, 3])
def test_errors_equal_sums_by_hand(width: int) -> None:
    rng = np.random.default_rng(0)
    sources, own = rng.integers(12, size=(60, width)), rng.normal(size=12)
    bottom = rng.uniform(0.5, 2, 60)
    top = bottom * own[sources].sum(1) + rng.normal(size=60)
    found = ratio(top, bottom, sources)
    assert found.value == pytest.approx(top.sum() / bottom.sum())
    assert found.stderr == pytest.approx(by_hand(top, bottom, sources))
    # Neither the order of the two nor the numbers of people matter.
    again = ratio(top, bottom, 100 - sources[:, ::-1])
    assert again.stderr == pytest.approx(found.stderr)


def test_pairs_that_share_nobody_are_plain_numbers() -> None:
    rng = np.random.default_rng(0)
    values, sources = rng.normal(size=20), np.arange(40).reshape(20, 2)
    expected = ratio(values, np.ones(20)).stderr
    assert ratio(values, np.ones(20), sources).stderr == pytest.approx(expected)
    assert expected == pytest.approx(values.std(ddof=1) / math.sqrt(20))


def test_an_error_is_not_less_than_that_of_pairs_that_share_nobody() -> None:
    """Planted: every person's pairs cancel out."""
    ring = np.stack([np.arange(20), (np.arange(20) + 1) % 20], axis=1)
    values = np.tile([1.0, -1.0], 10)
    expected = ratio(values, np.ones(20)).stderr
    assert ratio(values, np.ones(20), ring).stderr == pytest.approx(expected)


def test_where_all_share_somebody_there_is_no_error() -> None:
    one = np.ones(3)
    assert ratio(np.arange(3.0), one, np.array([[0, 1], [0, 2], [3, 0]])).stderr is None
    assert ratio(np.arange(3.0), one, np.array([[0, 1], [1, 2], [2, 0]])).stderr is None
    assert ratio(np.arange(3.0), one, np.array([[0, 1], [1, 0], [0, 1]])) == (1.0, None)
