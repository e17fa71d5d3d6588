"""What a knock-out takes away, and how: one context manager per condition.

| condition       | what happens                                                                  |
|-----------------|-------------------------------------------------------------------------------|
| memory_zeroed   | the memory adds nothing                                                       |
| memory_mean     | it adds its mean over the sample, the same at every token                     |
| memory_shuffled | it reads the rows of another token of the batch; gate and projections go on   |
| attn_zeroed     | the block's attention adds nothing                                            |
| mlp_zeroed      | its feed-forward or experts add nothing                                       |
| layer_skipped   | the whole block hands on what it was given                                    |
| experts_removed | random experts are never chosen: as many parameters as the memory has, or a   |
|                 | quarter of the experts in a model without one; spread over all blocks         |
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.adapters.hooks import Edit
from probes.capture import Batch, batches, last_stream
from probes.sample import Sample

# arXiv:2601.07372 section 3 gives about this share of the sparse parameters to the memory.
MEMORY_SHARE = 0.25


class Knockout(NamedTuple):
    """What is cut: a site at ``layers``, ascending; ``layer`` is the only one, or None."""

    condition: str
    site: str
    layer: int | None
    layers: tuple[int, ...]


class Means(NamedTuple):
    """What memories add on average: layer -> (D,)."""

    memory_out: Mapping[int, Tensor]


def knockouts(adapter: Adapter) -> list[Knockout]:
    """List the parts of a model that can be cut, the memory's first."""
    memory = adapter.memory_layers
    found = [Knockout("memory_zeroed", "memory_out", i, (i,)) for i in memory]
    if memory:
        together = memory[0] if len(memory) == 1 else None
        if together is None:
            found.append(Knockout("memory_zeroed", "memory_out", None, memory))
        found.append(Knockout("memory_mean", "memory_out", together, memory))
        if all(Tap("memory_rows", layer) in adapter.places for layer in memory):
            found.append(Knockout("memory_shuffled", "memory_rows", together, memory))
    for layer in range(adapter.n_layers):
        found.append(Knockout("attn_zeroed", "attn_out", layer, (layer,)))
        found.append(Knockout("mlp_zeroed", "mlp_out", layer, (layer,)))
        found.append(Knockout("layer_skipped", "resid_post", layer, (layer,)))
    removable = tuple(removed_experts(adapter, 0))
    if removable:
        found.append(Knockout("experts_removed", "router", None, removable))
    return found


@contextmanager
def cut_out(
    adapter: Adapter,
    cut: Knockout,
    other_rows: Callable[[int], Edit],
    means: Means,
    seed: int,
) -> Iterator[None]:
    """Cut a part out while the block runs; ``layer_skipped`` needs ``run_cut``.

    Args:
        adapter: the model.
        cut: the part.
        other_rows: layer -> what gives every token rows of another n-gram.
        means: of the memories; see ``memory_means``.
        seed: chooses the experts that are removed.
    """
    with ExitStack() as stack, torch.no_grad():
        if cut.condition == "experts_removed":
            stack.enter_context(experts_off(adapter, removed_experts(adapter, seed)))
        else:
            for layer in cut.layers:
                stack.enter_context(_edit(adapter, cut, layer, other_rows, means))
        yield


def _edit(
    adapter: Adapter,
    cut: Knockout,
    layer: int,
    other_rows: Callable[[int], Edit],
    means: Means,
) -> AbstractContextManager[None]:
    edits: dict[str, Callable[[], Edit]] = {
        "memory_mean": lambda: means.memory_out[layer].expand_as,
        "memory_shuffled": lambda: other_rows(layer),
    }
    make = edits.get(cut.condition, lambda: torch.zeros_like)
    return adapter.edit(cut.site, layer, make())


def _shuffle(batch: Batch) -> Edit:
    """Return what gives every token the tensor of another one, the same way each time."""
    count = batch.tokens.numel()
    generator = torch.Generator().manual_seed(batch.part.start)
    order = torch.randperm(count, generator=generator)
    source = torch.empty_like(order)
    # A cycle through all tokens: none keeps its own.
    source[order] = order.roll(1)

    def shuffled(rows: Tensor) -> Tensor:
        return rows.flatten(0, 1)[source.to(rows.device)].view_as(rows)

    return shuffled


