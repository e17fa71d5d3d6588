"""Multiple-choice items: how the generators of all tasks put them together.

A generator drafts more questions than it needs; ``finish`` drops what would not be fair, draws
the wanted number and balances where the right choice stands.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from engram_eval.errors import UserError


class Draft(NamedTuple):
    """A question before its choices are ordered.

    Attributes:
        query: text that is read; ends without a blank.
        gold: the right choice, with its leading space.
        distractors: wrong choices, with theirs.
        slices: labels by which scores are also reported.
        source: the text that several drafts may come from; these are no independent evidence.
    """

    query: str
    gold: str
    distractors: tuple[str, ...]
    slices: Mapping[str, str]
    source: str = ""


def task_rng(seed: int, task: str) -> np.random.Generator:
    """Return a task's own generator, which no other task's draws can move."""
    return np.random.default_rng([seed, *task.encode()])


def fair(draft: Draft) -> bool:
    """Tell whether a draft can be scored: no blank at the query's end, no choice inside another.

    A choice that begins like another is at least as likely as it, whatever the model knows.
    """
    choices = sorted((draft.gold, *draft.distractors))
    nested = any(b.startswith(a) for a, b in itertools.pairwise(choices))
    return bool(draft.query) and draft.query == draft.query.rstrip() and not nested


def at_word_end(query: str, choices: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """Move what follows the query's last letter or digit to the front of all choices.

    Tokenizers join punctuation with what follows it (``):`` and the line break, ``(`` and a
    name), so only there is it certain that a token ends with the query.
    """
    end = next((i for i in range(len(query), 0, -1) if query[i - 1].isalnum()), 0)
    return query[:end], tuple(query[end:] + choice for choice in choices)


def near_length(
    gold: str, pool: Sequence[str], rng: np.random.Generator, n: int = 3, candidates: int = 12
) -> tuple[str, ...]:
    """Draw distractors about as long as the gold answer; longer texts are less likely anyway.

    Args:
        gold: the right answer.
        pool: wrong ones; repeats make a text likelier to be drawn.
        rng: draws ``candidates`` of them, of which those nearest in length are kept.
        n: how many are wanted.
        candidates: more of them match lengths better and repeat the same texts more often.

    Returns:
        ``n`` texts, none of them within the beginning of another or of ``gold``; empty if the
        pool has too few.
    """
    drawn = dict.fromkeys(pool[index] for index in rng.permutation(len(pool)))
    kept: list[str] = []
    for text in drawn:
        if len(kept) < candidates and not any(_nested(text, k) for k in (gold, *kept)):
            kept.append(text)
    kept.sort(key=lambda text: abs(len(text) - len(gold)))
    return tuple(kept[:n]) if len(kept) >= n else ()


def _nested(a: str, b: str) -> bool:
    return a.startswith(b) or b.startswith(a)


def spread(drafts: Sequence[Draft], labels: Sequence[str], rng: np.random.Generator) -> list[Draft]:
    """Shuffle drafts so that the combinations of some slices take turns, rare ones first."""
    groups: dict[tuple[str, ...], list[Draft]] = {}
    for index in rng.permutation(len(drafts)):
        key = tuple(drafts[index].slices[label] for label in labels)
        groups.setdefault(key, []).append(drafts[index])
    turns = [
        (turn, len(group), name, draft)
        for name, group in groups.items()
        for turn, draft in enumerate(group)
    ]
    return [draft for *_, draft in sorted(turns, key=lambda entry: entry[:3])]


def finish(
    task: str, drafts: Sequence[Draft], rng: np.random.Generator, limit: int
) -> list[dict[str, Any]]:
    """Turn the first ``limit`` fair drafts, each question once, into items in random order.

    Every position holds the right choice equally often, give or take one.

    Args:
        task: name of the task, the beginning of each id.
        drafts: in order of preference.
        rng: orders the items and their choices.
        limit: most items.

    Raises:
        UserError: no draft is left.
    """
    distinct = {(draft.query, draft.gold): draft for draft in reversed(drafts) if fair(draft)}
    kept = list(reversed(distinct.values()))[:limit]
    if not kept:
        raise UserError(f"task {task!r}: the corpus holds nothing back to ask for")
    kept = [kept[index] for index in rng.permutation(len(kept))]
    n_choices = 1 + len(kept[0].distractors)
    positions = rng.permutation(np.arange(len(kept)) % n_choices)
    return [
        _item(f"{task}/{number}", draft, int(position), rng)
        for number, (draft, position) in enumerate(zip(kept, positions, strict=True))
    ]


def _item(ident: str, draft: Draft, gold: int, rng: np.random.Generator) -> dict[str, Any]:
    wrong = [draft.distractors[index] for index in rng.permutation(len(draft.distractors))]
    return {
        "id": ident,
        "query": draft.query,
        "choices": [*wrong[:gold], draft.gold, *wrong[gold:]],
        "gold": gold,
        "slices": dict(draft.slices),
        **({"source": draft.source} if draft.source else {}),
    }
