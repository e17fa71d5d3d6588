"""The memory and the expert layer, written to be read: loops, one equation a line.

This is the truth that the fast modules are tested against. It knows nothing of them: hashes are
pure Python integers, and every vector is computed for one batch row, position and stream at a
time. The vectors are torch tensors (float64 in the tests) for the sake of their gradients only.

Equation numbers are those of arXiv:2601.07372; where the paper and its published demonstration
differ, both are options.
"""

import math
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Gate = Literal["plain", "signed_sqrt", "none"]

INT64_MAX = 2**63 - 1
LAYER_SEED_STRIDE = 10007
REPLACEMENT = "\ufffd"
# Rust's char::is_whitespace, which the tokenizers library strips by; str.isspace knows more.
WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008"
    "\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)


def normalise(text: str) -> str:
    r"""Fold what looks alike: compatibility forms, accents, case, runs of white space.

    The chain is NFKC, NFD, strip accents, lower case, ``[ \t\r\n]+`` to one space, strip. A text
    that is nothing but one space stays a space.
    """
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    text = "".join(c for c in text if not unicodedata.category(c).startswith("M"))
    # One character at a time: str.lower() of a whole word knows the Greek final sigma.
    text = "".join(c.lower() for c in text)
    folded = ""
    for c in text:
        if c not in " \t\r\n":
            folded += c
        elif not folded.endswith(" "):
            folded += " "
    return " " if folded == " " else folded.strip(WHITE_SPACE)


def compression_map(texts: Sequence[str], raw_tokens: Sequence[str]) -> list[int]:
    """Map each vocabulary id to its compressed id; new ids are given by first appearance.

    Args:
        texts: the decoded text of each id.
        raw_tokens: the vocabulary's own string of each id: the key where bytes do not decode.
    """
    new_id: dict[str, int] = {}
    compressed = []
    for text, raw in zip(texts, raw_tokens, strict=True):
        key = raw if REPLACEMENT in text else normalise(text) or text
        compressed.append(new_id.setdefault(key, len(new_id)))
    return compressed


def is_prime(number: int) -> bool:
    """Decide by trial division."""
    if number < 2:
        return False
    return all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def head_primes(rows: Sequence[int], heads: int, layers: int) -> list[list[int]]:
    """Rows of every head's table, per layer: orders one after the other, heads within.

    Each is the least prime that is at least ``rows[order]`` and that no earlier head, of whatever
    order or layer, has taken.
    """
    taken: set[int] = set()
    per_layer = []
    for _ in range(layers):
        primes = []
        for least in rows:
            for _ in range(heads):
                number = least
                while number in taken or not is_prime(number):
                    number += 1
                taken.add(number)
                primes.append(number)
        per_layer.append(primes)
    return per_layer


