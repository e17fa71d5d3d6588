"""Problems: right answers, entropies by hand, no validation problem in training text."""

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_eval.config import CorpusConfig, Mix
from engram_eval.corpus.arithmetic import (
    KINDS,
    Problem,
    answer,
    answer_entropy,
    arithmetic_documents,
    get_kind,
    held_out,
    problems,
    question,
    render,
)
from engram_eval.corpus.document import Document
from engram_eval.errors import UserError

CONFIG = CorpusConfig(train_bytes=150_000, mix=Mix(math=1.0, code=0, docs=0, facts=0, recall=0))


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(arithmetic_documents(CONFIG))


def solve(line: str) -> int | None:
    """Solve a line without the generator: read the text as a person would."""
    numbers = [int(n) for n in re.findall(r"\d+", line)]
    stated, asked = numbers[-1], numbers[:-1]
    if " x in " in line or "many x" in line:
        return line.replace("count x", "").replace("many x", "").count("x") - stated
    if "larger" in line or "max" in line:
        return max(asked) - stated
    if "after" in line or "next" in line:
        return asked[0] + 1 - stated
    if len(asked) == 3:
        return asked[2] + (asked[2] - asked[1]) - stated
    a, b = asked
    if " - " in line or "minus" in line:
        return a - b - stated
    if "*" in line or "times" in line:
        return a * b - stated
    return a + b - stated


def test_answers_are_right(documents: list[Document]) -> None:
    for made in documents:
        lines = made.text.split("\n")
        assert 8 <= len(lines) <= 16
        assert [solve(line) for line in lines] == [0] * len(lines)


@pytest.mark.parametrize(
    ("problem", "index", "text"),
    [
        (Problem("add", (37, 45)), 0, "37 + 45 = 82"),
        (Problem("add", (13, 25)), 1, "13 plus 25 is 38"),
        (Problem("subtract", (40, 17)), 0, "40 - 17 = 23"),
        (Problem("multiply", (37, 6)), 1, "37 times 6 is 222"),
        (Problem("compare", (19, 31)), 0, "the larger of 19 and 31 is 31"),
        (Problem("next", (199,)), 0, "after 199 comes 200"),
        (Problem("sequence", (12, 15, 18)), 0, "12, 15, 18, 21"),
        (Problem("count", (1, 0, 1)), 0, "count x in x y x: 2"),
    ],
)
def test_rendering_on_hand_worked_cases(problem: Problem, index: int, text: str) -> None:
    line = render(problem, index)
    assert line.text == text
    (span,) = line.answers
    assert text[span.start : span.end] == answer(problem)
    assert question(problem, index) + " " + answer(problem) == text
    assert (span.absent_bits, span.perfect_bits) == (answer_entropy(problem.kind), 0)


def test_entropies_on_hand_worked_cases() -> None:
    # Every number from 101 to 999 follows one number.
    assert answer_entropy("next") == pytest.approx(math.log2(899))
    # 10 + m is the larger one of 2 m ordered pairs out of 90 * 89.
    shares = [2 * m / 8010 for m in range(1, 90)]
    assert answer_entropy("compare") == pytest.approx(-sum(p * math.log2(p) for p in shares))
    # Sums of two out of 40 numbers in a row: 1, 2, ..., 40, ..., 2, 1 ways of 1,600.
    shares = [(40 - abs(39 - total)) / 1600 for total in range(79)]
    assert answer_entropy("add") == pytest.approx(-sum(p * math.log2(p) for p in shares))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "count"])
def test_numbers_of_a_kind_have_one_width(kind: str) -> None:
    everything = [Problem(kind, operands) for operands in get_kind(kind).operands()]
    widths = {tuple(map(len, [answer(p), *map(str, p.operands)])) for p in everything}
    assert len(widths) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_problems_are_listed_once_and_split_by_the_fraction(kind: str) -> None:
    train, val = (problems(kind, split, 0, 0.25) for split in ("train", "val"))
    assert len(set(train) | set(val)) == len(train) + len(val)
    assert len(train) + len(val) == sum(1 for _ in get_kind(kind).operands())
    assert 0.1 < len(val) / (len(train) + len(val)) < 0.4
    assert problems(kind, "val", 0, 0.0) == ()
    assert problems(kind, "train", 0, 1.0) == ()


