"""The use of depth where it is known: silent blocks, attention that reaches one token back."""

import numpy as np
import pytest
import torch
from probes_fixture import PreviousToken, engram, llama, noise_sample, sample, silence

from engram_eval.adapters.load import open_model
from engram_eval.records import MetricRow
from probes.depth import depth, patched_places, settled_layers


def rows_of(rows: list[MetricRow], metric: str, **labels: str) -> dict[int | None, float]:
    return {r.layer: r.value for r in rows if r.metric == metric and dict(r.slice) == labels}


def test_silent_blocks_add_nothing_and_hand_changes_on() -> None:
    adapter = open_model(silence(llama(), range(3)))
    rows = depth(adapter, noise_sample()).rows
    assert set(rows_of(rows, "added_norm_ratio").values()) == {0}
    for value in rows_of(rows, "added_cosine").values():
        assert value == pytest.approx(1)
    here = rows_of(rows, "change_ratio", offset="0")
    assert here[0] > 0.5 and here[1] == pytest.approx(here[0]) and here[2] == pytest.approx(here[0])
    for offset in ("1", "2-3", "4-7"):
        assert set(rows_of(rows, "change_ratio", offset=offset).values()) == {0}
        assert rows_of(rows, "kl_bits", offset=offset)[None] == pytest.approx(0, abs=1e-5)
    assert rows_of(rows, "kl_bits", offset="0")[None] > 0.1
    # Nothing happens after the embedding, so that every prediction is final at once.
    assert rows_of(rows, "settled_layer")[None] == 0


def test_a_change_travels_as_far_as_attention_reaches() -> None:
    """Each block after the first reads one token back: two blocks carry it two tokens."""
    model = silence(llama(), range(3))
    for block in model.model.layers:
        block.self_attn = PreviousToken(32)
    rows = depth(open_model(model), noise_sample()).rows
    one, further = (rows_of(rows, "change_ratio", offset=o) for o in ("1", "4-7"))
    assert one[0] == 0 and one[1] > 0 and one[2] > 0
    assert set(further.values()) == {0}
    assert rows_of(rows, "kl_bits", offset="2-3")[None] > 0


def test_added_length_and_cosine_by_hand() -> None:
    adapter, found = open_model(engram()), noise_sample()
    rows = depth(adapter, found).rows
    tokens = torch.from_numpy(found.token[:, :-1])
    with torch.no_grad():
        states = adapter.model.model(input_ids=tokens, output_hidden_states=True).hidden_states
    added = (states[1] - states[0]).norm(dim=-1) / states[0].norm(dim=-1)
    assert rows_of(rows, "added_norm_ratio")[0] == pytest.approx(float(added.mean()), rel=1e-4)
    cosine = torch.cosine_similarity(states[1], states[2], dim=-1)
    assert rows_of(rows, "added_cosine")[1] == pytest.approx(float(cosine.mean()), rel=1e-4)


def test_settling_equals_a_plain_search() -> None:
    adapter, found = open_model(llama(layers=4)), noise_sample(windows=4)
    settled, nats = settled_layers(adapter, found)
    tokens = torch.from_numpy(found.token)
    with torch.no_grad():
        out = adapter.model.model(input_ids=tokens[:, :-1], output_hidden_states=True)
        logits = adapter.logits(tokens[:, :-1])
        lens = [adapter.unembed(s).argmax(-1).flatten() for s in out.hidden_states[1:-1]]
    final = logits.argmax(-1).flatten()
    expected = []
    for place in range(len(final)):
        layer = 3
        while layer > 0 and lens[layer - 1][place] == final[place]:
            layer -= 1
        expected.append(layer)
    assert settled.tolist() == expected
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    np.testing.assert_allclose(nats, loss, rtol=1e-4, atol=1e-5)


def test_hard_and_easy_thirds_are_there() -> None:
    rows = depth(open_model(engram()), noise_sample()).rows
    named = [r.slice.get("difficulty") for r in rows if r.metric == "settled_layer"]
    assert {"easy", "hard"} <= set(named)
    baseline = {r.baseline for r in rows if r.metric == "settled_layer"}
    assert baseline == {2}


def test_choice_of_windows_and_places() -> None:
    found = noise_sample(windows=8, length=32)
    assert found.first(100).shape == (3, 32)
    assert found.first(1).shape == (1, 32)
    places = patched_places(found)
    assert places.shape == (8,) and places.max() < 8
    assert (patched_places(found) == places).all()


class Adds(torch.nn.Module):
    """A feed-forward layer that adds one vector everywhere."""

    def __init__(self, vector: torch.Tensor) -> None:
        super().__init__()
        self.vector = torch.nn.Parameter(vector)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.vector.expand_as(hidden)


@pytest.mark.parametrize(("adds", "ratio"), [(3.0, 1.5), (-2.0, 1.0)])
def test_a_stream_without_length_is_left_out_and_counted(adds: float, ratio: float) -> None:
    """Token 5 is the zero vector, all others have length 2, in the direction of what is added."""
    model, one = silence(llama(), range(3)), torch.eye(32)[0]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(2 * one.expand(48, 32))
        model.model.embed_tokens.weight[5] = 0
    model.model.layers[0].mlp = Adds(adds * one)
    token = np.random.default_rng(1).choice([1, 5], (16, 33))
    found = depth(open_model(model), sample(token)).rows
    zero = int((token[:, :-1] == 5).sum())
    assert rows_of(found, "added_norm_ratio")[0] == pytest.approx(ratio)
    (row,) = [r for r in found if r.metric == "added_norm_ratio" and not r.slice and not r.layer]
    assert row.n == token[:, :-1].size - zero
    # Added to, token 5 has a length; where 2 are taken away, the others have none any more.
    before = {0: zero} if adds > 0 else {0: zero, 1: 512 - zero, 2: 512 - zero}
    behind = {} if adds > 0 else {0: 512 - zero, 1: 512 - zero, 2: 512 - zero}
    for site, expected in (("resid_pre", before), ("resid_post", behind)):
        counted = {r.layer: r.value for r in found if r.metric == "zero_streams" and r.site == site}
        assert counted == expected
    cosines = rows_of(found, "added_cosine")
    assert cosines == ({0: 1, 1: 1, 2: 1} if adds > 0 else {1: 1, 2: 1})


def test_a_change_of_a_stream_without_length_has_no_ratio() -> None:
    model = silence(llama(), range(3))
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(2 * torch.eye(32)[0].expand(48, 32))
        model.model.embed_tokens.weight[5] = 0
    drawn = sample(np.random.default_rng(1).choice([1, 5], (16, 33)))
    rows = depth(open_model(model), drawn).rows
    window, at = np.arange(16), patched_places(drawn)
    old, new = drawn.token[window, at], drawn.token[window, at + 16]
    # From length 2 to the same, or to nothing: 0 or 1; nothing is known of what was nothing.
    expected = (new == 5)[old != 5].mean()
    assert 0 < expected < 1
    for value in rows_of(rows, "change_ratio", offset="0").values():
        assert value == pytest.approx(expected)
