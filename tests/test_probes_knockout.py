"""Knock-outs on memories that are provably ignored or provably decisive."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from probes_fixture import VOCAB, engram, llama, noise_sample, silence
from torch import nn
from transformers import PreTrainedModel

from engram_eval.adapters.base import Tap
from engram_eval.adapters.load import open_model
from engram_eval.records import MetricRow
from probes.capture import batches
from probes.cuts import (
    Knockout,
    Means,
    experts_off,
    knockouts,
    memory_parameters,
    removed_experts,
    run_cut,
)
from probes.findings import mean_rows
from probes.knockout import knockout, losses
from probes.sample import Slice


def value(rows: list[MetricRow], metric: str, condition: str | None, **labels: str) -> float | None:
    """Return the value of the first layer's row of a knock-out."""
    return next(
        r.value
        for r in rows
        if (r.metric, r.condition) == (metric, condition) and dict(r.slice) == labels
    )


def only_memory(seed: int = 0) -> PreTrainedModel:
    """Make a model whose logits come from the memory alone."""
    model = silence(engram(n_routed_experts=0, seed=seed), range(3))
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    return model


def test_an_ignored_memory_shows_nothing() -> None:
    model = engram()
    with torch.no_grad():
        model.model.layers[1].engram.value_proj.weight.zero_()
    found = noise_sample()
    # A floor that even random weights beat, so that there is something to retain.
    found = replace(found, unigram_bits=np.full_like(found.unigram_bits, 50))
    rows = knockout(open_model(model), found).rows
    cut = [r for r in rows if (r.condition or "").startswith("memory_")]
    assert {r.condition for r in cut} == {"memory_zeroed", "memory_mean", "memory_shuffled"}
    for row in cut:
        if row.metric == "params_removed":
            continue
        assert row.value == (0 if row.metric == "loss_increase_nats" else pytest.approx(1))
        assert row.stderr == pytest.approx(0, abs=1e-12)
    assert abs(value(rows, "loss_increase_nats", "mlp_zeroed") or 0) > 1e-3


def test_a_decisive_memory_shows_everything() -> None:
    """Without it, the logits are flat: the loss is log V, and nothing else matters."""
    findings = knockout(open_model(only_memory()), noise_sample())
    intact, cut = findings.arrays["loss_nats"][:2]
    np.testing.assert_allclose(cut, math.log(VOCAB), rtol=1e-5)
    increase = value(findings.rows, "loss_increase_nats", "memory_zeroed")
    assert increase == pytest.approx(math.log(VOCAB) - intact.mean(), rel=1e-4)
    for condition in ("attn_zeroed", "mlp_zeroed"):
        assert value(findings.rows, "loss_increase_nats", condition) == pytest.approx(0, abs=1e-6)


def test_a_decisive_memory_that_predicts_retains_nothing() -> None:
    """The unembedding is fitted to the memory: all gain over unigrams goes with it."""
    model, found = only_memory(), noise_sample(windows=4, length=16)
    adapter = open_model(model)
    tokens = torch.from_numpy(found.token)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(60):
        optimiser.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        # Keep all but the memory silent.
        model.model.embed_tokens.weight.grad = None
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.grad = layer.mlp.down_proj.weight.grad = None
        optimiser.step()
    rows = knockout(adapter, found).rows
    assert (value(rows, "loss_increase_nats", "memory_zeroed") or 0) > 1
    for labels in ({}, {"domain": "even"}, {"static_out": "high"}):
        # The floor of this sample is log V, which is what flat logits cost.
        assert value(rows, "retained", "memory_zeroed", **labels) == pytest.approx(0, abs=1e-5)
        assert value(rows, "retained", "attn_zeroed", **labels) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("make", [llama, engram])
def test_losses_equal_a_plain_ablation(make) -> None:
    """Starting at the cut changes nothing: the whole model with hooks gives the same losses."""
    model, found = make(), noise_sample()
    adapter = open_model(model)
    cuts = [cut for cut in knockouts(adapter) if cut.condition.endswith("zeroed")]
    table = losses(adapter, found, cuts)
    tokens = torch.from_numpy(found.token)
    for loss, cut in zip(table, [None, *cuts], strict=True):
        with torch.no_grad():
            if cut is None:
                logits = adapter.logits(tokens[:, :-1])
            else:
                with adapter.ablate(cut.site, cut.layers[0]):
                    logits = adapter.logits(tokens[:, :-1])
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-4)


