"""CKA against a slow U-statistic, its invariances, and pairs of models known in advance."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probes_fixture import engram, llama, noise_sample

from engram_eval.adapters.load import open_model
from engram_eval.errors import UserError
from probes.cka import CkaFitter, cka, compared_tokens, neighbours, soft_alignment
from probes.cka import similarity as model_similarity
from probes.hsic import _centred_gram, _feature_hsic, _features, _prefers_features, unbiased_hsic


def slow_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC as a fourth-order U-statistic: Song et al. 2012, eq. 2 and 3, term by term."""
    k, n = x @ x.T, len(x)
    other = y @ y.T
    pairs = [k[i, j] * other[i, j] for i, j in itertools.permutations(range(n), 2)]
    fours = [k[i, j] * other[q, r] for i, j, q, r in itertools.permutations(range(n), 4)]
    threes = [k[i, j] * other[i, q] for i, j, q in itertools.permutations(range(n), 3)]
    return float(np.mean(pairs) + np.mean(fours) - 2 * np.mean(threes))


def noise(seed: int, n: int, width: int) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def fit(first: torch.Tensor, second: torch.Tensor, batch: int = 0) -> float:
    fitter = CkaFitter()
    for start in range(0, len(first), batch or len(first)):
        part = slice(start, start + (batch or len(first)))
        fitter.update([first[part]], [second[part]])
    return float(fitter.result().cross.value[0, 0])


@given(st.integers(0, 10_000))
def test_hsic_is_the_u_statistic(seed: int) -> None:
    x, y = noise(seed, 7, 3), noise(seed + 1, 7, 2) + 5
    found = unbiased_hsic(_centred_gram(x)[None], _centred_gram(y)[None])
    assert float(found) == pytest.approx(slow_hsic(x.numpy(), y.numpy()), abs=1e-4)


@given(st.integers(0, 10_000), st.integers(4, 60), st.integers(1, 7), st.integers(1, 3))
def test_products_of_features_give_what_gram_matrices_give(
    seed: int, n: int, width: int, layers: int
) -> None:
    first = [noise(seed + i, n, width).double() + i for i in range(layers)]
    second = [3 * noise(seed, n, width).double()[:, :2] - x[:, :1] for x in first[:2]]
    for a, b in ((first, second), (second, first), (first, first)):
        grams = [torch.stack([_centred_gram(x) for x in part]) for part in (a, b)]
        found = _feature_hsic(_features(a), _features(b))
        torch.testing.assert_close(found, unbiased_hsic(*grams), rtol=1e-8, atol=1e-8)
    itself, equal = _features(first), _features(first)
    torch.testing.assert_close(_feature_hsic(itself, itself), _feature_hsic(itself, equal))


def test_the_cheaper_way_is_taken() -> None:
    narrow, wide = [noise(0, 64, 4)] * 2, [noise(0, 64, 256)] * 2
    assert _prefers_features(narrow, narrow)
    assert not _prefers_features(wide, wide)
    assert not _prefers_features([noise(0, 64, 4), noise(0, 64, 5)], narrow)


