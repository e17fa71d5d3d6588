"""The lens against definitions, against the model's own loss, and on models known in advance."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probes_fixture import VOCAB, engram, llama, noise_sample, silence
from torch.distributions import Categorical, kl_divergence

from engram_eval.adapters.base import Tap
from engram_eval.adapters.load import open_model
from engram_eval.records import MetricRow
from probes import lens
from probes.lens import Divergence, divergence, fall_depth, logit_lens, measure, reference


def rows_of(rows: list[MetricRow], metric: str, **labels: str) -> dict[int, MetricRow]:
    """Return the rows of a metric by depth: 0 is the embedding."""
    return {
        (row.layer or 0) + (row.site == "resid_post"): row
        for row in rows
        if row.metric == metric and dict(row.slice) == labels
    }


@given(st.integers(0, 10_000), st.floats(0.1, 5))
def test_divergence_agrees_with_torch(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    final, other = (torch.randn(6, 11, generator=generator) * scale for _ in range(2))
    targets = torch.randint(11, (6,), generator=generator)
    found = divergence(reference(final, targets), other)
    p, q = Categorical(logits=final.double()), Categorical(logits=other.double())
    bits = 1 / math.log(2)
    expected = Divergence(
        kl_bits=kl_divergence(p, q) * bits,
        kl_reverse_bits=kl_divergence(q, p) * bits,
        cross_entropy_bits=-q.log_prob(targets) * bits,
        entropy_bits=q.entropy() * bits,
        top1_agreement=(final.argmax(-1) == other.argmax(-1)).double(),
    )
    for name, value in zip(Divergence._fields, found, strict=True):
        torch.testing.assert_close(
            value.double(), getattr(expected, name), rtol=1e-4, atol=1e-4, msg=name
        )


@given(st.integers(0, 10_000), st.floats(-50, 50))
def test_divergence_ignores_a_shift_and_vanishes_on_itself(seed: int, shift: float) -> None:
    final = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))
    found = divergence(reference(final, torch.zeros(5, dtype=torch.long)), final + shift)
    torch.testing.assert_close(found.kl_bits, torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.kl_reverse_bits, torch.zeros(5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", [llama, engram])
def test_the_last_layer_is_the_model(make) -> None:
    model = make()
    found = noise_sample()
    rows = logit_lens(open_model(model), found).rows
    tokens = torch.from_numpy(found.token)
    with torch.no_grad():
        loss = torch.stack([model(input_ids=row[None], labels=row[None]).loss for row in tokens])
    last = 3
    entropy = rows_of(rows, "cross_entropy_bits")[last]
    assert entropy.value == pytest.approx(float(loss.mean()) / math.log(2), rel=1e-4)
    assert rows_of(rows, "kl_bits")[last].value == pytest.approx(0, abs=1e-5)
    assert rows_of(rows, "kl_reverse_bits")[last].value == pytest.approx(0, abs=1e-5)
    assert rows_of(rows, "top1_agreement")[last].value == 1


def test_every_depth_site_and_slice_has_its_row() -> None:
    findings = logit_lens(open_model(llama()), noise_sample())
    keys = {(r.metric, r.layer, r.site, tuple(r.slice.items())) for r in findings.rows}
    slices = [(), (("domain", "even"),), (("domain", "odd"),)]
    sides = ("static_out", "static_out_longest")
    slices += [((side, level),) for side in sides for level in ("high", "low")]
    depths = [(0, "resid_pre"), *((layer, "resid_post") for layer in range(3))]
    expected = {(m, *depth, s) for m in Divergence._fields for depth in depths for s in slices}
    whole = ("early_kl_bits", "depth_half_layers", "depth_90_layers")
    expected |= {(m, None, "resid_post", s) for m in whole for s in slices}
    assert keys == expected
    assert len(findings.rows) == len(expected)
    assert all(row.split == "val" and row.name == "logit_lens" for row in findings.rows)


def test_rows_are_means_of_the_arrays() -> None:
    found = noise_sample()
    findings = logit_lens(open_model(llama()), found)
    kl = findings.arrays["kl_bits"]
    assert kl.shape == (4, found.targets.token.size)
    odd = found.targets.domain == 1
    row = rows_of(findings.rows, "kl_bits", domain="odd")[1]
    assert row.artifact == {"key": "kl_bits"}
    assert row.value == pytest.approx(kl[1, odd].mean(), rel=1e-5)
    assert row.n == odd.sum()
    early = next(r for r in findings.rows if r.metric == "early_kl_bits" and not r.slice)
    assert early.value == pytest.approx(kl[1].mean(), rel=1e-5)
    np.testing.assert_array_equal(findings.arrays["token"], found.targets.token)


def test_the_error_is_over_documents() -> None:
    found = noise_sample()
    findings = logit_lens(open_model(llama()), found)
    row = rows_of(findings.rows, "kl_bits")[1]
    documents = found.targets.document
    means = [findings.arrays["kl_bits"][1][documents == d].mean() for d in range(8)]
    # Documents of equal length: the clustered error is that of the mean of document means.
    assert row.stderr == pytest.approx(np.std(means, ddof=1) / math.sqrt(8), rel=1e-4)


def test_planted_depth() -> None:
    rows = logit_lens(open_model(silence(llama(layers=6), range(2, 6))), noise_sample()).rows
    kl = rows_of(rows, "kl_bits")
    assert all(kl[depth].value == pytest.approx(0, abs=1e-4) for depth in range(2, 7))
    assert min(kl[0].value or 0, kl[1].value or 0) > 0.1
    half, ninety = (
        next(r for r in rows if r.metric == m and not r.slice)
        for m in ("depth_half_layers", "depth_90_layers")
    )
    assert half.value is not None and ninety.value is not None
    assert 0 < half.value < ninety.value <= 2


def test_planted_nothing() -> None:
    rows = logit_lens(open_model(silence(llama(), range(3))), noise_sample()).rows
    assert all(r.value == pytest.approx(0, abs=1e-4) for r in rows_of(rows, "kl_bits").values())
    assert all(r.value == 1 for r in rows_of(rows, "top1_agreement").values())


def test_lens_of_the_embedding_is_the_bigram_part() -> None:
    adapter, found = open_model(llama()), noise_sample()
    values = measure(adapter, found)
    with torch.no_grad():
        scores = adapter.unembed(adapter.embedding(torch.from_numpy(found.inputs.token)))
    expected = torch.nn.functional.cross_entropy(
        scores, torch.from_numpy(found.targets.token), reduction="none"
    )
    index = Divergence._fields.index("cross_entropy_bits")
    np.testing.assert_allclose(values[index, 0], expected / math.log(2), rtol=1e-4)


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, found = open_model(llama()), noise_sample()
    whole = measure(adapter, found)
    monkeypatch.setattr(lens, "CELLS", 7 * VOCAB)
    np.testing.assert_allclose(measure(adapter, found), whole, atol=1e-4)


def test_depths_are_in_order() -> None:
    assert lens.lens_taps(open_model(llama())) == [
        Tap("resid_pre", 0),
        Tap("resid_post", 0),
        Tap("resid_post", 1),
        Tap("resid_post", 2),
    ]


@pytest.mark.parametrize(
    ("curve", "share", "expected"),
    [
        ([8, 4, 0], 0.5, 1.0),
        ([8, 6, 2, 0], 0.5, 1.5),
        ([8, 9, 10, 0], 0.5, 2.6),
        ([8, 4, 0], 0.1, 1.8),
        ([8, 8, 8], 0.5, None),
        ([0, 0, 0], 0.5, None),
    ],
)
def test_fall_depth(curve: list[float], share: float, expected: float | None) -> None:
    found = fall_depth(np.array(curve, dtype=np.float64), share)
    assert found == (None if expected is None else pytest.approx(expected))
