"""Capacity: how many bits of facts has a model stored, in all and per parameter?

A value that is one of 64, all equally likely, costs 6 bits who does not know the person. What it
costs the model less than that is what the model has stored (arXiv:2404.05405 section 2.2; theirs is
a lower bound, and so is this: probability that goes to other words counts as not knowing). Names
are given, so that their bits do not count. Nothing is cut off at 0: who is sure of wrong values has
stored less than nothing.

``strangers`` are the control: no model can have stored anything about people who do not exist, so
that their share is 0 or less, whatever the model (Gibbs' inequality).

In three lines::

    adapter, corpus = open_model("runs/quick/models/engram/seed0"), load_corpus("runs/quick/corpus")
    told = tell_facts(corpus, draw_sample(corpus))
    rows = capacity(adapter, told).rows
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from engram_eval.adapters.base import Adapter
from engram_eval.analysis.stats import ratio
from engram_eval.arrays import Floats, Mask
from engram_eval.errors import UserError
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.capture import check_kinds
from probes.findings import Findings
from probes.told_facts import HELD_OUT, STRANGERS, TRAINED, Told

NAME = "capacity"
BUCKETS = ("low", "mid", "high")
TOKENS_PER_BATCH = 4096


def capacity(adapter: Adapter, told: Told, report: Reporter | None = None) -> Findings:
    """Count the bits that a model has stored of the facts it was told.

    Rows, for trained and for untrained wordings (``slice`` wording): ``stored_bits`` of all
    people's facts, ``stored_share`` of ``facts_bits``, ``bits_per_parameter``; of trained wordings
    the share by how often a person was told of, and of ``strangers`` (a condition) the share.
    Standard errors are over people. No rows for text without generated people.

    Raises:
        UserError: no opened model, no told facts, or those in other tokens than the model's.
    """
    check_kinds(adapter, told, Told, "told facts (tell_facts)")
    if not len(told.tokens):
        return Findings([], {})
    stored = told.bits - value_bits(adapter, told, report)
    rows = [MetricRow(NAME, "facts_bits", told.facts_bits, n=told.facts)]
    for wording in (TRAINED, HELD_OUT):
        rows += _stored_rows(adapter, told, stored, wording)
    present = [bucket for bucket in BUCKETS if told.where(TRAINED, bucket).any()]
    for bucket in present if len(present) > 1 else ():
        labels = {"wording": TRAINED, "exposures": bucket}
        rows.append(_share(told, stored, told.where(TRAINED, bucket), labels))
    strangers = told.where(STRANGERS)
    if strangers.any():
        rows.append(_share(told, stored, strangers, {"wording": TRAINED}, STRANGERS))
    return Findings(rows, {})


def value_bits(adapter: Adapter, told: Told, report: Reporter | None = None) -> Floats:
    """Return what each sentence's value costs the model, in bits, (Q,).

    Raises:
        UserError: the model lacks a token of the corpus.
    """
    if int(told.tokens.max()) >= adapter.vocab_size:
        raise UserError(
            f"the corpus has token id {int(told.tokens.max())}, the model {adapter.vocab_size} "
            "tokens: they do not share a tokenizer"
        )
    order = np.argsort(told.end, kind="stable")
    size = max(1, TOKENS_PER_BATCH // told.tokens.shape[1])
    found = np.empty(len(order))
    with (report or Reporter(quiet=True)).task(NAME, len(order)) as task:
        for start in range(0, len(order), size):
            part = order[start : start + size]
            found[part] = _batch_bits(adapter, told, part)
            task.advance(len(part))
    return found


@torch.no_grad()
def _batch_bits(adapter: Adapter, told: Told, part: np.ndarray) -> Floats:
    length = int(told.end[part].max())
    tokens = torch.from_numpy(told.tokens[part, :length]).to(adapter.device)
    scores = adapter.logits(tokens[:, :-1]).log_softmax(-1)
    picked = scores.gather(-1, tokens[:, 1:, None]).squeeze(-1).cpu().double().numpy()
    place = np.arange(1, length)[None, :]
    inside = (place >= told.first[part, None]) & (place < told.end[part, None])
    bits: Floats = -(picked * inside).sum(-1) / np.log(2)
    return bits


def _stored_rows(adapter: Adapter, told: Told, stored: Floats, wording: str) -> Iterator[MetricRow]:
    share = _share(told, stored, told.where(wording), {"wording": wording})
    parameters = sum(parameter.numel() for parameter in adapter.model.parameters())
    # Not all facts are asked in untrained wordings, nor are all worth as much.
    for metric, factor in (
        ("stored_bits", told.facts_bits),
        ("bits_per_parameter", told.facts_bits / parameters),
    ):
        yield dataclasses.replace(
            share,
            metric=metric,
            value=None if share.value is None else factor * share.value,
            stderr=None if share.stderr is None else factor * share.stderr,
        )
    yield share


def _share(
    told: Told, stored: Floats, chosen: Mask, labels: dict[str, str], condition: str | None = None
) -> MetricRow:
    found = ratio(stored[chosen], told.bits[chosen], told.person[chosen])
    return MetricRow(
        NAME,
        "stored_share",
        found.value,
        stderr=found.stderr,
        condition=condition,
        slice=labels,
        n=int(chosen.sum()),
    )