def layer_multipliers(seed: int, layer: int, max_order: int, compressed_vocab: int) -> list[int]:
    """Draw one odd multiplier per position of the n-gram, newest token first.

    They are small enough for every product with a compressed id to stay below 2**63.
    """
    half = max(1, INT64_MAX // compressed_vocab // 2)
    draw = np.random.default_rng(seed + LAYER_SEED_STRIDE * layer)
    return [2 * int(r) + 1 for r in draw.integers(0, half, size=max_order, dtype=np.int64)]


def suffix(
    ids: Sequence[int], position: int, order: int, pad: int, ends: Collection[int] = ()
) -> list[int]:
    """Return the n-gram that ends at ``position``, newest token first.

    Args:
        ids: compressed ids of one sequence; below 0 where there is padding.
        position: where the n-gram ends.
        order: n.
        pad: compressed pad id. Stands for padding and positions before the start.
        ends: positions of the tokens that end a document. Looking back, such a token, like
            padding, reads as ``pad``, and so does all that lies before it.
    """
    gram: list[int] = []
    ended = False
    for back in range(order):
        here = position - back
        absent = here < 0 or ids[here] < 0
        ended = ended or (back > 0 and (absent or here in ends))
        gram.append(pad if ended or absent else ids[here])
    return gram


def hash_ids(
    ids: Sequence[int],
    orders: Sequence[int],
    primes: Sequence[int],
    multipliers: Sequence[int],
    pad: int,
    ends: Collection[int] = (),
) -> list[list[int]]:
    """Look-up rows (T, orders x heads) of one sequence of compressed ids, before offsets (eq. 1).

    The heads of one order share one mix and differ by their prime.
    """
    heads = len(primes) // len(orders)
    table = []
    for position in range(len(ids)):
        rows = []
        for index, order in enumerate(orders):
            mix = 0
            gram = suffix(ids, position, order, pad, ends)
            for token, multiplier in zip(gram, multipliers, strict=False):
                mix ^= token * multiplier
            rows += [mix % prime for prime in primes[index * heads : (index + 1) * heads]]
        table.append(rows)
    return table


@dataclass(frozen=True)
class MemoryWeights:
    """Weights of one memory with M streams of width D, whose d_mem comes from all its heads.

    Attributes:
        table: (sum of primes, row_dim), the heads' tables one below the other.
        key: M matrices (D, d_mem); key_bias: M vectors (D,), or empty.
        value: (D, d_mem); value_bias: (D,) or None.
        key_norm, query_norm, conv_norm: (M, D); the last is None without convolution.
        conv: (M, D, kernel), oldest tap first, or None.
    """

    table: Tensor
    key: Sequence[Tensor]
    value: Tensor
    key_norm: Tensor
    query_norm: Tensor
    key_bias: Sequence[Tensor] = ()
    value_bias: Tensor | None = None
    conv: Tensor | None = None
    conv_norm: Tensor | None = None


@dataclass(frozen=True)
class MemoryOptions:
    """What the memory computes with its weights.

    Attributes:
        gate: ``plain`` is eq. 4, ``signed_sqrt`` the demonstration's, ``none`` a constant 1.
        dilation: distance of the convolution's taps (the paper's: the largest order).
        norm_eps: of the key and query norms.
        conv_norm_eps: of the convolution's norms.
    """

    gate: Gate = "signed_sqrt"
    dilation: int = 3
    norm_eps: float = 1e-6
    conv_norm_eps: float = 1e-5


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale a vector (D,) to root mean square 1, then by its weights."""
    return x / torch.sqrt((x * x).sum() / x.numel() + eps) * weight


def gate_value(query: Tensor, key: Tensor, kind: Gate) -> Tensor:
    """Compute the scalar gate of one position from normalised vectors (D,) (eq. 4)."""
    if kind == "none":
        return query.new_ones(())
    score = (query * key).sum() / math.sqrt(query.numel())
    if kind == "signed_sqrt":
        score = torch.sign(score) * torch.sqrt(torch.clamp(torch.abs(score), min=1e-6))
    return 1 / (1 + torch.exp(-score))


def memory_rows(weights: MemoryWeights, primes: Sequence[int], rows: Sequence[int]) -> Tensor:
    """Concatenate one position's rows of all heads into e_t (d_mem,) (eq. 2)."""
    parts, offset = [], 0
    for prime, row in zip(primes, rows, strict=True):
        parts.append(weights.table[offset + row])
        offset += prime
    return torch.cat(parts)


def gated_values(
    weights: MemoryWeights, options: MemoryOptions, e: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """Gate one position's value for every stream (eq. 3, 4, 6).

    Args:
        weights: the memory's.
        options: the memory's.
        e: (d_mem,).
        hidden: (M, D).

    Returns:
        The gated values (M, D) and the gates (M,).
    """
    value = weights.value @ e
    if weights.value_bias is not None:
        value = value + weights.value_bias
    gated, gates = [], []
    for m in range(hidden.shape[0]):
        key = weights.key[m] @ e
        if weights.key_bias:
            key = key + weights.key_bias[m]
        query = rms_norm(hidden[m], weights.query_norm[m], options.norm_eps)
        key = rms_norm(key, weights.key_norm[m], options.norm_eps)
        gates.append(gate_value(query, key, options.gate))
        gated.append(gates[-1] * value)
    return torch.stack(gated), torch.stack(gates)


def short_conv(
    weights: MemoryWeights, options: MemoryOptions, gated: Sequence[Tensor], position: int
) -> Tensor:
    """Mix one position with its predecessors, channel by channel, then SiLU (eq. 5).

    Args:
        weights: the memory's, with convolution.
        options: the memory's.
        gated: gated values (M, D) of every position of the sequence.
        position: t; the taps are t, t - dilation, t - 2 dilation, ... as far as they exist.
    """
    assert weights.conv is not None and weights.conv_norm is not None
    kernel = weights.conv.shape[-1]
    total = torch.zeros_like(gated[0])
    for tap in range(kernel):
        source = position - (kernel - 1 - tap) * options.dilation
        if source >= 0:
            normed = [
                rms_norm(x, w, options.conv_norm_eps)
                for x, w in zip(gated[source], weights.conv_norm, strict=True)
            ]
            total = total + weights.conv[:, :, tap] * torch.stack(normed)
    return total / (1 + torch.exp(-total))


def memory(
    weights: MemoryWeights,
    options: MemoryOptions,
    primes: Sequence[int],
    rows: Sequence[Sequence[Sequence[int]]],
    hidden: Tensor,
    present: Sequence[Sequence[bool]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute what the memory adds to the residual streams (eq. 2 to 6).

    Args:
        weights: the memory's.
        options: the memory's.
        primes: rows of each head's table.
        rows: (B, T, heads), from ``hash_ids``.
        hidden: (B, T, M, D), the residual streams.
        present: (B, T), False at padding, whose value is nothing; None: all present.

    Returns:
        The output (B, T, M, D) and the gates (B, T, M).
    """
    outputs, gates = [], []
    for b, sequence in enumerate(rows):
        e = [memory_rows(weights, primes, row) for row in sequence]
        pairs = [gated_values(weights, options, e[t], hidden[b, t]) for t in range(len(e))]
        gated = [pair[0] * (present is None or present[b][t]) for t, pair in enumerate(pairs)]
        added = gated
        if weights.conv is not None:
            added = [x + short_conv(weights, options, gated, t) for t, x in enumerate(gated)]
        outputs.append(torch.stack(added))
        gates.append(torch.stack([pair[1] for pair in pairs]))
    return torch.stack(outputs), torch.stack(gates)


@dataclass(frozen=True)
class ExpertWeights:
    """Weights of one expert layer: E routed experts of width f, top-k, and a shared one.

    Attributes:
        router: (E, D); selection_bias: (E,), which steers the choice but not the weights.
        gate_up: (E, D, 2f), the gate's columns before the up-projection's; down: (E, f, D).
        shared: gate (g, D), up (g, D), down (D, g) of the shared expert, or None.
    """

    router: Tensor
    selection_bias: Tensor
    gate_up: Tensor
    down: Tensor
    shared: tuple[Tensor, Tensor, Tensor] | None = None


@dataclass(frozen=True)
class RoutingOptions:
    """How tokens choose experts: scores, k, whether the k weights sum to 1, and their scale."""

    top_k: int
    scoring: Literal["sigmoid", "softmax"] = "sigmoid"
    normalise: bool = True
    scale: float = 1.0


def silu(x: Tensor) -> Tensor:
    """Return x times its logistic sigmoid."""
    return x / (1 + torch.exp(-x))


def route(
    weights: ExpertWeights, options: RoutingOptions, token: Tensor
) -> tuple[list[int], list[Tensor]]:
    """Choose the experts of a token (D,), best first, and their weights."""
    logits = [(row * token).sum() for row in weights.router]
    if options.scoring == "sigmoid":
        scores = [1 / (1 + torch.exp(-logit)) for logit in logits]
    else:
        largest = max(float(logit.detach()) for logit in logits)
        raised = [torch.exp(logit - largest) for logit in logits]
        scores = [value / sum(raised) for value in raised]
    biased = [
        float(score.detach()) + float(bias)
        for score, bias in zip(scores, weights.selection_bias, strict=True)
    ]
    chosen = sorted(range(len(biased)), key=lambda e: -biased[e])[: options.top_k]
    picked = [scores[e] for e in chosen]
    total: Tensor | float = sum(picked, start=token.new_zeros(())) if options.normalise else 1.0
    return chosen, [score / total * options.scale for score in picked]


def expert_layer(
    weights: ExpertWeights, options: RoutingOptions, tokens: Tensor
) -> tuple[Tensor, list[int]]:
    """Apply the expert layer to tokens (N, D), one after the other.

    Returns:
        The output (N, D) and how many tokens each expert got (E).
    """
    counts = [0] * weights.router.shape[0]
    width = weights.down.shape[1]
    outputs = []
    for token in tokens:
        out = torch.zeros_like(token)
        for expert, weight in zip(*route(weights, options, token), strict=True):
            counts[expert] += 1
            both = token @ weights.gate_up[expert]
            hidden = silu(both[:width]) * both[width:]
            out = out + weight * (hidden @ weights.down[expert])
        if weights.shared is not None:
            gate, up, down = weights.shared
            out = out + down @ (silu(gate @ token) * (up @ token))
        outputs.append(out)
    return torch.stack(outputs), counts
