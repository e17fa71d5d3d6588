"""The lens against definitions, against the model's own loss, and on models known in advance."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from adapters_fixture import opened
from hypothesis import given
from hypothesis import strategies as st
from probes_fixture import VOCAB, engram, llama, noise_sample, silence
from torch.distributions import Categorical, kl_divergence

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.adapters.load import open_model
from engram_eval.records import MEMORY_SUBTRACTED, MetricRow
from probes import lens
from probes.capture import Batch
from probes.lens import Divergence, View, divergence, logit_lens, reference
from probes.sample import Sample

DEPTHS = ("resid_pre", "resid_post")


def rows_of(
    rows: list[MetricRow], metric: str, condition: str | None = None, **labels: str
) -> dict[int, MetricRow]:
    """Return the rows of a metric by depth: 0 is the embedding."""
    return {
        row.layer + (row.site == "resid_post"): row
        for row in rows
        if (row.metric, row.condition, dict(row.slice)) == (metric, condition, labels)
        and row.layer is not None
        and row.site in DEPTHS
    }


def measure(adapter: Adapter, found: Sample) -> np.ndarray:
    """Return the divergences at the depths, (measures, depths, n)."""
    return lens.measure(adapter, found, lens.depths(adapter), lambda _, x: adapter.final_norm(x))


def _ranks(final: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    order = other.argsort(-1, descending=True).tolist()
    return torch.tensor(
        [1.0 + row.index(top) for row, top in zip(order, final.argmax(-1).tolist(), strict=True)]
    ).double()


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
        final_rank_log2=_ranks(final, other).log2(),
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


def test_every_view_and_slice_has_its_row() -> None:
    findings = logit_lens(open_model(engram()), noise_sample())
    keys = {(r.metric, r.layer, r.site, r.condition, tuple(r.slice.items())) for r in findings.rows}
    main = [(), (("static_out", "high"),), (("static_out", "low"),)]
    more = [(("domain", name),) for name in ("even", "odd")]
    more += [(("static_out_longest", level),) for level in ("high", "low")]
    depths = [(0, "resid_pre", None), *((layer, "resid_post", None) for layer in range(3))]
    depths += [(layer, "resid_post", MEMORY_SUBTRACTED) for layer in (1, 2)]
    inside = [(1, "resid_memory", None), *((layer, "resid_mid", None) for layer in range(3))]
    expected = {(m, *v, s) for m in Divergence._fields for v in depths + inside for s in main}
    expected |= {(m, *v, s) for m in lens.KEPT for v in depths for s in more}
    whole = ("early_kl_bits", "depth_half_layers", "depth_90_layers", "prediction_depth_layers")
    expected |= {
        (m, None, "resid_post", c, s)
        for m in whole
        for c in (None, MEMORY_SUBTRACTED)
        for s in main + more
    }
    assert keys == expected
    assert len(findings.rows) == len(expected)
    assert all(row.split == "val" and row.name == "logit_lens" for row in findings.rows)


def test_several_streams_are_read_as_the_model_reads_them() -> None:
    findings = logit_lens(open_model(engram(residual_streams=2)), noise_sample(windows=4))
    rows = [row for row in findings.rows if row.metric == "kl_bits" and not row.slice]
    assert {row.site for row in rows} == {"resid_pre", "resid_post", "resid_memory"}
    assert {row.condition for row in rows} == {None}
    values = rows_of(rows, "kl_bits")
    assert values[3].value == pytest.approx(0, abs=1e-5)
    assert all(values[depth].value > 0.01 for depth in range(3))


def test_views_inside_a_block_are_sums_of_what_is_written() -> None:
    adapter, found = open_model(engram()), noise_sample(windows=2)
    wanted = lens.views(adapter)
    tokens = torch.from_numpy(found.token[:, :-1])
    with torch.no_grad(), adapter.record(adapter.places) as taps:
        adapter.run(tokens)
    flat = {tap: tensor.reshape(tokens.numel(), -1) for tap, tensor in taps.items()}
    batch = Batch(slice(0, tokens.numel()), tokens, tokens.flatten(), flat, None)
    got = dict(lens.streams(adapter, batch, wanted))
    memory, attention = flat[Tap("memory_out", 1)], flat[Tap("attn_out", 1)]
    entering = flat[Tap("resid_pre", 1)]
    torch.testing.assert_close(got[View("resid_memory", 1)], entering + memory)
    torch.testing.assert_close(got[View("resid_mid", 1)], entering + memory + attention)
    late = flat[Tap("resid_post", 2)] - memory
    torch.testing.assert_close(got[View("resid_post", 2, MEMORY_SUBTRACTED)], late)
    assert View("resid_post", 0, MEMORY_SUBTRACTED) not in got, "nothing is written before"


def test_a_memory_that_is_all_of_the_prediction_is_gone_when_subtracted() -> None:
    model = silence(engram(first_k_dense_replace=3), range(3))
    with torch.no_grad():
        model.model.layers[1].engram.value_proj.weight.mul_(50)
    rows = logit_lens(open_model(model), noise_sample()).rows
    plain, without = rows_of(rows, "kl_bits"), rows_of(rows, "kl_bits", MEMORY_SUBTRACTED)
    assert plain[2].value == pytest.approx(0, abs=1e-4)
    # Blocks add nothing, so that without the write the embedding is all there is.
    assert without[2].value == pytest.approx(plain[0].value, rel=1e-4)
    assert (plain[0].value or 0) > 1
    early = {r.condition: r.value for r in rows if r.metric == "early_kl_bits" and not r.slice}
    assert early[MEMORY_SUBTRACTED] == pytest.approx(plain[0].value, rel=1e-4)


def test_a_memory_that_writes_last_leaves_nothing_inside_of_its_block() -> None:
    adapter, found = opened("gemma3n"), noise_sample(windows=2, length=8)
    small = dataclasses.replace(found, token=found.token % adapter.vocab_size)
    rows = logit_lens(adapter, small).rows
    assert {row.site for row in rows if row.metric == "kl_bits"} == {"resid_pre", "resid_post"}


def test_a_model_without_memory_has_nothing_subtracted() -> None:
    rows = logit_lens(open_model(llama()), noise_sample()).rows
    assert not [r for r in rows if r.condition or r.site == "resid_memory"]


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
    # A third of three blocks: the mean height of the line from the embedding to block 0.
    assert early.value == pytest.approx(kl[:2].mean(), rel=1e-5)
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
    assert half.ci_low is not None and half.ci_high is not None
    assert half.ci_low <= half.value <= half.ci_high
    settled = next(r for r in rows if r.metric == "prediction_depth_layers" and not r.slice)
    assert settled.value is not None and 0 < settled.value <= 2


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


def test_places_inside_blocks_are_read_on_half_of_the_text() -> None:
    adapter, found = open_model(engram()), noise_sample(windows=300)
    rows = logit_lens(adapter, found).rows
    inside = {r.n for r in rows if r.site in ("resid_memory", "resid_mid") and not r.slice}
    assert inside == {found.inputs.token.size - 4096}
    assert {r.n for r in rows if r.site == "resid_post" and not r.slice} == {9600}
    wanted = lens.views(adapter)
    thin = lens.measure(adapter, found, wanted, lambda _, x: adapter.final_norm(x))
    part = found.windows(np.arange(300) < 128)
    first = lens.measure(adapter, part, wanted, lambda _, x: adapter.final_norm(x))
    np.testing.assert_allclose(thin[:, :, :4096], first, atol=1e-4)
    outside = [v.site not in lens.INSIDE for v in wanted]
    assert np.isnan(thin[:, ~np.array(outside), 4096:8192]).all()
    assert not np.isnan(thin[:, outside]).any()
