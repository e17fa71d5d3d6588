"""Questions about a context of any length: associative recall, needles, variables, repetitions.

The needles follow RULER (arXiv:2404.06654, appendix B): the same sentences, keys of two words,
values of seven digits, the haystack of repeated noise. lm-eval's own generators of them need the
network (essays, word lists, NLTK's data) and start at 4,096 tokens. Answers are scored by
likelihood against three wrong ones that stand in the same context (a single needle's stand
nowhere); of several values the last one is asked for, the others being told. Recall follows
arXiv:2312.04927.

Every maker draws one item: ``maker(rng, load, pad)``, where ``pad(before, parts, after)`` spreads
the parts over as much noise as the length allows. ``load`` is how much there is to keep apart.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_SIZES = "big dark dry fast kind late long mild new old pale rare red shy slow soft tall thin warm"
_THINGS = "ant bag bee bell boat book car cat cup dog door fox hat hen key lamp map nail owl pen"
KEYS = tuple(f"{size} {thing}" for size in _SIZES.split() for thing in _THINGS.split())
WORDS = tuple(f"{_THINGS} {_SIZES}".split())
WRONG = 3

T = TypeVar("T")
Pad = Callable[[str, Sequence[str], str], str | None]


class Asked(NamedTuple):
    """A question: what is read, the right answer, wrong ones."""

    query: str
    gold: str
    wrong: tuple[str, ...]


def needle_single(rng: np.random.Generator, load: int, pad: Pad) -> Asked | None:
    """One number in all the noise, whatever the load; wrong ones stand nowhere."""
    keys, values = _pairs(rng, WRONG + 1)
    query = pad(INTRO, _needles(keys[:1], values[:1]), _question(keys[:1]))
    return _asked(query, values[0], values[1:], rng)


def needle_multikey(rng: np.random.Generator, load: int, pad: Pad) -> Asked | None:
    """One number for each of ``load`` keys (at least 4); one is asked for."""
    keys, values = _pairs(rng, max(load, WRONG + 1))
    query = pad(INTRO, _needles(keys, values), _question([keys[0]]))
    return _asked(query, values[0], values[1:], rng)


def needle_multivalue(rng: np.random.Generator, load: int, pad: Pad) -> Asked | None:
    """``load`` numbers for one key; all but the last are told, which is asked for."""
    keys, values = _pairs(rng, load + WRONG)
    keys = [keys[0]] * load + keys[load:]
    told = ", ".join(values[: load - 1])
    after = f"{_question([keys[0]])} {told}{',' if load > 2 else ''} and" if load > 1 else None
    query = pad(INTRO, _needles(keys, values), after or _question([keys[0]]))
    return _asked(query, values[load - 1], values[load:], rng)


def needle_multiquery(rng: np.random.Generator, load: int, pad: Pad) -> Asked | None:
    """``load`` keys are asked for at once; the last answer is scored."""
    keys, values = _pairs(rng, load + WRONG)
    after = "".join([f"{_question(keys[:load])}", *(f" {value}," for value in values[: load - 1])])
    query = pad(INTRO, _needles(keys, values), after)
    return _asked(query, values[load - 1], values[load:], rng)


def variable_tracking(rng: np.random.Generator, load: int, pad: Pad) -> Asked | None:
    """Which variable holds a number, ``load`` assignments away; the wrong ones hold others."""
    _, values = _pairs(rng, WRONG + 1)
    names = _names(rng, (WRONG + 1) * (load + 1))
    chains = [names[i * (load + 1) : (i + 1) * (load + 1)] for i in range(WRONG + 1)]
    steps = [
        [f"VAR {chain[0]} = {value}."]
        + [f"VAR {b} = VAR {a}." for a, b in itertools.pairwise(chain)]
        for chain, value in zip(chains, values, strict=True)
    ]
    # Chains take turns in random order; the steps of each one stay in theirs.
    order = rng.permutation(np.repeat(np.arange(len(steps)), load + 1))
    parts = [steps[chain].pop(0) for chain in order]
    told = ", ".join(chains[0][:load])
    after = f"Question: Find all variables that are assigned the value {values[0]}. Answer: {told}"
    query = pad("Track the variable assignments in the text.", parts, after + ",")
    return _asked(query, chains[0][load], [chain[load] for chain in chains[1:]], rng)


def recall(rng: np.random.Generator, load: int, pad: Pad) -> Asked | None:
    """``load`` pairs, asked for one after the other; the last answer is scored.

    Those of the wrong values are not asked for: were all others answered before, the right one
    would be that which is left.
    """
    load = max(load, WRONG + 1)
    keys = [str(key) for key in rng.choice(KEYS, load, replace=False)]
    values = [str(value) for value in rng.permutation(WORDS)[:load]]
    if len(values) < load:
        values += [f"{a} {b}" for a, b in zip(values, rng.permutation(WORDS), strict=False)]
        values = values[:load]
    order = rng.permutation(load)
    *before, last = (int(i) for i in order[:-WRONG])
    asked = ", ".join([*(f"{keys[i]} {values[i]}" for i in before), keys[last]])
    parts = [f"{key} {value}." for key, value in zip(keys, values, strict=True)]
    query = pad("Pairs:", parts, f"Asked: {asked}")
    return _asked(query, values[last], [values[i] for i in order[-WRONG:]], rng)


# What has nothing to keep apart.
ALONE = ("needle_single",)
# What asks for as many keys at once as its load says; a load of 1 is no test of several.
TOGETHER = ("needle_multiquery",)
INTRO = "Some special magic numbers are hidden within the following text. Make sure to memorize it."

MAKERS: dict[str, Callable[[np.random.Generator, int, Pad], Asked | None]] = {
    "long_recall": recall,
    "needle_multikey": needle_multikey,
    "needle_multiquery": needle_multiquery,
    "needle_multivalue": needle_multivalue,
    "needle_single": needle_single,
    "variable_tracking": variable_tracking,
}


def _pairs(rng: np.random.Generator, count: int) -> tuple[list[str], list[str]]:
    keys = [str(key) for key in rng.choice(KEYS, count, replace=False)]
    values = 1_000_000 + rng.choice(9_000_000, count, replace=False)
    return keys, [str(value) for value in values]


def _names(rng: np.random.Generator, count: int) -> list[str]:
    """Draw distinct names of variables: five capital letters, as RULER has them."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(chr(65 + letter) for letter in rng.integers(26, size=5))] = None
    return list(found)


