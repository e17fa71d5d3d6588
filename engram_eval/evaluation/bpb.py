"""Bits per byte of the right answers: a task's own questions, its answers as the measure.

A ``*_bpb`` task is a YAML whose metadata name the task that it is made from::

    metadata:
      base: triviaqa
      answer: "{{answer.value}}"      # where the task's own target is not the answer's text

Prompts, examples and delimiters are those of the base; with ``prompt`` the question is put in
another form, with ``before`` something stands between prompt and answer that is not measured, with
``delimiter`` what joins them is another than the base's.
Templates are Jinja over the base's document.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from lm_eval.utils import apply_template

from engram_eval.errors import UserError
from engram_eval.evaluation.long_context import in_turns


class Gold(NamedTuple):
    """What is measured: ``answer`` behind ``prompt``."""

    prompt: str
    answer: str


class Wording(NamedTuple):
    """How prompt and answer are made where the base's own are not used; "" means its own."""

    prompt: str = ""
    before: str = ""
    answer: str = ""
    delimiter: str | None = None


def load_gold(
    base: str,
    shots: int | None = None,
    prompt: str = "",
    before: str = "",
    answer: str = "",
    delimiter: str | None = None,
    mirror: str | None = None,
    include_path: Sequence[str] = (),
    **_: object,
) -> dict[str, Dataset]:
    """Give lm-eval the right answers of a task as its ``test`` split; metadata are the arguments.

    Prompts are made when they are first read, so that a limit also limits that work. The tasks of
    a group take turns, so that a limit takes some of each.

    Args:
        base: lm-eval's task or group.
        shots: examples before each question; None is the base's own number.
        prompt: template of another wording of the question.
        before: template of what stands between prompt and answer.
        answer: template of the answer.
        delimiter: between prompt and answer.
        mirror: folder to read the base's data from.
        include_path: folders of the user's own tasks.
    """
    tasks = _base_tasks(base, shots, mirror, tuple(include_path))
    wording = Wording(prompt, before, answer, delimiter)
    rows = in_turns(
        [{"subtask": name, "index": i} for i in range(len(docs))]
        for name, (_, docs) in tasks.items()
    )

    @functools.cache
    def gold(name: str, index: int) -> Gold:
        return gold_of(*tasks[name], index, wording)

    def fill(batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        pairs = list(zip(batch["subtask"], batch["index"], strict=True))
        golds = [gold(name, index) for name, index in pairs]
        return {
            "id": [f"{name}-{index}" for name, index in pairs],
            "prompt": [found.prompt for found in golds],
            "answer": [found.answer for found in golds],
            "slices": [{"subtask": name} if len(tasks) > 1 else None for name, _ in pairs],
        }

    return {"test": Dataset.from_list(rows).with_transform(fill)}


def _base_tasks(
    base: str, shots: int | None, mirror: str | None, include: tuple[str, ...]
) -> dict[str, tuple[Any, Any]]:
    """Load the base's tasks by name, each with its documents."""
    from engram_eval.evaluation.loading import documents, load_one
    from engram_eval.evaluation.mirror import open_mirror
    from engram_eval.evaluation.suites import TaskRequest
    from engram_eval.evaluation.task_manager import Sources, SuiteTaskManager

    opened = open_mirror(Path(mirror)) if mirror else None
    manager = SuiteTaskManager([base], Sources(mirror=opened, run_code=False, include=include))
    tasks = load_one(manager, TaskRequest(base, shots))["tasks"]
    return {name: (tasks[name], documents(tasks[name])) for name in sorted(tasks)}


def gold_of(task: Any, docs: Any, index: int, wording: Wording) -> Gold:
    """Return prompt and right answer of one of the documents of an lm-eval task.

    Raises:
        UserError: the task has no text to be right about, or its target is no choice.
    """
    doc = docs[index]
    delimiter = task.config.target_delimiter if wording.delimiter is None else wording.delimiter
    if wording.prompt:
        context: Any = apply_template(wording.prompt, doc)
    else:
        shots = task.config.num_fewshot or 0
        context = task.fewshot_context(doc, shots, gen_prefix=task.doc_to_prefix(doc))
    if wording.answer:
        answer = f"{delimiter}{apply_template(wording.answer, doc)}"
    else:
        context, answer = _own_gold(task, doc, context)
    if wording.before:
        context += f"{delimiter}{apply_template(wording.before, doc)}"
        answer = answer.removeprefix(delimiter)
    if not answer.strip():
        raise UserError(f"task {task.config.task!r}: the right answer of item {index} is empty")
    return Gold(context, answer)


def _own_gold(task: Any, doc: Any, context: Any) -> tuple[str, str]:
    """Return (context, continuation) of the right answer as the task itself would ask for it."""
    if task.OUTPUT_TYPE == "generate_until":
        target = task.doc_to_target(doc)
        first = target[0] if isinstance(target, list) else target
        return context, f"{task.config.target_delimiter}{first}"
    requests = task.construct_requests(doc, context, metadata=(task.config.task, 0, 1))
    if task.OUTPUT_TYPE == "loglikelihood":
        return tuple(requests.args[:2])
    if task.OUTPUT_TYPE == "multiple_choice":
        return tuple(requests[_right_choice(task, doc)].args[:2])
    raise UserError(f"task {task.config.task!r} ({task.OUTPUT_TYPE}) has no right answers")


def _right_choice(task: Any, doc: Any) -> int:
    target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    first = target[0] if isinstance(target, list) else target
    choices = task.doc_to_choice(doc)
    if isinstance(first, str):
        return int(choices.index(first)) if first in choices else int(first)
    return int(first)


def prompt_of(doc: Mapping[str, Any]) -> str:
    """Return what stands before the answer; ``doc_to_text`` of the YAML."""
    return str(doc["prompt"])


def answer_of(doc: Mapping[str, Any]) -> str:
    """Return the right answer, its delimiter included; ``doc_to_target`` of the YAML."""
    return str(doc["answer"])


def process_results(
    doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]
) -> dict[str, tuple[float, int]]:
    """Return (log-likelihood in nats, UTF-8 bytes) of the answer.

    lm-eval's aggregation ``bits_per_byte`` sums both over the items.
    """
    ((log_likelihood, _),) = results
    return {"bits_per_byte": (log_likelihood, len(doc["answer"].encode()))}