def test_two_memories_are_also_cut_together() -> None:
    adapter, found = open_model(engram(engram_layers=[0, 2])), noise_sample()
    cuts = knockouts(adapter)
    assert cuts[:3] == [
        Knockout("memory_zeroed", "memory_out", 0, (0,)),
        Knockout("memory_zeroed", "memory_out", 2, (2,)),
        Knockout("memory_zeroed", "memory_out", None, (0, 2)),
    ]
    table = losses(adapter, found, cuts[2:3])
    with torch.no_grad(), adapter.memory_off():
        logits = adapter.logits(torch.from_numpy(found.token[:, :-1]))
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(found.targets.token), reduction="none"
    )
    np.testing.assert_allclose(table[1], expected, rtol=1e-4, atol=1e-4)


def test_memory_off_is_a_model_without_memory() -> None:
    with_memory, without = engram(), engram(engram_layers=[])
    without.load_state_dict(with_memory.state_dict(), strict=False)
    adapter, tokens = open_model(with_memory), torch.from_numpy(noise_sample().token)
    with torch.no_grad(), adapter.memory_off():
        torch.testing.assert_close(adapter.logits(tokens), without(input_ids=tokens).logits)


def test_rows() -> None:
    findings = knockout(open_model(engram()), noise_sample())
    slices = 7
    cuts = [(f"memory_{way}", 1) for way in ("zeroed", "mean", "shuffled")]
    cuts += [(c, i) for i in range(3) for c in ("attn_zeroed", "mlp_zeroed", "layer_skipped")]
    cuts.append(("experts_removed", None))
    assert len(findings.rows) == slices * (1 + 2 * len(cuts)) + 2
    assert {(r.condition, r.layer) for r in findings.rows} == {*cuts, (None, None)}
    assert findings.arrays["loss_nats"].shape == (1 + len(cuts), 16 * 32)
    intact = next(r for r in findings.rows if r.metric == "loss_nats" and not r.slice)
    assert intact.value == pytest.approx(findings.arrays["loss_nats"][0].mean(), rel=1e-5)


def test_a_model_without_memory_has_no_memory_rows() -> None:
    rows = knockout(open_model(llama()), noise_sample()).rows
    assert {r.condition for r in rows} == {None, "attn_zeroed", "mlp_zeroed", "layer_skipped"}


def test_a_decisive_memory_needs_its_own_rows() -> None:
    """Its mean leaves flat-out frequencies; rows of other n-grams mislead by as much as chance."""
    adapter, found = open_model(only_memory()), noise_sample()
    rows = knockout(adapter, found).rows
    with torch.no_grad(), adapter.record([Tap("memory_out", 1)]) as seen:
        adapter.run(torch.from_numpy(found.token[:, :-1]))
        mean = seen[Tap("memory_out", 1)].mean((0, 1))
        constant = adapter.unembed(mean).log_softmax(-1)
    expected = -constant[torch.from_numpy(found.targets.token)].mean()
    intact = value(rows, "loss_nats", None) or 0
    increase = value(rows, "loss_increase_nats", "memory_mean")
    assert increase == pytest.approx(float(expected) - intact, abs=1e-4)
    assert value(rows, "loss_increase_nats", "memory_shuffled") != 0


def test_a_skipped_block_is_a_model_without_it() -> None:
    model, found = llama(), noise_sample()
    cuts = [cut for cut in knockouts(open_model(model)) if cut.condition == "layer_skipped"]
    table = losses(open_model(model), found, cuts)
    for layer in range(3):
        shorter = llama()
        del shorter.model.layers[layer]
        for number, block in enumerate(shorter.model.layers):
            block.self_attn.layer_idx = number
        shorter.config.num_hidden_layers = 2
        with torch.no_grad():
            logits = shorter(input_ids=torch.from_numpy(found.token[:, :-1])).logits
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(found.targets.token), reduction="none"
        )
        np.testing.assert_allclose(table[1 + layer], expected, rtol=1e-4, atol=1e-4)


