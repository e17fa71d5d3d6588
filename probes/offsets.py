"""How far back attention looks, and what is lost when it may not look at its neighbours.

If a memory takes local patterns off the early layers, their attention should spend less on the
tokens just before (arXiv:2601.07372 section 6 argues so), and masking these should hurt a model
with a memory *less* than one without. Masking as many tokens a little further back is the control
of equal size, as many of the last layers the control of place.

In three lines::

    adapter = open_model("runs/quick/models/engram/seed0")
    sample = draw_sample(load_corpus("runs/quick/corpus"))
    rows = offsets(adapter, sample).rows
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from engram_eval.adapters.base import Adapter, Tap, widened
from engram_eval.arrays import Floats
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.capture import batches, check_kinds, last_stream
from probes.findings import Findings, bucket_names, mean_rows
from probes.sample import Sample
from probes.vocabulary import token_losses

NAME = "offsets"
SITE = "attn_weights"
# First offset of each bucket; the last one is open.
EDGES = (0, 1, 2, 3, 4, 8, 16, 32, 64)
# Blocks that are early at least.
EARLY = 2
ATTENTIONS = ("self_attn", "attention", "attn")
# Weights of one batch: (B, heads, T, T) for every layer.
TOKENS_PER_BATCH = 1024


class Masking(NamedTuple):
    """Which offsets no query may attend to, in which layers."""

    condition: str
    offsets: tuple[int, ...]
    layers: tuple[int, ...]


def maskings(n_layers: int) -> list[Masking]:
    """List what is masked: near and, as controls, further offsets; early and late layers.

    Early is the first third of the blocks, but at least two of three or more: a memory stands in
    the second block, and what it spares can show only where it has written. Late are as many of
    the last blocks (one of three, where two of them are early).
    """
    count = max(1, n_layers // 3, min(EARLY, n_layers - 1))
    early = tuple(range(count))
    late = tuple(range(max(count, n_layers - count), n_layers)) or early
    near, further = (1, 2), (3, 4)
    return [
        Masking("early_offsets_1_2_masked", near, early),
        Masking("early_offsets_3_4_masked", further, early),
        Masking("late_offsets_1_2_masked", near, late),
        Masking("late_offsets_3_4_masked", further, late),
    ]


def attention_of(adapter: Adapter, layer: int) -> nn.Module | None:
    """Return a block's attention, by the names that families give it."""
    block = adapter.place("resid_pre", layer).module
    found = [getattr(block, name, None) for name in ATTENTIONS]
    return next((module for module in found if isinstance(module, nn.Module)), None)


def mass_by_offset(weights: Tensor) -> Tensor:
    """Sum attention weights (B, heads, T, T) over keys by their offset: (B, T, buckets).

    The mean over heads; a query's buckets add up to 1.
    """
    length = weights.shape[-1]
    place = torch.arange(length, device=weights.device)
    offset = (place[:, None] - place[None, :]).clamp_min(0)
    edges = torch.tensor(EDGES, device=weights.device)
    bucket = torch.bucketize(offset, edges, right=True) - 1
    mean = widened(weights).mean(1)
    empty = mean.new_zeros(*mean.shape[:2], len(EDGES))
    return empty.scatter_add(2, bucket.expand_as(mean), mean)


@contextmanager
def eager_weights(adapter: Adapter) -> Iterator[dict[int, Tensor]]:
    """Collect each layer's attention weights (B, heads, T, T), which the fast kernels never form.

    Yields:
        A dictionary, overwritten by each forward pass; it lacks layers whose attention returns
        no weights.
    """
    model: Any = adapter.model
    before = model.config._attn_implementation
    found: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in range(adapter.n_layers):
            module = attention_of(adapter, layer)
            if module is not None:
                handle = module.register_forward_hook(_keep(found, layer))
                stack.callback(handle.remove)
        model.set_attn_implementation("eager")
        stack.callback(model.set_attn_implementation, before)
        yield found


def _keep(found: dict[int, Tensor], layer: int) -> Any:
    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], Tensor):
            found[layer] = output[1].detach()

    return keep


def masked(length: int, offsets: Sequence[int], like: Tensor) -> Tensor:
    """Return what is added to attention scores, (1, 1, T, T): causal, without some offsets."""
    place = torch.arange(length, device=like.device)
    offset = place[:, None] - place[None, :]
    hidden = (offset < 0) | torch.isin(offset, torch.tensor(list(offsets), device=like.device))
    scores = torch.zeros(length, length, dtype=like.dtype, device=like.device)
    return scores.masked_fill(hidden, float("-inf"))[None, None]


