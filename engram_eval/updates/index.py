"""Memories beside a model whose text is brought up to date, the model itself left alone.

The new passages stand behind the old ones (``added``), or every sentence that tells an old value
is taken out as well (``replaced``). A memory is built anew on the text as it is now; the weights of
a mixture are chosen by validation text each time, as when it is first built.
"""

import functools
import shutil

from engram_eval.baselines.built import Setting
from engram_eval.baselines.registry import build_baseline
from engram_eval.corpus.retold import Retold
from engram_eval.corpus.revised import revise
from engram_eval.corpus.store import Corpus
from engram_eval.records import MetricRow
from engram_eval.updates.changes import old_sentences, passages
from engram_eval.updates.told import BEFORE, PEOPLE_DOMAIN, Told, cost_rows, measure


def _updated(told: Told, memory: str, replaced: bool) -> list[MetricRow]:
    with told.report.task(f"update {memory}", 2) as task:
        before, _ = _built(told, memory, told.corpus, BEFORE)
        task.advance()
        after, costs = _built(told, memory, new_text(told, replaced), None)
        task.advance()
    return [*before, *after, *costs]


def new_text(told: Told, replaced: bool) -> Retold:
    """Return the text with the new passages; ``replaced``: without what tells old values."""
    removed = old_sentences(told.changes) if replaced else frozenset[str]()
    return revise(told.corpus, PEOPLE_DOMAIN, passages(told.changes), removed)


def _built(
    told: Told, memory: str, text: Corpus, condition: str | None
) -> tuple[list[MetricRow], list[MetricRow]]:
    """Build a memory on a text and measure it; return these rows, and those of its cost."""
    folder = told.folder / "memory"
    setting = Setting(text, told.evaluate, folder, told.report, told.model)
    with build_baseline(memory, setting) as built:
        rows = measure(told, built.lm, built.token_bits, condition)
    shutil.rmtree(folder)
    found = {row.metric: row.value for row in built.rows}
    return rows, cost_rows(float(found["build_seconds"] or 0), int(found["disk_bytes"] or 0))


ngram_added = functools.partial(_updated, memory="ngram", replaced=False)
ngram_replaced = functools.partial(_updated, memory="ngram", replaced=True)
knn_added = functools.partial(_updated, memory="knn", replaced=False)
knn_replaced = functools.partial(_updated, memory="knn", replaced=True)
rag_added = functools.partial(_updated, memory="rag", replaced=False)
rag_replaced = functools.partial(_updated, memory="rag", replaced=True)
