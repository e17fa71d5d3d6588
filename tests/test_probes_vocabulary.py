"""What is computed over the vocabulary in pieces, against torch in one go."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probes_fixture import engram, llama, noise_sample
from torch.nn import functional as F

from engram_eval.adapters.load import open_model
from probes import vocabulary
from probes.capture import batches, last_stream
from probes.vocabulary import pieces, row_dots, token_losses, unembedder


@given(st.integers(0, 50), st.integers(1, 30), st.integers(1, 100))
def test_pieces_cover_every_place_once(places: int, width: int, cells: int) -> None:
    here = torch.device("cpu")
    found = [list(range(places))[part] for part in pieces(places, width, cells, here)]
    assert list(chain(*found)) == list(range(places))
    assert all(len(part) * width <= max(cells, width) for part in found)


def test_pieces_are_large_on_a_gpu() -> None:
    width = vocabulary.GPU_CELLS // 100
    assert len(list(pieces(1000, width, vocabulary.CELLS, torch.device("cuda")))) == 10


@pytest.mark.parametrize("options", [{}, {"residual_streams": 2}])
def test_losses_are_those_of_all_logits_at_once(
    options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, found = open_model(engram(**options)), noise_sample(windows=3)
    (batch,) = batches(adapter, found, logits=True)
    expected = F.cross_entropy(batch.logits, batch.targets, reduction="none")
    stream = last_stream(adapter, batch.tokens).flatten(0, 1)
    for cells in (vocabulary.PASSED_ONCE, 7 * adapter.vocab_size):
        monkeypatch.setattr(vocabulary, "PASSED_ONCE", cells)
        losses = token_losses(adapter, stream, batch.targets)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_the_last_stream_is_what_the_logits_are_made_of() -> None:
    adapter, tokens = open_model(llama()), torch.from_numpy(noise_sample(windows=2).token)
    with torch.no_grad():
        logits = adapter.logits(tokens)
    torch.testing.assert_close(adapter.unembed(last_stream(adapter, tokens)), logits)


def test_dots_of_rows() -> None:
    a, b = torch.randn(2, 5, 300, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(row_dots(a, b), torch.linalg.vecdot(a, b))


def test_turned_weights_give_the_same_logits() -> None:
    adapter, hidden = open_model(llama()), torch.randn(5, 32)
    with torch.no_grad():
        torch.testing.assert_close(unembedder(adapter)(hidden), adapter.unembedding(hidden))
    # What has a bias, is watched, or is more than a product, is asked itself.
    plain, biased = (torch.nn.Linear(32, 50, bias=bias) for bias in (False, True))
    assert unembedder(replace(adapter, unembedding=plain)) is not plain
    plain.register_forward_hook(lambda *_: None)
    for other in (biased, plain, torch.nn.Sequential(plain)):
        assert unembedder(replace(adapter, unembedding=other)) is other