def _needles(keys: Sequence[str], values: Sequence[str]) -> list[str]:
    return [
        f"One of the special magic numbers for {key} is: {value}."
        for key, value in zip(keys, values, strict=True)
    ]


def _question(keys: Sequence[str]) -> str:
    named = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
    return (
        f"What are all the special magic numbers for {named} mentioned in the provided text? "
        f"The special magic numbers for {named} mentioned in the provided text are"
    )


def _asked(
    query: str | None, gold: str, wrong: Sequence[str], rng: np.random.Generator
) -> Asked | None:
    """Make a question with ``WRONG`` of the wrong answers; None where the context has no room."""
    if query is None:
        return None
    chosen = rng.permutation(np.array(sorted(set(wrong))))[:WRONG]
    return Asked(query, f" {gold}", tuple(f" {text}" for text in chosen))


def padder(
    length: int, size: Callable[[str], int], rng: np.random.Generator, room: int = 16
) -> Pad:
    """Return the function that spreads parts over noise, up to a length.

    Args:
        length: tokens of the whole prompt, its answer included.
        size: tokens of a text.
        rng: draws where the parts stand; their order is kept.
        room: tokens left for the answer.
    """
    sentences = [f"{sentence}." for sentence in NOISE.removesuffix(".").split(". ")]
    sentence = max(1.0, size(NOISE) / len(sentences))

    def pad(before: str, parts: Sequence[str], after: str) -> str | None:
        def write(noise: int) -> str:
            filler = [sentences[i % len(sentences)] for i in range(noise)]
            cuts = np.sort(places[: len(parts)] * (noise + 1)).astype(int).tolist()
            told: list[str] = []
            for start, end, part in zip([0, *cuts[:-1]], cuts, parts, strict=True):
                told += [*filler[start:end], part]
            return " ".join([before, *told, *filler[cuts[-1] :], after])

        places = rng.random(len(parts))
        bare = size(write(0)) + room
        if bare > length:
            return None
        guess = int((length - bare) / sentence)
        return write(_largest(lambda noise: size(write(noise)) + room <= length, guess, length))

    return pad


def _largest(fits: Callable[[int], bool], guess: int, most: int) -> int:
    """Return the largest number up to ``most`` that fits; 0 does, and so does what is smaller.

    Looks around the guess in strides that double: each look tokenises a text.
    """
    low, high, stride = 0, most + 1, 1
    while high - low > 1:
        guess = min(max(guess, low + 1), high - 1)
        if fits(guess):
            low, guess = guess, guess + stride
        else:
            high, guess = guess, guess - stride
        stride *= 2
    return low


def in_turns(kinds: Iterable[Sequence[T]]) -> list[T]:
    """Return the first of every kind, then the second of each that has one, and so on.

    So that the first items of a task are of every kind, however few are asked for.
    """
    missing = object()
    turns = itertools.zip_longest(*kinds, fillvalue=missing)
    return [item for turn in turns for item in turn if item is not missing]  # type: ignore[misc]


def long_items(
    task: str,
    lengths: Sequence[int],
    loads: Sequence[int],
    count: int,
    size: Callable[[str], int],
) -> list[dict[str, Any]]:
    """Return a task's items, ``count`` for each length and load that fit together, in turns.

    Args:
        task: a key of ``MAKERS``.
        lengths: in tokens, the answer included.
        loads: how much there is to keep apart.
        count: items for each.
        size: tokens of a text.
    """
    kinds = itertools.product(lengths, (1,) if task in ALONE else loads)
    return in_turns(_of_kind(task, *kind, count, size) for kind in kinds)


def _of_kind(
    task: str, length: int, load: int, count: int, size: Callable[[str], int]
) -> list[dict[str, Any]]:
    # Each length and load has a stream of its own.
    rng = np.random.default_rng([0, length, load, *task.encode()])
    labels = {"length": str(length), "load": str(load)}
    if task in TOGETHER:
        labels["asked"] = "several" if load > 1 else "one"
    asked = [MAKERS[task](rng, load, padder(length, size, rng)) for _ in range(count)]
    return [
        _item(f"{task}/{length}/{load}/{number}", found, labels, number)
        for number, found in enumerate(asked)
        if found is not None
    ]


def _item(ident: str, asked: Asked, labels: dict[str, str], number: int) -> dict[str, Any]:
    position = number % (len(asked.wrong) + 1)
    choices = [*asked.wrong[:position], asked.gold, *asked.wrong[position:]]
    return {
        "id": ident,
        "query": asked.query,
        "choices": choices,
        "gold": position,
        "slices": labels,
    }