@pytest.mark.parametrize("kind", KINDS)
def test_small_kinds_also_have_validation_problems_by_default(kind: str) -> None:
    config = CorpusConfig()
    assert len(problems(kind, "val", config.seed, config.val_fraction)) >= 8


@given(st.integers(10, 49), st.integers(10, 49), st.integers(0, 4))
def test_swapped_operands_are_the_same_problem(a: int, b: int, seed: int) -> None:
    for kind in ("add", "compare"):
        swapped = [held_out(Problem(kind, x), seed, 0.3) for x in ((a, b), (b, a))]
        assert swapped[0] == swapped[1]
    assert KINDS["subtract"].commutes is False


def test_no_validation_problem_stands_in_training_text(documents: list[Document]) -> None:
    lines: dict[str, set[str]] = {"train": set(), "val": set()}
    for made in documents:
        lines[str(made.split)] |= set(made.text.split("\n"))
    kept = {
        render(problem, index).text
        for kind in KINDS
        for problem in problems(kind, "val", CONFIG.seed, CONFIG.val_fraction)
        for index in range(len(KINDS[kind].formats))
    }
    assert lines["val"] and lines["val"] <= kept
    assert not lines["train"] & kept


SIGNS = ("[+]|plus", "-|minus", "[*]|times", "larger|max", "after|next", "count|many")


def asked(line: str) -> tuple[object, ...]:
    """What a line asks for, in whatever wording and order."""
    kind = [bool(re.search(sign, line)) for sign in SIGNS]
    letters = re.search("[xy]( [xy]){2,}", line)
    if letters:
        return (*kind, letters.group())
    *operands, _ = map(int, re.findall(r"\d+", line))
    return (*kind, *(sorted(operands) if kind[0] or kind[3] else operands))


def test_no_validation_sheet_asks_a_problem_twice() -> None:
    sheets = list(arithmetic_documents(replace(CONFIG, train_bytes=1_000_000)))
    again = {"train": 0, "val": 0}
    for made in sheets:
        lines = made.text.split("\n")
        again[str(made.split)] += len(lines) - len(set(map(asked, lines)))
    assert again["val"] == 0 < again["train"]


def test_a_wording_belongs_to_one_problem() -> None:
    texts: dict[str, Problem] = {}
    for kind in KINDS:
        for problem in map(Problem, [kind] * 10**6, get_kind(kind).operands()):
            for index in range(len(KINDS[kind].formats)):
                assert texts.setdefault(question(problem, index), problem) == problem


def test_all_kinds_and_formats_are_trained(documents: list[Document]) -> None:
    train = "\n".join(made.text for made in documents if made.split == "train")
    for kind in KINDS.values():
        for template in kind.formats:
            pattern = re.sub(r"\\\{\w+\\\}", r"[\\dxy ]+", re.escape(template))
            assert re.search(f"^{pattern}$", train, re.MULTILINE), template


def test_spans_and_sizes(documents: list[Document]) -> None:
    for made in documents:
        ends = [made.text[a.start : a.end] for a in made.answers]
        assert ends == [re.split(r"\D", line)[-1] for line in made.text.split("\n")]
    size = sum(len(d.text) for d in documents if d.split == "train")
    assert 150_000 <= size < 151_000
    val = sum(len(d.text) for d in documents if d.split == "val")
    assert val == pytest.approx(150_000 * 0.08 / 0.92, rel=0.05)


def test_the_seed_moves_problems_and_split(documents: list[Document]) -> None:
    other = list(arithmetic_documents(replace(CONFIG, seed=1)))
    assert other[0] != documents[0]
    assert problems("add", "val", 0, 0.1) != problems("add", "val", 1, 0.1)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'subtract'"):
        get_kind("substract")
