"""Whether contexts can be shared on a model: what it takes, what it keeps, and a trial."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers.cache_utils import DynamicCache, DynamicLayer

NEEDED = ("attention_mask", "past_key_values", "use_cache")
HELPFUL = ("position_ids", "logits_to_keep")

Encoded = tuple[tuple[str, str] | None, list[int], list[int]]
Scorer = Callable[[list[Encoded]], list[tuple[float, bool]]]


def accepted_arguments(forward: Callable[..., Any]) -> frozenset[str]:
    """Return the names that a model's ``forward`` takes.

    A wrapper that passes everything on is taken to accept all; the trial shows whether it does.
    """
    parameters = inspect.signature(forward).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if open_ended and not parameters.keys() >= set(NEEDED):
        return frozenset((*NEEDED, *HELPFUL))
    return frozenset(parameters)


def obstacle(lm: HFLM, accepts: frozenset[str]) -> str | None:
    """Return why a model's contexts cannot be shared, as far as its configuration tells.

    Args:
        lm: has the model.
        accepts: names of the arguments that the model takes.
    """
    if lm.backend != "causal":
        return f"its back end is {lm.backend}, not a causal decoder"
    if lm.world_size > 1:
        return f"it runs in {lm.world_size} processes"
    absent = [name for name in NEEDED if name not in accepts]
    if absent:
        return f"its forward takes no {', '.join(absent)}"
    layers = {type(layer) for layer in DynamicCache(config=lm.config).layers} - {DynamicLayer}
    if layers:
        return f"its cache has {', '.join(sorted(kind.__name__ for kind in layers))}"
    return None


def trial_requests(vocab_size: int) -> list[Encoded]:
    """Return requests that need every step: a shared prefix, padding, branches of two lengths."""
    ids = [(13 + 7919 * i) % vocab_size for i in range(40)]
    contexts = [ids[:14], ids[:8] + ids[20:23], ids[:8] + ids[30:36]]
    continuations = [ids[16:17], ids[17:20], ids[24:26]]
    return [(None, context, option) for context in contexts for option in continuations]


def disagreement(fast: Scorer, slow: Scorer, vocab_size: int, dtype: torch.dtype) -> str | None:
    """Return by how much two scorers differ on the trial, if it is more than rounding.

    Args:
        fast: the one that is tried.
        slow: the one to be equalled.
        vocab_size: of the model.
        dtype: that the model computes in.
    """
    requests = trial_requests(vocab_size)
    expected = [nats for nats, _ in slow(requests)]
    try:
        found = [nats for nats, _ in fast(requests)]
    except Exception as error:  # foreign models raise anything, and HFLM may still run them
        return f"with a cache its forward raises {type(error).__name__}: {error}"
    return _difference(found, expected, max(1e-4, 4 * torch.finfo(dtype).eps))


def _difference(found: Sequence[float], expected: Sequence[float], tolerance: float) -> str | None:
    largest = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    allowed = tolerance * max(1.0, *map(abs, expected))
    # Written so that a difference which is not a number counts as one.
    if largest <= allowed:
        return None
    return f"with a cache its log-likelihoods differ by {largest:.2g} nats"
