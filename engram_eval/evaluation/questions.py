"""The project's own tasks as questions that a model can be asked again and again.

lm-eval scores a model once. To see what each task loses when a part of the model is cut, the same
items are asked under every cut: they are read and encoded once, and scored as the tasks' YAML
scores them, by the likeliest of the choices.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engram_eval.arrays import Floats, Ints, Mask
from engram_eval.corpus.store import Corpus
from engram_eval.errors import UserError
from engram_eval.evaluation.table import OwnTask, own_tasks
from engram_eval.files import read_jsonl

BATCH_SIZE = 64


@dataclass(frozen=True)
class Questions:
    """Multiple-choice items of several tasks; n items with c choices in all.

    Attributes:
        tasks: in the order of ``task``.
        task: index of each item's task, (n,).
        gold: number of each item's right choice, (n,).
        source: items with one number were made from one text and are no independent evidence, (n,).
        item: whose choice each entry of ``pairs`` is, ascending, (c,).
        pairs: (query, choice).
        tokenizer: of the models that are asked.
    """

    tasks: tuple[OwnTask, ...]
    task: Ints
    gold: Ints
    source: Ints
    item: Ints
    pairs: tuple[tuple[str, str], ...]
    tokenizer: Any

    def asker(self, model: Any) -> Callable[[Mask], Ints]:
        """Return what asks a model as it is at the time, hooks included.

        Called with the items that are wanted, (n,), it returns the number of the likeliest choice,
        the first of equals, and -1 where nobody asked.
        """
        # lm-eval is heavy, and probes that ask nothing do not need it.
        from engram_eval.evaluation.encode import encode_pairs
        from engram_eval.evaluation.quiet import quiet_lm_eval
        from engram_eval.evaluation.stage import fast_lm

        lm = fast_lm(model, self.tokenizer, BATCH_SIZE)
        requests = [(None, list(c), list(d)) for c, d in encode_pairs(lm, self.pairs)]

        def ask(wanted: Mask) -> Ints:
            chosen = np.flatnonzero(wanted[self.item])
            nats = np.full(len(self.item), -np.inf)
            with quiet_lm_eval():
                answers = lm._loglikelihood_tokens([requests[i] for i in chosen], True)
            nats[chosen] = [likelihood for likelihood, _ in answers]
            return np.where(wanted, self.likeliest(nats), -1)

        return ask

    def likeliest(self, nats: Floats) -> Ints:
        """Return the likeliest choice of each item, (n,), given log-likelihoods of all, (c,)."""
        first = np.searchsorted(self.item, np.arange(len(self.gold)))
        return np.array([part.argmax() for part in np.split(nats, first[1:])], dtype=np.int64)

    def right(self, chosen: Ints) -> Floats:
        """Return 1 where the gold choice was taken, 0 where another one was, (n,); NaN for -1."""
        return np.where(chosen < 0, np.nan, chosen == self.gold)


def read_questions(corpus: Corpus, folder: Path | None = None, most: int = 0) -> Questions:
    """Read the items of the project's own tasks.

    Args:
        corpus: whose tokenizer encodes them.
        folder: of ``<task>.jsonl``, as the ``items`` stage writes them; None means the committed
            items, which fit the default corpus.
        most: items per task, the first ones; 0 means all.

    Raises:
        UserError: the folder has no items.
    """
    known = own_tasks()
    files = {
        name: (folder or task.folder / "data") / f"{name}.jsonl" for name, task in known.items()
    }
    items = {name: list(read_jsonl(path)) for name, path in files.items() if path.is_file()}
    if not items:
        raise UserError(f"{folder}: no items of tasks here")
    kept = {name: found[:most] if most else found for name, found in items.items()}
    return make_questions({known[name]: found for name, found in kept.items()}, corpus.tokenizer())


def make_questions(
    items: Mapping[OwnTask, Sequence[Mapping[str, Any]]], tokenizer: Any
) -> Questions:
    """Put items together: each has ``query``, ``choices`` and ``gold``, and may have ``source``."""
    flat = [item for found in items.values() for item in found]
    sources = [item.get("source") or f"item {number}" for number, item in enumerate(flat)]
    return Questions(
        tasks=tuple(items),
        task=np.repeat(np.arange(len(items)), [len(found) for found in items.values()]),
        gold=np.array([item["gold"] for item in flat]),
        source=np.unique(sources, return_inverse=True)[1],
        item=np.repeat(np.arange(len(flat)), [len(item["choices"]) for item in flat]),
        pairs=tuple((item["query"], choice) for item in flat for choice in item["choices"]),
        tokenizer=tokenizer,
    )