@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-10, 10))
def test_invariances(seed: int, scale: float, shift: float) -> None:
    x = noise(seed, 40, 6)
    y = x @ noise(seed + 1, 6, 5) + 0.5 * noise(seed + 2, 40, 5)
    rotation = torch.linalg.qr(noise(seed + 3, 6, 6)).Q
    assert fit(scale * x @ rotation + shift, y) == pytest.approx(fit(x, y), abs=1e-3)
    assert fit(x, y) == pytest.approx(fit(y, x), abs=1e-6)
    assert fit(x, x) == pytest.approx(1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    assert fit(x[order], y[order]) == pytest.approx(fit(x, y), abs=1e-4)


def test_independent_noise_is_zero_in_expectation() -> None:
    # Width far above n: the biased estimator would give values near 1 here.
    values = [fit(noise(2 * i, 32, 128), noise(2 * i + 1, 32, 128)) for i in range(200)]
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    assert np.mean(values) < 0.02


def test_streaming_equals_the_sums_of_its_batches() -> None:
    x, y = noise(0, 60, 5), noise(0, 60, 5)[:, :3] + 0.3 * noise(1, 60, 3)
    parts = [slice(0, 20), slice(20, 40), slice(40, 60)]

    def total(a: torch.Tensor, b: torch.Tensor) -> float:
        return sum(
            float(unbiased_hsic(_centred_gram(a[p])[None], _centred_gram(b[p])[None]))
            for p in parts
        )

    expected = total(x, y) / math.sqrt(total(x, x) * total(y, y))
    assert fit(x, y, batch=20) == pytest.approx(expected)
    assert fit(x, y, batch=20) == pytest.approx(fit(x, y), abs=0.1)


def test_jackknife_error_is_about_the_spread_over_samples() -> None:
    def draw(seed: int) -> tuple[float, float]:
        x = noise(seed, 256, 4)
        y = x + noise(seed + 10_000, 256, 4)
        fitter = CkaFitter()
        for start in range(0, 256, 32):
            fitter.update([x[start : start + 32]], [y[start : start + 32]])
        found = fitter.result().cross
        return float(found.value[0, 0]), float(found.stderr[0, 0])

    values, errors = zip(*(draw(seed) for seed in range(60)), strict=True)
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.35)


def test_one_batch_has_no_error_and_a_constant_layer_no_similarity() -> None:
    fitter = CkaFitter()
    fitter.update([noise(0, 9, 2)], [torch.ones(9, 2)])
    found = fitter.result().cross
    assert found.value[0, 0] == 0
    assert not len(found.draws)
    assert np.isnan(found.stderr).all()
    assert found.n == 9


def test_too_little() -> None:
    with pytest.raises(UserError, match="minibatch of 3 examples; at least 4"):
        CkaFitter().update([noise(0, 3, 2)], [noise(1, 3, 2)])
    with pytest.raises(UserError, match="no minibatch"):
        CkaFitter().result()


def test_soft_alignment_by_hand() -> None:
    similarity = np.array([[0.1, 0.9], [0.5, 0.3], [0.4, -0.2]])
    first, second = soft_alignment(similarity, k=2)
    assert first == pytest.approx((0.5 * 1 + 0.4 * 2) / 0.9)
    assert second == pytest.approx(0.3 * 1 / 1.2)
    assert soft_alignment(similarity, k=1) == [1.0, 0.0]
    assert soft_alignment(-np.ones((2, 1))) == [None]
    # More neighbours than layers: all of them.
    assert soft_alignment(np.ones((3, 1)), k=5) == [1.0]


@pytest.mark.parametrize(("layers", "k"), [(1, 1), (8, 1), (9, 2), (12, 2), (30, 5)])
def test_neighbours_are_the_papers_at_its_depth(layers: int, k: int) -> None:
    assert neighbours(layers) == k


def test_a_model_resembles_itself() -> None:
    adapter = open_model(engram())
    findings = cka(adapter, adapter, noise_sample())
    table = findings.arrays["cka"]
    np.testing.assert_allclose(np.diag(table), 1, atol=1e-6)
    np.testing.assert_allclose(table, table.T, atol=1e-6)
    aligned = [r.value for r in findings.rows if r.metric == "aligned_layer"]
    assert aligned == 4 * [0, 1, 2]
    shifts = [r for r in findings.rows if r.metric == "aligned_shift_layers"]
    assert [(r.condition, r.value, r.ci_low, r.ci_high) for r in shifts] == [
        (None, 0, 0, 0),
        ("of_other", 0, 0, 0),
    ]


