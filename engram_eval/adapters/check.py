"""The adapter checks itself: a wrong name must end in an error, never in a wrong number."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from engram_eval.adapters.base import Adapter, Reads, Tap
from engram_eval.adapters.hooks import Edit
from engram_eval.errors import UserError

# Relative to the largest value of what is compared; float32 rounding stays far below.
TOLERANCE = 1e-3
# What bfloat16 and float16 need: a sum of four parts in another order is rounded so many times.
ROUNDINGS = 4

LENGTH = 12
"""Tokens of each of the two texts that a model is checked on."""

ADDED = ("memory_out", "attn_out", "mlp_out")
INSIDE_MEMORY = ("memory_rows", "memory_gate")

Same = Callable[[Tensor, Tensor, str], None]


def self_check(adapter: Adapter) -> None:
    """Compare what the adapter says about a model with what the model does.

    1. ``unembedding(final_norm(last resid_post))`` is the logits.
    2. ``resid_pre`` plus all that is added is ``resid_post`` (unless several streams are mixed),
       which enters the next block.
    3. Passing every tap through unchanged leaves the logits unchanged.
    4. Starting at the last block from its ``resid_pre`` gives the same logits (where it can).
    5. Editing what a memory adds changes the logits; so does zeroing it, unless it is zero, and
       editing its rows or its gate, if it adds anything.
    6. Rows that a memory reads by token are where it is said, and pass ``memory_rows``.
    7. Every tap has numbers of the right kind for every token, and gates lie between 0 and 1.

    Raises:
        UserError: the first of these that does not hold.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(adapter.vocab_size, (2, LENGTH), generator=generator)
    tokens = tokens.to(adapter.device)
    same: Same = partial(_same, max(TOLERANCE, ROUNDINGS * torch.finfo(adapter.dtype).eps))
    with torch.no_grad():
        plain = adapter.logits(tokens)
        with adapter.record(adapter.places) as found:
            same(adapter.logits(tokens), plain, "reading the taps changes the logits")
        for tap in adapter.places:
            _check_tap(adapter, tap, found, tokens)
        end = adapter.n_layers - 1
        last = found[Tap("resid_post", end)]
        same(adapter.unembed(last), plain, "unembedding(final_norm(last residual)) != logits")
        for layer in range(adapter.n_layers):
            _check_block(adapter, same, found, layer)
        if not adapter.needs_all_blocks:
            with adapter.start_at(end, found[Tap("resid_pre", end)]):
                same(adapter.logits(tokens), plain, "the last block alone gives other logits")
        for layer in adapter.reads:
            _check_reads(adapter, same, found, layer)
        for layer in adapter.memory_layers:
            for site, edit in _memory_edits(adapter, found, layer):
                with adapter.edit(site, layer, edit):
                    _differ(adapter.logits(tokens), plain, site, layer)


def _memory_edits(
    adapter: Adapter, found: Mapping[Tap, Tensor], layer: int
) -> Iterator[tuple[str, Edit]]:
    """Yield changes of a memory that must show in the logits."""
    yield "memory_out", _changed
    if found[Tap("memory_out", layer)].any():
        yield "memory_out", torch.zeros_like
        for site in INSIDE_MEMORY:
            if Tap(site, layer) in adapter.places:
                yield site, _changed


def _changed(tensor: Tensor) -> Tensor:
    return tensor + 1 + tensor.abs()


def _differ(logits: Tensor, plain: Tensor, site: str, layer: int) -> None:
    if torch.equal(logits, plain):
        what = "the memory" if site == "memory_out" else f"the memory's {site}"
        raise UserError(f"editing {what} at layer {layer} does not reach the logits")


