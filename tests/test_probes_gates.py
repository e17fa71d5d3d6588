"""Gates and routers whose behaviour is known in advance."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probes_fixture import VOCAB, engram, llama, noise_sample, small_corpus
from sklearn.metrics import mutual_info_score, roc_auc_score

from engram_eval.adapters.load import open_model
from engram_eval.config import ProbeConfig
from engram_eval.records import MetricRow
from probes.gates import auroc, count_slices, gates
from probes.ngram_rows import rows_read
from probes.patterns import Patterns, count_patterns
from probes.router import mutual_information_bits, routed_layers, router
from probes.sample import draw_sample


def patterns(seed: int = 0) -> Patterns:
    """Names end at tokens of one kind; counts say nothing about it."""
    sample = noise_sample(seed=seed)
    sample.name_end[:] = sample.token % 7 == 3
    counts = np.random.default_rng(seed).integers(0, 100, sample.inputs.token.size)
    ends = sample.inputs.name_end
    first = np.append(ends[1:], False) & ~ends
    return Patterns(sample, counts, counts, first, first | ends)


def value(rows: list[MetricRow], metric: str, **labels: str) -> float | None:
    return next(r.value for r in rows if r.metric == metric and dict(r.slice) == labels)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auroc_equals_scikit_learn(pairs: list[tuple[int, bool]]) -> None:
    score, positive = np.array([float(s) for s, _ in pairs]), np.array([p for _, p in pairs])
    if positive.all() or not positive.any():
        assert auroc(score, positive) is None
    else:
        assert auroc(score, positive) == pytest.approx(roc_auc_score(positive, score))


def test_rows_and_counts_travel_with_the_gates() -> None:
    found, adapter = patterns(), open_model(engram())
    arrays, inputs = gates(adapter, found).arrays, found.sample.inputs
    tokens = torch.from_numpy(inputs.token).reshape(found.sample.shape)
    read = rows_read(adapter, tokens)[1].flatten(0, 1).numpy()
    assert (arrays["index1"] == read).all() and arrays["index1"].dtype == np.int32
    assert arrays["gate1"].shape == inputs.token.shape
    assert (arrays["trigram_count"] == found.trigram_count).all()


def test_a_gate_that_opens_at_names_is_found_and_another_is_not() -> None:
    found, adapter = patterns(), open_model(engram())
    plain = gates(adapter, found).rows
    assert value(plain, "auroc", static_in="name_end") == pytest.approx(0.5, abs=0.12)
    ends = torch.from_numpy(found.sample.inputs.name_end).reshape(found.sample.shape)
    start = 0

    def open_at_names(gate: torch.Tensor) -> torch.Tensor:
        nonlocal start
        rows = ends[start : start + len(gate)]
        start += len(gate)
        return rows[..., None].to(gate.dtype) * 0.8 + 0.1

    with adapter.edit("memory_gate", 1, open_at_names):
        planted = gates(adapter, found)
    assert value(planted.rows, "auroc", static_in="name_end") == 1
    assert value(planted.rows, "gate_mean", static_in="name_end") == pytest.approx(0.9)
    share = found.sample.inputs.name_end.mean()
    assert value(planted.rows, "gate_mean") == pytest.approx(0.1 + 0.8 * share)
    places = {k: value(planted.rows, "gate_mean", name=k) for k in ("first", "last", "outside")}
    assert places == pytest.approx({"first": 0.1, "last": 0.9, "outside": 0.1})
    row = next(r for r in planted.rows if r.metric == "auroc")
    assert row.baseline == pytest.approx(0.5, abs=0.12)
    assert planted.arrays["gate1"].shape == (found.sample.inputs.token.size,)


@pytest.mark.parametrize("make", [llama, lambda: engram(engram_gate="none")])
def test_no_gate_no_rows(make) -> None:
    findings = gates(open_model(make()), patterns())
    gateless = {r.value for r in findings.rows if r.metric == "gate_mean"}
    assert gateless <= {1.0}


def test_counts_are_binned_without_loss() -> None:
    counts = np.array([0, 1, 2, 7, 8, 63, 64, 9999])
    found = {part.labels["k"]: part.mask.sum() for part in count_slices(counts, "k")}
    assert found == {"0": 1, "1": 1, "2-7": 2, "8-63": 2, "64+": 2}


def test_patterns_of_a_corpus(tmp_path) -> None:
    """Counts equal counting by hand."""
    corpus = small_corpus(tmp_path)
    found = count_patterns(corpus, draw_sample(corpus, ProbeConfig(tokens=256, seq_len=32)))
    train = np.asarray(corpus.tokens("train")).astype(int).tolist()
    val = np.asarray(corpus.tokens("val")).astype(int)
    for place in range(0, 256, 17):
        at = found.sample.inputs.position[place]
        if at < 2 or 0 in val[at - 1 : at]:
            continue
        gram = tuple(val[at - 1 : at + 1])
        times = sum(pair == gram for pair in itertools.pairwise(train))
        assert found.bigram_count[place] == times


def test_mutual_information_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 500), rng.integers(0, 3, 500)
    assert mutual_information_bits(a, b) == pytest.approx(mutual_info_score(a, b) / np.log(2))
    assert mutual_information_bits(b, b) == pytest.approx(np.log2(3), abs=0.05)


def route(model, expert_of_token) -> None:
    """Send every token to the experts that its embedding names."""
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        for token in range(VOCAB):
            model.model.embed_tokens.weight[token, expert_of_token(token)] = 1
        for layer in (1, 2):
            block = model.model.layers[layer]
            block.post_attention_layernorm.weight.fill_(1)
            block.mlp.gate.weight.zero_()
            block.mlp.gate.weight[:4, :4] = 20 * torch.eye(4)


def test_specialists_are_found_and_generalists_are_not() -> None:
    """With attention silent, experts follow the token; the sample's domains may follow it too."""
    model = engram(engram_layers=[], num_experts_per_tok=1)
    route(model, lambda token: token % 2)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    model.model.layers[0].mlp.down_proj.weight.data.zero_()
    adapter, sample = open_model(model), noise_sample()
    assert routed_layers(adapter) == [1, 2]
    rows = [r for r in router(adapter, sample).rows if r.layer == 1]
    general = next(r for r in rows if r.metric == "mutual_information_bits")
    assert general.value == pytest.approx(general.baseline, abs=0.02)
    sample.token[:] = sample.token // 2 * 2 + sample.domain
    findings = router(adapter, sample)
    rows = [r for r in findings.rows if r.layer == 1]
    special = next(r for r in rows if r.metric == "mutual_information_bits")
    assert special.value == pytest.approx(1, abs=0.01)
    assert special.baseline < 0.5
    load = findings.arrays["load1"]
    assert load.sum() == sample.inputs.token.size and np.count_nonzero(load) == 2
    fullest = next(r for r in rows if r.metric == "router_load_max")
    assert fullest.value == pytest.approx(2, abs=0.05)


def test_a_model_without_experts_has_no_router_rows() -> None:
    assert router(open_model(llama()), noise_sample()).rows == []
