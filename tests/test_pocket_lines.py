"""Templates, spans and splits by hash."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engram_eval.corpus.document import Answer
from engram_eval.corpus.lines import Line, answer_is_last, chance, document, fill, prompt

WORD = st.text("abc ", min_size=1, max_size=6)


def test_fill_and_prompt_on_a_hand_worked_case() -> None:
    line = fill("The capital of {s} is {o}.", "Paris", 3.0, s="France")
    assert line == Line("The capital of France is Paris.", (Answer(25, 30, 3.0, 0.0),))
    assert prompt("The capital of {s} is {o}.", s="France") == "The capital of France is"


def test_the_answer_may_stand_inside() -> None:
    line = fill("{s} joined {o} as staff.", "Nova Bank", 6.0, s="Ann Lee")
    assert line.text == "Ann Lee joined Nova Bank as staff."
    assert line.text[slice(*line.answers[0][:2])] == "Nova Bank"
    assert not answer_is_last("{s} joined {o} as staff.")
    assert answer_is_last("{s} is {o}.") and answer_is_last("{s} + 1 = {o}")


@given(st.lists(st.tuples(WORD, WORD), min_size=1, max_size=6), st.sampled_from([" ", "\n"]))
def test_joined_lines_keep_their_spans(parts: list[tuple[str, str]], separator: str) -> None:
    lines = [fill("<{s}: {o}>", answer, 1.0, s=subject) for subject, answer in parts]
    made = document(lines, separator, "facts", "x", "train")
    assert made.text == separator.join(line.text for line in lines)
    assert [made.text[a.start : a.end] for a in made.answers] == [answer for _, answer in parts]


def test_chance_is_uniform_and_fixed() -> None:
    draws = np.array([chance("x", i) for i in range(4000)])
    assert abs(draws.mean() - 0.5) < 0.02
    assert abs((draws < 0.08).mean() - 0.08) < 0.015
    assert chance("a", 1) == chance("a", 1) != chance("a", 2)
    assert chance("ab", "c") != chance("a", "bc")
