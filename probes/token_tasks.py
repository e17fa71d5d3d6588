"""What linear probes are asked to read out: a property of a neighbouring token, and its control.

``previous_token_kind`` needs the local context to have reached the place that is read: it is what
must happen before a static pattern can be recognised. ``next_token_kind`` is what recognising it
is good for. Each control task (Hewitt & Liang 2019, arXiv:1909.03368) gives every token *type* a
random class: a probe that learns it memorises types, and shows how much of the real accuracy such
memorising could explain.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engram_eval.errors import UserError
from probes.sample import Ints, Sample

KINDS = ("special", "space", "number", "word_start", "word_inside", "symbol")


class Task(NamedTuple):
    """Which neighbour's kind is asked for, and whose type the control task labels.

    Attributes:
        offset: place of the neighbour relative to the token that was read.
        control_offset: place of the token whose type carries a random label.
    """

    offset: int
    control_offset: int
    about: str


TASKS: dict[str, Task] = {
    "previous_token_kind": Task(-1, -1, "what kind of token stood before this one"),
    "next_token_kind": Task(1, 0, "what kind of token comes next"),
}


class TaskLabels(NamedTuple):
    """Classes of the real and of the control task per token, each (n,)."""

    real: Ints
    control: Ints


def token_kind(text: str) -> int:
    """Return the index in ``KINDS`` of what a token spells; a letter may follow one space."""
    if text == "" or (text.startswith("<|") and text.endswith("|>")):
        return 0
    if text.isspace():
        return 1
    if text.strip().isdigit():
        return 2
    bare = text.removeprefix(" ")
    if bare[0].isalpha():
        return 3 if bare != text else 4
    return 5


def usable(sample: Sample) -> npt.NDArray[np.bool_]:
    """Return which inputs have both neighbours in their window and in their document, (n,)."""
    same = sample.document[:, 1:] == sample.document[:, :-1]
    before = np.zeros_like(same)
    before[:, 1:] = same[:, :-1]
    return (before & same).reshape(-1)


def task_labels(name: str, sample: Sample, rng: np.random.Generator) -> TaskLabels:
    """Label every input token, (n,); labels mean something only where ``usable``.

    The control's classes are drawn with the frequencies of the real ones.

    Raises:
        UserError: no such task.
    """
    if name not in TASKS:
        raise UserError(f"unknown linear task {name!r}; allowed: {', '.join(TASKS)}")
    task = TASKS[name]
    kinds = kinds_of(sample.texts)
    real = kinds[_neighbour(sample, task.offset)]
    shares = np.bincount(real[usable(sample)], minlength=len(KINDS)).astype(np.float64)
    random = rng.choice(len(KINDS), size=len(kinds), p=shares / shares.sum())
    return TaskLabels(real, random[_neighbour(sample, task.control_offset)])


def kinds_of(texts: Sequence[str]) -> Ints:
    """Return the kind of every token id, (V,)."""
    return np.array([token_kind(text) for text in texts], dtype=np.int64)


def _neighbour(sample: Sample, offset: int) -> Ints:
    """Return the token ids ``offset`` places from each input, (n,); edges repeat their own."""
    length = sample.shape[1]
    columns = np.clip(np.arange(length) + offset, 0, length)
    return sample.token[:, columns].reshape(-1)
