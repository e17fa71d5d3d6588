"""Knock-outs on tasks: which scores need a part of the model (arXiv:2601.07372 Fig. 6, made fair).

The paper zeroes the memory and prints what is left of each score, chance included, of one model.
Here the floor is taken off: ``retained`` = (score with the part cut - chance) / (intact score -
chance), so that 0 is guessing and 1 is nothing lost; and beside the memory stand attention and
feed-forward of the same block, experts of as many parameters, the memory's mean and rows of other
n-grams. A score that is lost shows how much the rest has come to *depend* on a part at inference,
not where knowledge lies: a model that was trained without the part may do as well (the paper's
TriviaQA falls to 29 % of 50.7, below the 33.0 of its dense model). In three lines::

    adapter, corpus = open_model("runs/quick/models/engram/seed0"), load_corpus("runs/quick/corpus")
    asked = ask_tasks(corpus, draw_sample(corpus))
    rows = task_knockout(adapter, asked).rows

Only where a model scores above chance is there something to lose: other tasks are scored once.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.adapters.hooks import Edit
from engram_eval.arrays import Floats, Mask
from engram_eval.corpus.same_tokenizer import Identity
from engram_eval.corpus.store import Corpus
from engram_eval.evaluation.questions import Questions, read_questions
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.capture import batches, check_kinds
from probes.cuts import Knockout, cut_out, knockouts, memory_means
from probes.findings import Findings, mean_rows, ratio_rows
from probes.sample import Sample, Slice

NAME = "task_knockout"
MOST_ITEMS = 100
ALPHA = 0.05
# Rows of so many tokens of text are what a memory reads in place of its own.
OTHER_TOKENS = 4096


class Asked(NamedTuple):
    """The tasks' items, and text that gives the memory's mean and rows of other n-grams."""

    questions: Questions
    sample: Sample

    @property
    def tokenizer(self) -> Identity | None:
        """By what the one is recognised that encodes both; None where it is not known."""
        return self.sample.tokenizer


def ask_tasks(
    corpus: Corpus, sample: Sample, items: Path | None = None, most: int = MOST_ITEMS
) -> Asked:
    """Read the items of a study, or the committed ones, which fit the default corpus.

    Args:
        corpus: whose tokenizer encodes them.
        sample: text of the corpus.
        items: folder of ``<task>.jsonl``, as the stage ``items`` leaves it.
        most: items per task; 0 means all.
    """
    return Asked(read_questions(corpus, items, most), sample)


def task_cuts(adapter: Adapter) -> list[Knockout]:
    """List what is cut: the memory, its neighbours in the block, experts of as many parameters.

    Without a memory the neighbours are those of the second block, where others have theirs.
    """
    memory = adapter.memory_layers
    place = memory[0] if memory else min(1, adapter.n_layers - 1)
    return [
        cut
        for cut in knockouts(adapter)
        if cut.condition == "experts_removed"
        or (cut.condition.startswith("memory_") and cut.layers == memory)
        or (cut.condition in ("attn_zeroed", "mlp_zeroed") and cut.layer == place)
    ]


def task_knockout(adapter: Adapter, asked: Asked, report: Reporter | None = None) -> Findings:
    """Score the tasks intact and with each part cut.

    Rows, ``slice`` task and domain: ``acc`` intact and, of tasks above chance (one-sided binomial
    test at 5 %), under each cut (``condition``, ``site``, ``layer``), with chance as baseline;
    ``retained`` under each cut, per task and, over all items of such tasks, per domain and in all.
    Standard errors are over items; those made from one text count as one.

    Raises:
        UserError: no opened model, no asked tasks, or those in other tokens than the model's.
    """
    check_kinds(adapter, asked, Asked, "asked tasks (ask_tasks)")
    questions, cuts = asked.questions, task_cuts(adapter)
    everything = np.ones(len(questions.gold), dtype=bool)
    ask = questions.asker(adapter.model)
    with (report or Reporter(quiet=True)).task(NAME, 1 + len(cuts)) as progress, torch.no_grad():
        intact = questions.right(ask(everything))
        progress.advance()
        rows = _score_rows(questions, intact, everything)
        above = above_chance(questions, intact)
        if above.any():
            means, others = memory_means(adapter, asked.sample), other_rows(adapter, asked.sample)
            for cut in cuts:
                with cut_out(adapter, cut, others, means, asked.sample.seed):
                    found = questions.right(ask(above))
                rows += _cut_rows(questions, cut, intact, found, above)
                progress.advance()
    return Findings(rows, {})


def above_chance(questions: Questions, right: Floats) -> Mask:
    """Return which items belong to a task whose score guessing would hardly reach, (n,)."""
    found = np.zeros(len(right), dtype=bool)
    for number, task in enumerate(questions.tasks):
        own = questions.task == number
        hits = int(right[own].sum())
        test = binomtest(hits, int(own.sum()), task.chance, alternative="greater")
        found[own] = test.pvalue < ALPHA
    return found


def other_rows(adapter: Adapter, sample: Sample) -> Callable[[int], Edit]:
    """Return, by layer, what replaces rows (B, T, d) by rows that random tokens of text read."""
    taps = [Tap("memory_rows", i) for i in adapter.memory_layers]
    taps = [tap for tap in taps if tap in adapter.places]
    text = sample.first(OTHER_TOKENS)
    found: dict[Tap, list[Tensor]] = {tap: [] for tap in taps}
    for batch in batches(adapter, text, taps) if taps else ():
        for tap in taps:
            found[tap].append(batch.taps[tap])

    def edit(layer: int) -> Edit:
        bank = torch.cat(found[Tap("memory_rows", layer)])
        generator = torch.Generator().manual_seed(sample.seed)

        def drawn(rows: Tensor) -> Tensor:
            picks = torch.randint(len(bank), rows.shape[:-1], generator=generator)
            return bank[picks.to(bank.device)]

        return drawn

    return edit


def _score_rows(
    questions: Questions, right: Floats, wanted: Mask, **fields: object
) -> list[MetricRow]:
    """Return the accuracy on each task of which items are wanted."""
    rows = []
    for number, task in enumerate(questions.tasks):
        part = Slice(
            {"task": task.name, "domain": task.domain}, wanted & (questions.task == number)
        )
        if part.mask.any():
            rows += mean_rows(
                right,
                questions.source,
                [part],
                name=NAME,
                metric="acc",
                split="test",
                baseline=task.chance,
                **fields,
            )
    return rows


def _cut_rows(
    questions: Questions, cut: Knockout, intact: Floats, found: Floats, above: Mask
) -> list[MetricRow]:
    fields = {"condition": cut.condition, "site": cut.site, "layer": cut.layer}
    chance = np.array([task.chance for task in questions.tasks])[questions.task]
    retained = ratio_rows(
        found - chance,
        intact - chance,
        questions.source,
        _groups(questions, above),
        name=NAME,
        metric="retained",
        split="test",
        baseline=0.0,
        **fields,
    )
    return _score_rows(questions, found, above, **fields) + retained


def _groups(questions: Questions, above: Mask) -> Iterator[Slice]:
    """Yield all items above chance, those of each domain, those of each task."""
    yield Slice({}, above)
    domain = np.array([task.domain for task in questions.tasks])
    for name in dict.fromkeys(domain.tolist()):
        mask = above & (domain[questions.task] == name)
        if mask.any():
            yield Slice({"domain": name}, mask)
    for number, task in enumerate(questions.tasks):
        mask = above & (questions.task == number)
        if mask.any():
            yield Slice({"task": task.name, "domain": task.domain}, mask)