@contextmanager
def offsets_off(adapter: Adapter, masking: Masking, length: int) -> Iterator[None]:
    """Keep chosen layers from attending to chosen offsets, for windows of ``length`` tokens."""
    weight: Any = adapter.embedding.weight
    mask = masked(length, masking.offsets, weight)

    def swap(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": mask}

    with ExitStack() as stack:
        for layer in masking.layers:
            module = attention_of(adapter, layer)
            assert module is not None
            stack.callback(module.register_forward_pre_hook(swap, with_kwargs=True).remove)
        yield


def offsets(adapter: Adapter, sample: Sample, report: Reporter | None = None) -> Findings:
    """Measure where attention goes and what its neighbours are worth.

    Rows: ``attention_mass`` per layer, site ``attn_weights``, by ``slice`` offset, the mean over
    heads and queries (baseline: attention spread evenly over what each query may see);
    ``loss_increase_nats`` per masking, domain and static third. Standard errors are over documents.
    No rows for a family whose attention is not found by name, or takes no masks.
    """
    check_kinds(adapter, sample)
    found = (attention_of(adapter, layer) for layer in range(adapter.n_layers))
    if not adapter.shows_attention or any(attention is None for attention in found):
        return Findings([], {})
    return Findings(
        [*_mass_rows(adapter, sample, report), *_loss_rows(adapter, sample, report)], {}
    )


def _mass_rows(adapter: Adapter, sample: Sample, report: Reporter | None) -> Iterator[MetricRow]:
    count, length = sample.shape
    sums: dict[int, list[Floats]] = {}
    with eager_weights(adapter) as found:
        read = batches(
            adapter, sample, tokens_per_batch=TOKENS_PER_BATCH, report=report, title=NAME
        )
        for _ in read:
            for layer, weights in found.items():
                mass = mass_by_offset(weights).flatten(0, 1).double().cpu().numpy()
                sums.setdefault(layer, []).append(mass)
    even = mass_by_offset(
        torch.ones(1, 1, length, length).tril() / torch.arange(1, length + 1)[:, None]
    )
    baseline = even.mean((0, 1)).tolist()
    whole = sample.slices("static_in", domains=False)[:1]
    for layer, parts in sorted(sums.items()):
        values = np.concatenate(parts)
        assert len(values) == count * length
        for number, name in enumerate(bucket_names(EDGES)):
            yield from mean_rows(
                values[:, number],
                sample.inputs.document,
                whole,
                name=NAME,
                metric="attention_mass",
                layer=layer,
                site=SITE,
                slice={"offset": name},
                baseline=baseline[number],
            )


def masking_losses(
    adapter: Adapter, sample: Sample, wanted: Sequence[Masking], report: Reporter | None = None
) -> Floats:
    """Return the loss of each target in nats, (1 + maskings, n): intact, then with each mask."""
    count, length = sample.shape
    values = np.empty((1 + len(wanted), count * length))
    taps = [Tap("resid_pre", masking.layers[0]) for masking in wanted]
    end = Tap("resid_post", adapter.n_layers - 1)
    for batch in batches(adapter, sample, sorted({*taps, end}), report=report, title=NAME):
        values[0, batch.part] = token_losses(adapter, batch.taps[end], batch.targets)
        for number, (masking, tap) in enumerate(zip(wanted, taps, strict=True), start=1):
            before = batch.taps[tap].unflatten(0, batch.tokens.shape)
            with (
                adapter.start_at(tap.layer, before),
                offsets_off(adapter, masking, length),
            ):
                stream = last_stream(adapter, batch.tokens).flatten(0, 1)
            values[number, batch.part] = token_losses(adapter, stream, batch.targets)
    return values


def _loss_rows(adapter: Adapter, sample: Sample, report: Reporter | None) -> Iterator[MetricRow]:
    wanted = maskings(adapter.n_layers)
    table = masking_losses(adapter, sample, wanted, report)
    for masking, loss in zip(wanted, table[1:], strict=True):
        yield from mean_rows(
            loss - table[0],
            sample.targets.document,
            sample.slices("static_out"),
            name=NAME,
            metric="loss_increase_nats",
            site=SITE,
            condition=masking.condition,
        )