def run_cut(adapter: Adapter, cut: Knockout, batch: Batch, means: Means, seed: int = 0) -> Tensor:
    """Return the last residual stream (B, T, D) with a part cut.

    Blocks before it are not run again.

    Args:
        adapter: the model.
        cut: the part.
        batch: with ``resid_pre`` of the first layer concerned.
        means: of the memories; see ``memory_means``.
        seed: chooses the experts that are removed.
    """
    first = cut.layers[0]
    before = batch.taps[Tap("resid_pre", first)].unflatten(0, batch.tokens.shape)
    if cut.condition == "layer_skipped":
        if first + 1 == adapter.n_layers:
            return before
        with adapter.start_at(first + 1, before):
            return last_stream(adapter, batch.tokens)
    with (
        adapter.start_at(first, before),
        cut_out(adapter, cut, lambda _: _shuffle(batch), means, seed),
    ):
        return last_stream(adapter, batch.tokens)


def memory_means(adapter: Adapter, sample: Sample) -> Means:
    """Return what each memory adds on average over the sample's tokens."""
    taps = [Tap("memory_out", layer) for layer in adapter.memory_layers]
    if not taps:
        return Means({})
    totals = dict.fromkeys(taps, torch.zeros((), dtype=torch.float64))
    for batch in batches(adapter, sample, taps):
        for tap in taps:
            totals[tap] = totals[tap] + batch.taps[tap].double().sum(0)
    count = sample.inputs.token.size
    return Means({tap.layer: (total / count).float() for tap, total in totals.items()})


def removed_experts(adapter: Adapter, seed: int) -> dict[int, Tensor]:
    """Choose experts whose parameters add up to the memory's: layer -> expert numbers.

    Spread evenly over the blocks, and never so many that a token finds too few. Empty where no
    router has a bias by which experts can be ruled out, or experts are not stacked.
    """
    mixtures = _mixtures(adapter)
    if not mixtures:
        return {}
    total = round(_equal_share(adapter, mixtures))
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for place, (layer, mlp) in enumerate(mixtures.items()):
        count = total // len(mixtures) + (place < total % len(mixtures))
        experts = len(mlp.gate.weight)
        allowed = max(0, experts - mlp.gate.top_k)
        found[layer] = torch.randperm(experts, generator=generator)[: min(count, allowed)]
    return {layer: chosen for layer, chosen in found.items() if len(chosen)}


def _mixtures(adapter: Adapter) -> dict[int, Any]:
    blocks = {i: adapter.place("resid_pre", i).module for i in range(adapter.n_layers)}
    layers: dict[int, Any] = {i: getattr(block, "mlp", None) for i, block in blocks.items()}
    return {
        i: mlp
        for i, mlp in layers.items()
        if hasattr(getattr(mlp, "gate", None), "e_score_correction_bias")
        and not isinstance(getattr(mlp, "experts", None), (nn.ModuleList, type(None)))
    }


def _equal_share(adapter: Adapter, mixtures: Mapping[int, Any]) -> float:
    """Return how many experts have as many parameters as the memories."""
    memory = memory_parameters(adapter)
    if not memory:
        return MEMORY_SHARE * sum(len(mlp.gate.weight) for mlp in mixtures.values())
    return memory / expert_parameters(next(iter(mixtures.values())))


def expert_parameters(mlp: Any) -> int:
    """Return the parameters of one expert of a mixture whose experts are stacked."""
    return sum(int(p[0].numel()) for p in mlp.experts.parameters())


def memory_parameters(adapter: Adapter) -> int:
    """Return the parameters of all memories: tables, projections, norms, convolutions."""
    modules = [adapter.place("memory_out", layer).module for layer in adapter.memory_layers]
    return sum(p.numel() for module in modules for p in module.parameters())


def cut_parameters(adapter: Adapter, cut: Knockout, seed: int) -> int | None:
    """Return how many parameters a knock-out puts out of use; None where nobody compares them."""
    if cut.condition == "memory_zeroed" and cut.layers == adapter.memory_layers:
        return memory_parameters(adapter)
    if cut.condition == "experts_removed":
        removed, mixtures = removed_experts(adapter, seed), _mixtures(adapter)
        return sum(len(ids) * expert_parameters(mixtures[i]) for i, ids in removed.items())
    return None


@contextmanager
def experts_off(adapter: Adapter, removed: Mapping[int, Tensor]) -> Iterator[None]:
    """Rule experts out (layer -> their numbers, (K,)) as long as the block runs."""
    biases = {i: mlp.gate.e_score_correction_bias for i, mlp in _mixtures(adapter).items()}
    saved = {layer: biases[layer].clone() for layer in removed}
    try:
        for layer, experts in removed.items():
            biases[layer][experts.to(biases[layer].device)] = float("-inf")
        yield
    finally:
        for layer, bias in saved.items():
            biases[layer].copy_(bias)
