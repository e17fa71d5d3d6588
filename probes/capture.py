"""Stream a model over a sample: activations come batch by batch and are not kept."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engram_eval.adapters.base import Adapter, Tap, widened
from engram_eval.adapters.tokens import reads
from engram_eval.errors import UserError
from engram_eval.progress import Reporter
from probes.sample import Sample


class Batch(NamedTuple):
    """One forward pass; n = B * T tokens, in the order of ``Sample.inputs``.

    Attributes:
        part: which of the sample's N * T places these are.
        tokens: ids that were read, (B, T).
        targets: ids to be predicted, (n,).
        taps: tensors that were asked for, each (n, width), ``widened``; whole numbers where a site
            has them.
        logits: (n, V), ``widened``, or None where they were not asked for.
    """

    part: slice
    tokens: Tensor
    targets: Tensor
    taps: dict[Tap, Tensor]
    logits: Tensor | None


def batches(
    adapter: Adapter,
    sample: Sample,
    taps: Sequence[Tap] = (),
    logits: bool = False,
    tokens_per_batch: int = 4096,
    report: Reporter | None = None,
    title: str = "reading",
) -> Iterator[Batch]:
    """Yield activations of the whole sample, a few windows at a time.

    Args:
        adapter: the model.
        sample: what it reads.
        taps: which tensors to collect; blocks behind the last of them are not run for them.
        logits: also build the logits.
        tokens_per_batch: bounds the memory; has no influence on the numbers beyond rounding.
        report: where to show progress.
        title: what the progress is called.

    Raises:
        UserError: the windows are too long, or have tokens that the model does not know.
    """
    check_fit(adapter, sample)
    count, length = sample.shape
    step = max(1, tokens_per_batch // length)
    tokens = torch.from_numpy(sample.token).to(adapter.device)
    with (report or Reporter(quiet=True)).task(title, count * length) as progress:
        for start in range(0, count, step):
            rows = tokens[start : start + step]
            part = slice(start * length, (start + len(rows)) * length)
            yield _pass(adapter, rows, part, taps, logits)
            progress.advance(rows.shape[0] * length)


def _pass(adapter: Adapter, rows: Tensor, part: slice, taps: Sequence[Tap], logits: bool) -> Batch:
    """Run one batch of windows (B, T + 1)."""
    inputs, targets = rows[:, :-1], rows[:, 1:].reshape(-1)
    end = adapter.n_layers - 1 if logits or not taps else max(tap.layer for tap in taps)
    with torch.no_grad(), adapter.record(taps) as found, adapter.stop_after(end):
        scores = adapter.logits(inputs).flatten(0, 1) if logits else None
        if not logits:
            adapter.run(inputs)
    # Routers see (n, D) and give (n, width) themselves.
    flat = {tap: widened(tensor.reshape(targets.numel(), -1)) for tap, tensor in found.items()}
    return Batch(part, inputs, targets, flat, scores)


def last_stream(adapter: Adapter, tokens: Tensor) -> Tensor:
    """Run the model on tokens (B, T) and return what its last block hands on, (B, T, D)."""
    end = Tap("resid_post", adapter.n_layers - 1)
    with torch.no_grad(), adapter.record([end]) as found:
        adapter.run(tokens)
    return found[end]


def check_kinds(
    adapter: Adapter,
    given: Any,
    kind: type[Any] = Sample,
    named: str = "a sample (draw_sample, sample_of)",
) -> None:
    """Refuse what is no opened model, not what it is to read, or that in another model's tokens.

    What a probe measures would be of tokens that the model does not have. Nothing can be said where
    the model was opened as an object, or the sample was made before samples knew their tokenizer.

    Args:
        adapter: the model.
        given: what it is to read; knows the ``tokenizer`` whose tokens it has, or None.
        kind: what ``given`` must be.
        named: how an error calls that, and how one is made.

    Raises:
        UserError: which of the three it is.
    """
    if not isinstance(adapter, Adapter):
        raise UserError(f"expected an opened model (open_model), got {type(adapter).__name__}")
    if not isinstance(given, kind):
        raise UserError(f"expected {named}, got {type(given).__name__}")
    tokenizer = given.tokenizer
    if tokenizer is not None and not reads(adapter.source, tokenizer):
        raise UserError(
            f"{named.split(' (')[0]} in the tokens of tokenizer {tokenizer.tokens[:12]}: "
            f"{adapter.source} has another tokenizer, and a token of one is no token of the other"
        )


def check_fit(adapter: Adapter, sample: Sample) -> None:
    """Refuse a sample that the model was not made for, as ``check_kinds`` and by its numbers."""
    check_kinds(adapter, sample)
    length, highest = sample.shape[1], int(sample.token.max())
    if length > adapter.max_positions:
        raise UserError(
            f"windows of {length} tokens, but the model takes {adapter.max_positions}: "
            "lower probe.seq_len"
        )
    if highest >= adapter.vocab_size:
        raise UserError(
            f"the corpus has token id {highest}, the model {adapter.vocab_size} tokens: "
            "they do not share a tokenizer"
        )
