"""Items are fair: nothing but the skill tells the right choice from the others."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_eval.errors import UserError
from engram_eval.evaluation.choices import (
    Draft,
    at_word_end,
    fair,
    finish,
    near_length,
    spread,
    task_rng,
)


def draft(query: str, gold: str = " a", wrong: tuple[str, ...] = (" b", " c", " d")) -> Draft:
    return Draft(query, gold, wrong, {"kind": query[:1]})


def test_unfair_drafts_are_recognised() -> None:
    assert fair(draft("q"))
    assert not fair(draft("q "))
    assert not fair(draft(""))
    assert not fair(draft("q", " a", (" ab", " c", " d")))
    assert not fair(draft("q", " ab", (" a", " c", " d")))
    assert not fair(draft("q", " a", (" b", " b", " d")))


@pytest.mark.parametrize(
    ("query", "choice", "expected"),
    [
        ("f(x):", "\n  y", ("f(x", "):\n  y")),
        ("os", ".path", ("os", ".path")),
        ("a = self._", "b", ("a = self", "._b")),
        ("((", "x", ("", "((x")),
    ],
)
def test_queries_end_with_a_word(query: str, choice: str, expected: tuple[str, str]) -> None:
    cut, (moved,) = at_word_end(query, [choice])
    assert (cut, moved) == expected
    assert cut + moved == query + choice


def test_distractors_are_the_nearest_in_length_and_never_nested() -> None:
    pool = ["ab", "abcdef", "xyz", "xyzw", "uvwst", "pqrstuvwxyz"]
    found = near_length("abc", pool, np.random.default_rng(0), n=2)
    assert "ab" not in found and "abcdef" not in found
    assert len(found) == 2 and "pqrstuvwxyz" not in found
    assert near_length("abc", ["x", "abcd"], np.random.default_rng(0)) == ()


def test_repeats_in_the_pool_are_drawn_more_often() -> None:
    pool = ["often"] * 60 + [f"rare{i:02d}" for i in range(60)]
    rng = np.random.default_rng(0)
    drawn = Counter(
        text for _ in range(60) for text in near_length("gold", pool, rng, n=1, candidates=1)
    )
    assert 20 <= drawn["often"] <= 40


def test_slices_take_turns() -> None:
    drafts = [draft(f"a{i}") for i in range(50)] + [draft(f"b{i}") for i in range(3)]
    order = [d.slices["kind"] for d in spread(drafts, ("kind",), np.random.default_rng(0))]
    assert Counter(order[:6]) == {"a": 3, "b": 3}
    assert len(order) == 53


@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 3))
def test_gold_positions_are_balanced_and_items_unique(n: int, limit: int, seed: int) -> None:
    drafts = [draft(f"q{i}") for i in range(n)] * 2
    items = finish("t", drafts, np.random.default_rng(seed), limit)
    assert len(items) == min(n, limit)
    positions = Counter(item["gold"] for item in items)
    assert max(positions.values()) - min(positions.get(p, 0) for p in range(4)) <= 1
    assert len({item["query"] for item in items}) == len(items)
    assert all(item["choices"][item["gold"]] == " a" for item in items)
    assert all(sorted(item["choices"]) == [" a", " b", " c", " d"] for item in items)
    assert [item["id"] for item in items] == [f"t/{i}" for i in range(len(items))]


def test_the_first_drafts_are_preferred() -> None:
    items = finish("t", [draft(f"q{i}") for i in range(9)], np.random.default_rng(0), 4)
    assert {item["query"] for item in items} == {"q0", "q1", "q2", "q3"}


def test_nothing_to_ask_is_an_error() -> None:
    with pytest.raises(UserError, match="'t'"):
        finish("t", [draft("ends with a blank ")], np.random.default_rng(0), 4)


def test_tasks_draw_from_streams_of_their_own() -> None:
    draws = {
        (seed, task): task_rng(seed, task).integers(1 << 60) for seed in (0, 1) for task in "ab"
    }
    assert len(set(draws.values())) == 4
    assert task_rng(0, "a").integers(1 << 60) == draws[0, "a"]
