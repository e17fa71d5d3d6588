"""The slow reference against hand-worked cases, libraries and finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers

from engram_eval.models import reference as ref

SENTINEL = "\ue000"
LIBRARY_CHAIN = normalizers.Sequence(
    [
        normalizers.NFKC(),
        normalizers.NFD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
        normalizers.Replace(Regex(r"[ \t\r\n]+"), " "),
        normalizers.Replace(Regex(r"^ $"), SENTINEL),
        normalizers.Strip(),
        normalizers.Replace(SENTINEL, " "),
    ]
)


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        (" The", "the"),
        ("THE\n", "the"),
        ("Café", "cafe"),
        ("ﬁne", "fine"),
        ("Σ", "σ"),
        ("ΑΣ", "ασ"),
        (" \t\n ", " "),
        (" a \n\n b ", "a b"),
        ("\u0301", ""),
        ("", ""),
    ],
)
def test_normalise_by_hand(text: str, folded: str) -> None:
    assert ref.normalise(text) == folded


# Latin, Greek, Cyrillic, compatibility forms and all kinds of white space: old enough for Python
# and the Rust library to know the same Unicode data.
CHARACTERS = st.one_of(
    st.characters(min_codepoint=1, max_codepoint=0x24F),
    st.characters(min_codepoint=0x300, max_codepoint=0x45F, categories=("L", "M")),
    st.sampled_from("\u2003\u3000\ufb01\uff21\u212b\u00bd \t\r\n"),
)


@settings(max_examples=300, deadline=None)
@given(st.text(CHARACTERS, max_size=8))
def test_normalise_equals_the_library(text: str) -> None:
    assert ref.normalise(text) == LIBRARY_CHAIN.normalize_str(text)


def test_compression_keeps_raw_strings_of_broken_bytes_and_counts_by_appearance() -> None:
    texts = ["<eos>", "The", "the", "\ufffd", "\ufffd", " THE", "\u0301", "b"]
    raw = ["<eos>", "The", "the", "Ã", "Â", "ĠTHE", "ÌĢ", "b"]
    assert ref.compression_map(texts, raw) == [0, 1, 1, 2, 3, 1, 4, 5]


def test_head_primes_by_hand() -> None:
    assert ref.head_primes([7, 10], heads=2, layers=2) == [[7, 11, 13, 17], [19, 23, 29, 31]]
    assert ref.head_primes([1], heads=3, layers=1) == [[2, 3, 5]]


def test_is_prime_against_a_sieve() -> None:
    sieve = np.ones(500, bool)
    sieve[:2] = False
    for number in range(2, 23):
        sieve[number * number :: number] = False
    assert [n for n in range(500) if ref.is_prime(n)] == np.flatnonzero(sieve).tolist()


@given(st.integers(0, 99), st.integers(0, 40), st.integers(2, 5), st.integers(1, 200_000))
def test_multipliers_are_odd_and_products_fit(seed: int, layer: int, n: int, vocab: int) -> None:
    drawn = ref.layer_multipliers(seed, layer, n, vocab)
    assert len(drawn) == n
    assert all(m % 2 == 1 and (vocab - 1) * m <= ref.INT64_MAX for m in drawn)


def test_suffix_stops_at_padding_and_documents() -> None:
    ids = [5, 6, 9, 7, 8]
    assert ref.suffix(ids, 0, 3, pad=1) == [5, 1, 1]
    assert ref.suffix(ids, 3, 3, pad=1) == [7, 9, 6]
    assert ref.suffix(ids, 3, 3, pad=1, ends=[2]) == [7, 1, 1]
    assert ref.suffix(ids, 2, 3, pad=1, ends=[2]) == [9, 6, 5]
    assert ref.suffix(ids, 4, 3, pad=1, ends=[2]) == [8, 7, 1]
    assert ref.suffix([-1, -1, 4], 2, 3, pad=1) == [4, 1, 1]
    assert ref.suffix([-1, -1, 4], 1, 2, pad=1) == [1, 1]


def test_hash_ids_by_hand() -> None:
    rows = ref.hash_ids([2, 4], orders=[2, 3], primes=[5, 7, 11, 13], multipliers=[3, 5, 7], pad=1)
    # t = 0: 2*3 ^ 1*5 = 6 ^ 5 = 3; ^ 1*7 = 4.  t = 1: 4*3 ^ 2*5 = 12 ^ 10 = 6; ^ 1*7 = 1.
    assert rows == [[3, 3, 4, 4], [1, 6, 1, 1]]


def small_memory(
    streams: int, conv: bool, bias: bool, seed: int = 0
) -> tuple[ref.MemoryWeights, list[int], list[list[list[int]]], torch.Tensor]:
    """Random weights of width 3 with two heads of 2 and 3 rows, look-ups and streams."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64, requires_grad=True)

    weights = ref.MemoryWeights(
        table=normal(5, 2),
        key=[normal(3, 4) for _ in range(streams)],
        value=normal(3, 4),
        key_norm=normal(streams, 3),
        query_norm=normal(streams, 3),
        key_bias=[normal(3) for _ in range(streams)] if bias else (),
        value_bias=normal(3) if bias else None,
        conv=normal(streams, 3, 2) if conv else None,
        conv_norm=normal(streams, 3) if conv else None,
    )
    rows = [[[0, 2], [1, 0], [1, 1], [0, 1]]]
    return weights, [2, 3], rows, normal(1, 4, streams, 3)


