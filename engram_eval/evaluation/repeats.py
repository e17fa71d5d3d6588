"""Fragments that come back: what their second, third, ... occurrence in a context costs.

A *static* fragment is taken from the training text, where a memory of n-grams may hold it; the
*fresh* one beside it has the same words in another order, so only the context can help.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engram_eval.evaluation.long_context import in_turns, padder

FRAGMENT = 8
# For models whose training text is not at hand: what everybody has read.
KNOWN = (
    "to be or not to be that is the question",
    "we hold these truths to be self evident that all",
    "it was the best of times it was the worst",
    "the quick brown fox jumps over the lazy dog again",
    "i have a dream that one day this nation will",
    "once upon a time there was a little girl who",
    "all happy families are alike each unhappy family is unhappy",
    "it is a truth universally acknowledged that a single man",
    "in the beginning god created the heaven and the earth",
    "four score and seven years ago our fathers brought forth",
    "ask not what your country can do for you ask",
    "permission is hereby granted free of charge to any person",
)


def fragments(texts: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Draw distinct runs of ``FRAGMENT`` words from texts."""
    found: dict[str, None] = {}
    for index in rng.permutation(len(texts)):
        words = texts[index].split()
        if len(words) >= FRAGMENT:
            start = int(rng.integers(len(words) - FRAGMENT + 1))
            found[" ".join(words[start : start + FRAGMENT])] = None
        if len(found) == count:
            break
    return list(found)


def repeat_items(
    texts: Sequence[str],
    lengths: Sequence[int],
    occurrences: Sequence[int],
    count: int,
    size: Callable[[str], int],
) -> list[dict[str, Any]]:
    """Return items that score a fragment's n-th occurrence, static and fresh ones in pairs.

    Lengths and occurrences take turns.

    Args:
        texts: what the static fragments are taken from.
        lengths: tokens of the context up to the scored occurrence, it included.
        occurrences: n; 1 means that the context has not told it yet.
        count: pairs for each length and n that fit together.
        size: tokens of a text.
    """
    kinds = itertools.product(lengths, occurrences)
    pairs = in_turns(_pairs(texts, *kind, count, size) for kind in kinds)
    return [item for pair in pairs for item in pair]


def _pairs(
    texts: Sequence[str],
    length: int,
    occurrence: int,
    count: int,
    size: Callable[[str], int],
) -> list[list[dict[str, Any]]]:
    rng = np.random.default_rng([0, length, occurrence])
    made = []
    for number, static in enumerate(fragments(texts, count, rng)):
        fresh = " ".join(rng.permutation(static.split()))
        pair = []
        for kind, fragment in (("static", static), ("fresh", fresh)):
            # Both stand at the same places.
            places = np.random.default_rng([0, length, occurrence, number])
            pad = padder(length, size, places, size(f" {fragment}"))
            query = pad("Text:", [f"{fragment}."] * (occurrence - 1) or ["Listen."], "Now:")
            if query is not None:
                pair.append(_item(query, fragment, kind, (length, occurrence, number)))
        made.append(pair)
    return made


def _item(query: str, fragment: str, kind: str, place: tuple[int, int, int]) -> dict[str, Any]:
    length, occurrence, _ = place
    source = "/".join(map(str, place))
    return {
        "id": f"repeated/{source}/{kind}",
        "query": query,
        "choices": [f" {fragment}"],
        "gold": 0,
        "source": source,
        "slices": {
            "length": str(length),
            "occurrence": str(occurrence),
            "fragment": kind,
            "repeat": f"{kind} {occurrence}",
        },
    }
