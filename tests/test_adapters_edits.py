"""Edits in place are those out of place; what is no edit and no text is told in one line."""

from typing import Any

import pytest
import torch
from adapters_fixture import opened

from engram_eval.adapters.base import Tap
from engram_eval.errors import UserError


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "mlp_out", "memory_rows"])
@pytest.mark.parametrize("family", ["engram_moe", "gemma3n", "qwen4_exp"])
def test_an_edit_in_place_is_the_edit_out_of_it(
    family: str, site: str, tokens: torch.Tensor
) -> None:
    adapter, tap = opened(family), Tap(site, 1)

    def double(tensor: torch.Tensor) -> None:
        tensor[:, 3] *= 2

    def doubled(tensor: torch.Tensor) -> torch.Tensor:
        factor = torch.ones(tensor.shape[1]).index_fill(0, torch.tensor(3), 2.0)
        return tensor * factor[:, None]

    with torch.no_grad():
        plain = adapter.logits(tokens)
        with adapter.record([tap]) as before, adapter.edit(site, 1, double):
            found = adapter.logits(tokens)
        with adapter.record([tap]) as intact, adapter.edit(site, 1, doubled):
            torch.testing.assert_close(adapter.logits(tokens), found)
        assert torch.equal(before[tap], intact[tap]), "what was recorded is not written to"
        assert not torch.allclose(found, plain)
        assert torch.equal(adapter.logits(tokens), plain)


def test_rows_that_are_sent_elsewhere_in_place_leave_the_text_as_it_is() -> None:
    adapter, tokens = opened("gemma3n"), torch.tensor([[5, 6, 7]])
    with torch.no_grad(), adapter.edit("memory_index", 1, lambda rows: rows.zero_()):
        expected = adapter.logits(tokens)

    def to_row_0(rows: torch.Tensor) -> None:
        rows.zero_()

    with torch.no_grad(), adapter.edit("memory_index", 1, to_row_0):
        torch.testing.assert_close(adapter.logits(tokens), expected)
    assert tokens.tolist() == [[5, 6, 7]]


def test_an_edit_that_returns_no_tensor_is_refused(tokens: torch.Tensor) -> None:
    message = r"^the edit of mlp_out returned float; allowed: a tensor, or None [^\n]*$"
    adapter = opened("llama")
    with pytest.raises(UserError, match=message), adapter.edit("mlp_out", 0, lambda _: 0.0):  # type: ignore[arg-type, return-value]
        adapter.run(tokens)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[1, 2]], r"expected token ids, a tensor \(B, T\) of whole numbers, got \[\[1, 2\]\]"),
        ("The capital", "expected token ids, .* got 'The capital'"),
        (torch.tensor([1, 2]), r"expected .* got a tensor \(2,\) of torch.int64"),
        (torch.ones(1, 2), r"expected .* got a tensor \(1, 2\) of torch.float32"),
        (torch.tensor([[1, 40]]), "token id 40: the model has 40 tokens, 0 to 39"),
        (torch.tensor([[-1, 4]]), "token id -1: the model has 40 tokens, 0 to 39"),
    ],
)
def test_what_is_no_text_is_refused_in_one_line(given: Any, message: str) -> None:
    for ask in (opened("gpt2").logits, opened("gpt2").run):
        with pytest.raises(UserError, match=f"^{message}$"):
            ask(given)


def test_ids_of_few_bits_are_read(tokens: torch.Tensor) -> None:
    adapter = opened("llama")
    with torch.no_grad():
        plain = adapter.logits(tokens)
        torch.testing.assert_close(adapter.logits(tokens.to(torch.int32)), plain)
