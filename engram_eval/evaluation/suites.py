"""The benchmark suites by name: which tasks, with how many examples, and what they measure.

A task is written as lm-eval names it; ``task@5`` asks for five examples before each question
instead of the task's own number. Every suite has a twin, ``<suite>_bpb``, that measures the bits
per byte of the right answers to the same questions.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from engram_eval.errors import UserError

BPB = "_bpb"


@dataclass(frozen=True)
class Suite:
    """A named list of tasks.

    Attributes:
        about: what it asks, in a line.
        tasks: as lm-eval names them, with ``@shots`` where the suite fixes the examples.
    """

    about: str
    tasks: tuple[str, ...]


class TaskRequest(NamedTuple):
    """A task and the number of examples before each question; None is the task's own number."""

    name: str
    shots: int | None


SUITES: dict[str, Suite] = {
    "knowledge": Suite(
        "facts and exam questions from memory",
        ("mmlu", "arc_easy", "openbookqa", "triviaqa", "nq_open", "popqa", "truthfulqa_mc2"),
    ),
    "reasoning": Suite(
        "common sense and multi-step inference",
        ("arc_challenge", "hellaswag", "piqa", "winogrande", "commonsense_qa", "bbh"),
    ),
    "reading": Suite(
        "answers that a given passage holds",
        ("boolq", "race_middle", "race", "drop", "c3"),
    ),
    "code": Suite(
        "programs written and programs predicted; runs them in the sandbox",
        ("humaneval", "mbpp", "cruxeval_input", "cruxeval_output"),
    ),
    "math": Suite(
        "word problems and competition mathematics", ("gsm8k", "mgsm_direct", "minerva_math")
    ),
    "language": Suite(
        "grammar, the last word of a passage, classical Chinese",
        ("blimp", "lambada_openai", "ccpm"),
    ),
    "context": Suite(
        "what stood earlier in the same context",
        (
            "context_copy",
            "context_presence",
            "context_recall",
            "context_reuse",
            "long_recall",
            "needle_single",
            "needle_multikey",
            "needle_multivalue",
            "needle_multiquery",
            "variable_tracking",
            "repeated_fragments",
        ),
    ),
    "paper": Suite(
        "Table 1 of arXiv:2601.07372, with its numbers of examples",
        (
            "pile_loss",
            "mmlu@5",
            "mmlu_redux_generative@5",
            "mmlu_pro@5",
            "cmmlu@5",
            "ceval-valid@5",
            "agieval@0",
            "arc_easy@25",
            "arc_challenge@25",
            "triviaqa@5",
            "popqa@15",
            "ccpm@0",
            "bbh@3",
            "hellaswag@0",
            "piqa@0",
            "winogrande@5",
            "drop@1",
            "race_middle@5",
            "race@5",
            "c3@0",
            "humaneval@0",
            "mbpp@3",
            "cruxeval_input@0",
            "cruxeval_output@0",
            "gsm8k@8",
            "mgsm_direct@8",
            "minerva_math@4",
        ),
    ),
    "small": Suite(
        "what separates models below a billion parameters: easy choices, grammar, bits per byte",
        (
            "blimp",
            "arc_easy",
            "hellaswag",
            "piqa",
            "lambada_openai",
            "mmlu_bpb",
            "triviaqa_bpb",
            # Without examples: with them a question is longer than what such models have read.
            "gsm8k_bpb@0",
            "humaneval_bpb",
            "mbpp_bpb@0",
        ),
    ),
}

# Tasks of no suite but the paper's, and of which kind they are.
_FURTHER_DOMAINS = {
    "agieval": "reasoning",
    "ceval-valid": "knowledge",
    "cmmlu": "knowledge",
    "mmlu_pro": "knowledge",
    "mmlu_redux_generative": "knowledge",
    "pile_loss": "language",
}
_KINDS = ("knowledge", "reasoning", "reading", "code", "math", "language", "context")


def domains() -> dict[str, str]:
    """Return the domain of every task of a suite, without its number of examples."""
    return _FURTHER_DOMAINS | {
        parse_request(task).name: kind for kind in _KINDS for task in SUITES[kind].tasks
    }


def domain_of(task: str) -> str | None:
    """Return a task's domain (that of the question, for bits per byte), or None."""
    return domains().get(parse_request(task).name.removesuffix(BPB))


def parse_request(text: str) -> TaskRequest:
    """Split ``task@shots``.

    Raises:
        UserError: what follows the ``@`` is no number from 0 on.
    """
    name, sign, shots = text.partition("@")
    if sign and not shots.isdecimal():
        raise UserError(f"task {text!r}: expected a number of examples behind the @, as gsm8k@8")
    return TaskRequest(name, int(shots) if sign else None)


def expand(names: Iterable[str]) -> list[str]:
    """Replace suites by their tasks; other names stay. Each task comes once."""
    found: dict[str, None] = {}
    for name in names:
        found |= dict.fromkeys(suite_tasks(name) or (name,))
    return list(found)


def suite_tasks(name: str) -> tuple[str, ...] | None:
    """Return a suite's tasks, or its twin's in bits per byte; None for what is no suite."""
    if name in SUITES:
        return SUITES[name].tasks
    plain = name.removesuffix(BPB)
    if plain == name or plain not in SUITES:
        return None
    return tuple(dict.fromkeys(bpb_task(task) for task in SUITES[plain].tasks))


def bpb_task(task: str) -> str:
    """Return the task that measures a task's right answers in bits per byte.

    The tasks of this project measure both at once, so theirs is the task itself.
    """
    name, shots = parse_request(task)
    if name.endswith(BPB) or name in BOTH:
        return task
    return f"{name}{BPB}" if shots is None else f"{name}{BPB}@{shots}"


# Tasks whose results hold the bits per byte of the right answers already.
BOTH: frozenset[str] = frozenset({"pile_loss", *SUITES["context"].tasks})


def suite_table() -> Mapping[str, str]:
    """Return suite -> what it asks and its tasks, in a line."""
    return {name: f"{suite.about}: {', '.join(suite.tasks)}" for name, suite in SUITES.items()} | {
        f"{name}{BPB}": "the same in bits per byte of the right answers" for name in SUITES
    }