def test_shuffled_rows_are_those_of_other_tokens() -> None:
    adapter, found = open_model(engram()), noise_sample(windows=4, length=16)
    cut = next(cut for cut in knockouts(adapter) if cut.condition == "memory_shuffled")
    taps = [Tap("resid_pre", 1), Tap("memory_rows", 1)]
    (batch,) = batches(adapter, found, taps)
    own = batch.taps[Tap("memory_rows", 1)]
    with torch.no_grad(), adapter.record([Tap("memory_rows", 1)]) as seen:
        run_cut(adapter, cut, batch, Means({}))
    read = seen[Tap("memory_rows", 1)].flatten(0, 1)
    # Recorded outside the edit, or inside it: the same multiset of rows, none in its place.
    assert sorted(map(tuple, read.tolist())) == sorted(map(tuple, own.tolist()))


def test_as_many_parameters_of_experts_as_the_memory_has() -> None:
    adapter = open_model(engram(n_routed_experts=16))
    removed = removed_experts(adapter, 0)
    one = 3 * 32 * 16
    count = sum(map(len, removed.values()))
    assert abs(count - memory_parameters(adapter) / one) <= 0.5 and set(removed) <= {1, 2}
    tokens = torch.from_numpy(noise_sample().token)
    with torch.no_grad():
        plain = adapter.logits(tokens)
        with experts_off(adapter, removed):
            assert not torch.equal(adapter.logits(tokens), plain)
            for layer, experts in removed.items():
                counts = adapter.model.model.layers[layer].mlp.last_expert_counts
                assert counts[experts].sum() == 0
        assert torch.equal(adapter.logits(tokens), plain)
    everything = removed_experts(open_model(engram(engram_rows=[9001, 9001])), 0)
    assert {len(ids) for ids in everything.values()} == {4 - 2}, "a token needs two experts"
    without = removed_experts(open_model(engram(engram_layers=[], n_routed_experts=8)), 0)
    assert [len(ids) for ids in without.values()] == [2, 2]


def test_nothing_is_retained_of_no_gain() -> None:
    rows = knockout(open_model(llama()), noise_sample()).rows
    assert (value(rows, "loss_nats", None) or 0) > math.log(VOCAB)
    assert value(rows, "retained", "mlp_zeroed") is None


def test_rows_join_slice_labels() -> None:
    part = Slice({"domain": "code"}, np.array([True, False, True]))
    (row,) = mean_rows(
        [1, 2, 5], np.arange(3), [part], name="x", metric="acc", slice={"task": "t"}, layer=2
    )
    assert (row.value, row.n, row.layer, row.split) == (3, 2, 2, "val")
    assert row.slice == {"task": "t", "domain": "code"}


def test_parts_of_blocks_may_be_cut_on_a_part_of_the_text() -> None:
    adapter, found = open_model(engram()), noise_sample(windows=300)
    cuts = [cut for cut in knockouts(adapter) if cut.layer == 1]
    assert {cut.condition for cut in cuts} >= {"memory_zeroed", "attn_zeroed"}
    whole, thinned = losses(adapter, found, cuts), losses(adapter, found, cuts, stride=2)
    for cut, one, other in zip([None, *cuts], whole, thinned, strict=True):
        seen = ~np.isnan(other)
        block = cut is not None and not cut.condition.startswith("memory")
        assert seen.sum() == (found.inputs.token.size - 4096 if block else len(other))
        np.testing.assert_allclose(one[seen], other[seen])


def test_experts_that_are_not_stacked_are_not_counted() -> None:
    """The first axis of a single expert's weights counts no experts."""
    adapter = open_model(engram())
    assert removed_experts(adapter, 0).keys() == {1, 2}
    block: Any = adapter.place("resid_pre", 1).module
    block.mlp.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
    assert removed_experts(adapter, 0).keys() == {2}
