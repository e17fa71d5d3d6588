"""Attention by offset, and masking it, on models that look where they are told to."""

import numpy as np
import pytest
import torch
from probes_fixture import PreviousToken, engram, llama, noise_sample, silence

from engram_eval.adapters.load import open_model
from probes.findings import bucket_names
from probes.offsets import (
    EDGES,
    Masking,
    attention_of,
    eager_weights,
    masked,
    masking_losses,
    maskings,
    mass_by_offset,
    offsets,
    offsets_off,
)


def test_mass_by_offset_by_hand() -> None:
    weights = torch.zeros(1, 2, 5, 5)
    weights[0, 0, :, 0] = 1
    weights[0, 1] = torch.eye(5)
    mass = mass_by_offset(weights)[0]
    assert mass.shape == (5, len(EDGES))
    torch.testing.assert_close(mass.sum(-1), torch.ones(5))
    assert mass[0].tolist()[0] == 1
    assert mass[2].tolist()[:4] == [0.5, 0, 0.5, 0]
    assert mass[4].tolist()[:5] == [0.5, 0, 0, 0, 0.5]
    assert bucket_names(EDGES) == ["0", "1", "2", "3", "4-7", "8-15", "16-31", "32-63", "64+"]


@pytest.mark.parametrize("make", [llama, engram])
def test_weights_are_those_of_the_model(make) -> None:
    """They add up to 1, see no future, and their reading leaves the model as it was."""
    adapter = open_model(make())
    tokens = torch.from_numpy(noise_sample(windows=2).token)
    with torch.no_grad():
        plain = adapter.logits(tokens)
        with eager_weights(adapter) as found:
            torch.testing.assert_close(adapter.logits(tokens), plain, rtol=1e-3, atol=1e-4)
        assert sorted(found) == [0, 1, 2]
        for weights in found.values():
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
            assert weights.triu(1).abs().max() == 0
        assert torch.equal(adapter.logits(tokens), plain)


def test_mask_hides_what_it_names() -> None:
    mask = masked(4, (1, 2), torch.zeros(1))[0, 0]
    allowed = (mask == 0).int().tolist()
    assert allowed == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]


@pytest.mark.parametrize("make", [llama, engram])
def test_masking_nothing_changes_nothing_and_no_weight_goes_to_what_is_masked(make) -> None:
    adapter, found = open_model(make()), noise_sample(windows=4)
    intact, same = masking_losses(adapter, found, [Masking("none", (), (0, 1, 2))])
    np.testing.assert_allclose(same, intact, rtol=1e-4, atol=1e-5)
    masking, tokens = Masking("near", (1, 2), (1,)), torch.from_numpy(found.token[:, :-1])
    with eager_weights(adapter) as weights, offsets_off(adapter, masking, tokens.shape[1]):
        adapter.run(tokens)
    assert mass_by_offset(weights[1])[..., 1:3].max() == 0
    assert mass_by_offset(weights[0])[..., 1:3].max() > 0


def test_early_and_late_layers_do_not_overlap() -> None:
    for layers in (2, 3, 8, 30):
        early, _, late, _ = maskings(layers)
        assert early.layers[0] == 0 and late.layers[-1] == layers - 1
        assert not set(early.layers) & set(late.layers)


def test_early_blocks_reach_the_memory_of_a_shallow_model() -> None:
    """Memories stand in block 1; a third of four blocks ends before it."""
    placed = {layers: [m.layers for m in maskings(layers)[::2]] for layers in range(1, 9)}
    assert placed[1] == [(0,), (0,)] and placed[2] == [(0,), (1,)]
    assert placed[3] == [(0, 1), (2,)] and placed[4] == [(0, 1), (2, 3)]
    assert placed[5] == [(0, 1), (3, 4)] and placed[8] == [(0, 1), (6, 7)]
    assert maskings(12)[0].layers == (0, 1, 2, 3) and maskings(12)[2].layers == (8, 9, 10, 11)


def test_a_model_that_needs_no_neighbours_loses_nothing() -> None:
    adapter = open_model(silence(llama(), range(3)))
    rows = offsets(adapter, noise_sample()).rows
    losses = [r.value for r in rows if r.metric == "loss_increase_nats"]
    assert losses and max(map(abs, losses)) < 1e-6
    mass = {(r.layer, r.slice["offset"]): r for r in rows if r.metric == "attention_mass"}
    assert sum(mass[0, name].value for name in bucket_names(EDGES)) == pytest.approx(1)
    assert sum(mass[0, name].baseline for name in bucket_names(EDGES)) == pytest.approx(1)


@pytest.mark.parametrize(("layers", "block"), [(3, 0), (4, 1)])
def test_a_model_that_lives_on_neighbours_loses(layers: int, block: int) -> None:
    """Queries and keys make the token before stand out; masking it costs, masking 3 and 4 not."""
    torch.manual_seed(0)
    model = silence(llama(layers=layers), [n for n in range(layers) if n != block])
    adapter, found = open_model(model), noise_sample()
    tokens = torch.from_numpy(found.token)
    optimiser = torch.optim.Adam(model.model.layers[block].self_attn.parameters(), lr=0.02)
    # The next token is the one before the present one: only attention at offset 1 can tell.
    tokens[:, 2:] = tokens[:, :2].repeat(1, 16)[:, : tokens.shape[1] - 2]
    for _ in range(60):
        optimiser.zero_grad()
        model(input_ids=tokens[:, :6], labels=tokens[:, :6]).loss.backward()
        optimiser.step()
    found.token[:] = tokens.numpy()
    short = found.__class__(
        **{k: v[:, :6] if isinstance(v, np.ndarray) else v for k, v in vars(found).items()}
    )
    rows = offsets(adapter, short).rows
    loss = {r.condition: r.value for r in rows if r.metric == "loss_increase_nats" and not r.slice}
    assert loss["early_offsets_1_2_masked"] > loss["early_offsets_3_4_masked"] + 0.1
    assert abs(loss["late_offsets_1_2_masked"]) < 1e-5


def test_a_family_of_unknown_names_has_no_rows() -> None:
    model = llama()
    for block in model.model.layers:
        block.self_attn = PreviousToken(32)
    adapter = open_model(model)
    for block in model.model.layers:
        block.looking_back = block.self_attn
        del block.self_attn
    assert attention_of(adapter, 0) is None
    assert offsets(adapter, noise_sample()).rows == []