def test_planted_shift_of_a_layer() -> None:
    """Two models with one more silent block in front: layer i is layer i + 1."""
    short, long = llama(layers=2, seed=1), llama(layers=3, seed=2)
    long.model.embed_tokens.load_state_dict(short.model.embed_tokens.state_dict())
    with torch.no_grad():
        long.model.layers[0].self_attn.o_proj.weight.zero_()
        long.model.layers[0].mlp.down_proj.weight.zero_()
    for layer in range(2):
        long.model.layers[layer + 1].load_state_dict(short.model.layers[layer].state_dict())
    findings = cka(open_model(short), open_model(long), noise_sample())
    table = findings.arrays["cka"]
    assert table.shape == (2, 3)
    assert table[0, 1] == pytest.approx(1, abs=1e-5)
    assert table[1, 2] == pytest.approx(1, abs=1e-5)
    own = [r for r in findings.rows if r.metric == "aligned_layer" and r.condition is None]
    theirs = [r for r in findings.rows if r.condition == "of_other"]
    assert [(r.layer, r.value) for r in own] == [(0, 1), (1, 2)]
    assert [r.other["layer"] for r in theirs if r.other and "layer" in r.other] == [0, 1, 2]
    assert [r.value for r in theirs if r.metric == "aligned_layer"][1:] == [0, 1]
    shift = next(r for r in findings.rows if r.metric == "aligned_shift_layers")
    assert (shift.value, shift.ci_low, shift.ci_high) == (1, 1, 1)


def test_planted_nothing_in_common() -> None:
    """Two models that read different tokens have nothing to share: pairs are what counts."""
    x = noise(0, 512, 16)
    y = noise(1, 512, 16)
    assert abs(fit(x, y, batch=64)) < 0.03


def test_rows() -> None:
    first, second = open_model(llama(layers=2)), open_model(engram(layers=3))
    found = noise_sample()
    findings = cka(first, second, found)
    rows = [r for r in findings.rows if r.metric == "cka"]
    assert [(r.layer, r.other["layer"]) for r in rows if r.other] == [
        (i, j) for i in range(2) for j in range(3)
    ]
    for row in rows:
        assert row.other is not None
        assert row.value == findings.arrays["cka"][row.layer, row.other["layer"]]
        assert row.artifact == {"key": "cka"}
        assert row.ci_low is not None and row.ci_high is not None
        assert row.ci_low <= row.value <= row.ci_high
        assert row.n == found.inputs.token.size


def test_bootstrap_intervals_cover_the_truth() -> None:
    """The interval of a known similarity holds it about as often as it says."""

    def draw(seed: int) -> tuple[float, float]:
        x = noise(seed, 512, 4)
        y = x + noise(seed + 10_000, 512, 4)
        fitter = CkaFitter()
        for start in range(0, 512, 32):
            fitter.update([x[start : start + 32]], [y[start : start + 32]])
        low, high = np.quantile(fitter.result(seed).cross.draws, [0.025, 0.975])
        return float(low), float(high)

    # X and X + noise of equal variance: HSIC(x, y) = 4, HSIC(y, y) = 16 in units of HSIC(x, x) = 4.
    covered = [low <= 0.5 <= high for low, high in map(draw, range(40))]
    assert 0.8 <= np.mean(covered) <= 1


def test_separators_are_left_out_and_names_stand_apart() -> None:
    found = noise_sample()
    found.token[:, ::4] = 0
    found.name_end[:, 2::4] = True
    adapter = open_model(llama())
    results = model_similarity(adapter, adapter, found, compared_tokens(found))
    assert results[""].cross.n == (found.inputs.token != 0).sum()
    assert results["name_end"].cross.n == found.inputs.name_end.sum()
    rows = cka(adapter, adapter, found).rows
    named = [r for r in rows if dict(r.slice) == {"static_in": "name_end"}]
    assert len(named) == len(rows) / 2
    assert {r.artifact["key"] for r in named if r.artifact} == {"cka_name_end"}


def test_hardly_any_token() -> None:
    found = noise_sample()
    found.token[:] = 0
    with pytest.raises(UserError, match="hardly any token"):
        cka(open_model(llama()), open_model(llama()), found)