@pytest.mark.parametrize("gate", ["plain", "signed_sqrt", "none"])
@pytest.mark.parametrize(("streams", "conv", "bias"), [(1, True, False), (2, True, True)])
def test_memory_gradients_by_finite_differences(
    gate: ref.Gate, streams: int, conv: bool, bias: bool
) -> None:
    weights, primes, rows, hidden = small_memory(streams, conv, bias)
    options = ref.MemoryOptions(gate=gate, dilation=2)

    def output(table: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        fields = {**vars(weights), "table": table}
        return ref.memory(ref.MemoryWeights(**fields), options, primes, rows, hidden)[0]

    assert torch.autograd.gradcheck(output, (weights.table, hidden))


def test_memory_by_hand() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    weights = ref.MemoryWeights(
        table=2 * torch.ones(2, 1, dtype=torch.float64),
        key=[one],
        value=3 * one,
        key_norm=one,
        query_norm=-one,
        conv=torch.tensor([[[0.5, 1.0]]], dtype=torch.float64),
        conv_norm=one,
    )
    options = ref.MemoryOptions(gate="plain", dilation=1, norm_eps=0.0, conv_norm_eps=0.0)
    hidden = torch.tensor([4.0, 5.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    out, gates = ref.memory(weights, options, [2], [[[0], [1]]], hidden)
    gate = 1 / (1 + np.e)  # query -1, key 1, D = 1
    assert gates.flatten().tolist() == pytest.approx([gate, gate])
    # The normalised value is 1, so the convolution gives 1 at the start and 1.5 after it.
    silu = [1 / (1 + np.exp(-1)), 1.5 / (1 + np.exp(-1.5))]
    assert out.flatten().tolist() == pytest.approx([6 * gate + silu[0], 6 * gate + silu[1]])


def test_padding_on_the_left_changes_nothing() -> None:
    weights, primes, rows, hidden = small_memory(1, conv=True, bias=True)
    options = ref.MemoryOptions(dilation=1)
    present = [[False, False, True, True]]
    whole, _ = ref.memory(weights, options, primes, rows, hidden, present)
    alone, _ = ref.memory(weights, options, primes, [rows[0][2:]], hidden[:, 2:])
    assert not whole[:, :2].any()
    assert torch.allclose(whole[:, 2:], alone, rtol=1e-14, atol=0)


def small_experts(shared: bool, seed: int = 0) -> ref.ExpertWeights:
    """Three experts of width 2 on vectors of 4, with a shared expert of width 3."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return ref.ExpertWeights(
        router=normal(3, 4),
        selection_bias=torch.zeros(3, dtype=torch.float64),
        gate_up=normal(3, 4, 4),
        down=normal(3, 2, 4),
        shared=(normal(3, 4), normal(3, 4), normal(4, 3)) if shared else None,
    )


def test_routing_by_hand() -> None:
    weights = ref.ExpertWeights(
        router=torch.tensor([[1.0], [3.0], [2.0]], dtype=torch.float64),
        selection_bias=torch.tensor([9.0, 0.0, 0.0], dtype=torch.float64),
        gate_up=torch.zeros(3, 1, 2, dtype=torch.float64),
        down=torch.zeros(3, 1, 1, dtype=torch.float64),
    )
    token = torch.ones(1, dtype=torch.float64)
    # The bias brings expert 0 in; the weights come from the scores alone.
    chosen, shares = ref.route(weights, ref.RoutingOptions(2, "softmax", True, 2.5), token)
    assert chosen == [0, 1]
    assert [float(s) for s in shares] == pytest.approx(
        [2.5 * np.e / (np.e + np.e**3), 2.5 * np.e**3 / (np.e + np.e**3)]
    )
    _, scores = ref.route(weights, ref.RoutingOptions(2, "sigmoid", False), token)
    assert [float(s) for s in scores] == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-3))])


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_expert_layer_gradients_by_finite_differences(scoring: str) -> None:
    weights = small_experts(shared=True)
    options = ref.RoutingOptions(2, "softmax" if scoring == "softmax" else "sigmoid")
    tokens = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = [tokens, weights.router, weights.gate_up, weights.down]

    def output(tokens: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        router, gate_up, down = given
        fields = {**vars(weights), "router": router, "gate_up": gate_up, "down": down}
        return ref.expert_layer(ref.ExpertWeights(**fields), options, tokens)[0]

    assert torch.autograd.gradcheck(output, [x.requires_grad_() for x in inputs])


def test_expert_layer_with_all_experts_is_a_weighted_sum() -> None:
    weights = small_experts(shared=False)
    tokens = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out, counts = ref.expert_layer(weights, ref.RoutingOptions(3, "softmax"), tokens)
    gates = torch.softmax(tokens @ weights.router.T, dim=-1)
    gate, up = torch.einsum("nd,edf->nef", tokens, weights.gate_up).chunk(2, dim=-1)
    hidden = torch.nn.functional.silu(gate) * up
    truth = torch.einsum("ne,nef,efd->nd", gates, hidden, weights.down)
    assert counts == [5, 5, 5]
    assert torch.allclose(out, truth, rtol=1e-12, atol=1e-14)