def _check_tap(adapter: Adapter, tap: Tap, found: Mapping[Tap, Tensor], tokens: Tensor) -> None:
    """Refuse what cannot be what its site is called."""
    site, layer = tap
    if tap not in found:
        raise UserError(f"{site} at layer {layer}: nothing passes there when the model runs")
    tensor, whole = found[tap], site.endswith("_index")
    flat = site.startswith("router") and tensor.shape[:-1] == (tokens.numel(),)
    if not flat and (tensor.dim() != 3 or tensor.shape[:2] != tokens.shape):
        shape = tuple(tensor.shape)
        raise UserError(f"{site} at layer {layer}: shape {shape} for tokens {tuple(tokens.shape)}")
    if tensor.is_floating_point() == whole:
        kind = "whole numbers" if whole else "numbers with a fraction"
        raise UserError(f"{site} at layer {layer}: {tensor.dtype}, where {kind} belong")
    gate = site == "memory_gate" and not adapter.memory_ends_block
    if gate and not bool(((tensor >= 0) & (tensor <= 1)).all()):
        low, high = float(tensor.min()), float(tensor.max())
        raise UserError(f"{site} at layer {layer}: from {low:.3g} to {high:.3g}, not from 0 to 1")


def _check_block(adapter: Adapter, same: Same, found: dict[Tap, Tensor], layer: int) -> None:
    post = found[Tap("resid_post", layer)]
    if adapter.streams == 1:
        added = (found[Tap(site, layer)] for site in ADDED if Tap(site, layer) in found)
        total = sum(added, start=found[Tap("resid_pre", layer)])
        same(total, post, f"block {layer}: the parts' outputs do not sum to its residual stream")
    if layer + 1 < adapter.n_layers:
        after = found[Tap("resid_pre", layer + 1)]
        same(after, post, f"between block {layer} and the next, the residual stream changes")


def _check_reads(adapter: Adapter, same: Same, found: Mapping[Tap, Tensor], layer: int) -> None:
    """Refuse rows that are not where it is said, or not what passes ``memory_rows``."""
    reads, table = adapter.reads[layer], adapter.tables[layer]
    where, heads = f"the memory at layer {layer}", len(reads.head_rows)
    if heads % len(reads.orders) or sum(reads.head_rows) > len(table):
        raise UserError(
            f"{where}: Reads has {heads} heads of {sum(reads.head_rows)} rows for "
            f"{len(reads.orders)} orders; its table has {len(table)} rows"
        )
    if max(reads.orders) > adapter.max_positions:
        longest, most = max(reads.orders), adapter.max_positions
        raise UserError(f"{where}: n-grams of {longest} tokens, but the model takes {most}")
    numbers = found.get(Tap("memory_index", layer))
    if numbers is None:
        return
    check_rows(numbers, reads, layer)
    rows = found.get(Tap("memory_rows", layer))
    # Gemma 3n adds a projection to its rows.
    if rows is not None and not adapter.memory_ends_block:
        named = table[numbers.to(table.device)].flatten(2).to(rows.device) * reads.scale
        same(rows, named, f"{where}: memory_rows are not the table's times Reads.scale")


def check_rows(numbers: Tensor, reads: Reads, layer: int) -> None:
    """Refuse numbers of rows (..., heads) that are not in their heads' parts of the table.

    Raises:
        UserError: which is the first, or how many a token reads if it is not one for each head.
    """
    where, heads = f"the memory at layer {layer}", len(reads.head_rows)
    if numbers.shape[-1] != heads:
        raise UserError(f"{where} reads {numbers.shape[-1]} rows a token, but Reads has {heads}")
    sizes = torch.tensor(reads.head_rows, device=numbers.device)
    ends = sizes.cumsum(0)
    outside = (numbers < ends - sizes) | (numbers >= ends)
    if bool(outside.any()):
        place = outside.nonzero()[0]
        number, head = int(numbers[tuple(place)]), int(place[-1])
        first, last = int((ends - sizes)[head]), int(ends[head]) - 1
        raise UserError(f"{where}: head {head} reads row {number}, not one of {first} to {last}")


def _same(tolerance: float, given: Tensor, expected: Tensor, complaint: str) -> None:
    if given.shape != expected.shape:
        raise UserError(f"{complaint}: shapes {tuple(given.shape)} and {tuple(expected.shape)}")
    error = float((given - expected).abs().max())
    # A comparison that is False for NaN as well.
    if not error <= tolerance * max(1.0, float(expected.abs().max())):
        raise UserError(f"this model cannot be opened: {complaint} (off by {error:.3g})")
