"""What a way of updating is given, and how a model is measured before and after."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance

from engram_eval.analysis.stats import ratio
from engram_eval.arrays import Floats, Ints
from engram_eval.config import EvalConfig, TrainConfig, UpdateConfig
from engram_eval.corpus.store import Corpus
from engram_eval.evaluation.heldout import per_document
from engram_eval.progress import Reporter
from engram_eval.records import BEFORE_UPDATE, MetricRow
from engram_eval.updates.changes import Changes, Question, questions

NAME, BEFORE = "update", BEFORE_UPDATE
PEOPLE_DOMAIN = "entities"


@dataclass(frozen=True)
class Told:
    """What a way of updating works on.

    Attributes:
        model: folder of the trained model; None for a memory that stands alone.
        corpus: the text that it has read.
        changes: what is new.
        options: steps and rates.
        train: how the model was trained.
        evaluate: how held-out text is scored.
        val: validation tokens that are scored, (T,).
        folder: for what is kept on disk.
        seed: of what is drawn.
        report: where progress goes.
    """

    model: Path | None
    corpus: Corpus
    changes: Changes
    options: UpdateConfig
    train: TrainConfig
    evaluate: EvalConfig
    val: Ints
    folder: Path
    seed: int
    report: Reporter

    def asked(self, choosing: bool) -> list[Question]:
        """Return the questions about people who choose rates, or about those who are scored."""
        return [
            asked
            for asked in questions(self.changes)
            if (asked.person in self.changes.chooses) == choosing
        ]


def answered(lm: Any, asked: Sequence[Question]) -> np.ndarray:
    """Return of each question whether greedy decoding would write its answer, (Q,).

    Args:
        lm: an lm-eval model.
        asked: prompts and answers.
    """
    requests = [
        Instance("loglikelihood", {}, (one.prompt, f" {one.answer}"), number)
        for number, one in enumerate(asked)
    ]
    return np.array([greedy for _, greedy in lm.loglikelihood(requests, disable_tqdm=True)], bool)


def measure(
    told: Told,
    lm: Any,
    token_bits: Callable[[Ints], Floats],
    condition: str | None = None,
) -> list[MetricRow]:
    """Ask a model about the people who are scored, and score it on other text.

    Returns:
        ``exact_match`` by ``facts`` (``changes.Kind``) and, where they changed, ``wording``, errors
        over people; ``bits_per_byte`` on held-out text of all other domains.
    """
    asked = told.asked(choosing=False)
    right = answered(lm, asked)
    rows = []
    for labels, chosen in groups(asked):
        people = [asked[place].person for place in chosen]
        found = ratio(right[chosen].astype(float), np.ones(len(chosen)), people)
        rows.append(
            MetricRow(
                *(NAME, "exact_match", found.value),
                stderr=found.stderr,
                slice=labels,
                n=len(chosen),
                condition=condition,
            )
        )
    return rows + _text_rows(told, token_bits(told.val), condition)


def groups(asked: Sequence[Question]) -> list[tuple[dict[str, str], list[int]]]:
    """Return labels and places of the questions of each kind and wording."""
    found: dict[tuple[str, str | None], list[int]] = {}
    for place, one in enumerate(asked):
        found.setdefault((one.kind, one.wording), []).append(place)
    return [
        ({"facts": kind, **({"wording": wording} if wording else {})}, places)
        for (kind, wording), places in found.items()
    ]


def _text_rows(told: Told, bits: Floats, condition: str | None) -> list[MetricRow]:
    documents = per_document(told.corpus, "val", bits)
    people = told.corpus.domains.index(PEOPLE_DOMAIN)
    other = (documents.domain != people) & (documents.bytes > 0)
    if not other.any():
        return []
    found = ratio(documents.bits[other], documents.bytes[other])
    return [
        MetricRow(
            *(NAME, "bits_per_byte", found.value),
            stderr=found.stderr,
            split="val",
            n=int(other.sum()),
            condition=condition,
        )
    ]


def cost_rows(seconds: float, size: int) -> list[MetricRow]:
    """Return what an update took."""
    return [
        MetricRow(NAME, "update_seconds", seconds),
        MetricRow(NAME, "update_bytes", float(size)),
    ]
