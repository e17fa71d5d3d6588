"""Memory surgery: exchange the rows of two names, or write one fact into rows alone.

*Exchange.* The rows that name a reads are exchanged with those that name b reads. If the table
holds who is who, the answers exchange as well; ``baseline`` is how often a's answer becomes b's
when a's rows are exchanged with those of a third name. *Write.* Only the rows that the prompt's
name takes part in are moved, by a few steps of gradient descent, until the model says something
else of it (in the manner of ROME, arXiv:2202.05262: efficacy, paraphrase, locality).

In three lines::

    adapter, corpus = open_model("runs/quick/models/engram/seed0"), load_corpus("runs/quick/corpus")
    people = make_prompts(corpus, draw_sample(corpus))
    rows = surgery(adapter, people).rows
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engram_eval.adapters.base import Adapter, widened
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.capture import check_kinds, last_stream
from probes.findings import Findings, mean_rows
from probes.ngram_rows import rows_read
from probes.people import (
    Pair,
    People,
    Prompts,
    known,
    last_logits,
    people_of,
    preference,
    prompts,
    swapped,
)
from probes.row_writes import NO_ROW, RowWrites, distinct, writable, written
from probes.sample import Sample, Slice
from probes.vocabulary import CELLS, kl_bits, pieces

NAME = "surgery"
PAIRS = 64
WRITTEN = 32
BYSTANDERS = 6
STEPS = 24
# Of a step, in units of the table's root mean square.
RATE = 0.3
TEXT_WINDOWS = 8

Writes = dict[int, RowWrites]


class Change(NamedTuple):
    """How predictions changed, one value per prompt or token: 1 where the likeliest token is kept.

    Attributes:
        kept: (n,).
        kl_bits: KL(before || after), (n,).
    """

    kept: Tensor
    kl_bits: Tensor


def name_rows(read: Tensor, asked: Prompts, reach: int = 0) -> Tensor:
    """Return the rows that each name reads, (P, R); ``NO_ROW`` fills up.

    Args:
        read: rows of one memory that P prompts read, (P, T, heads).
        asked: the prompts.
        reach: how many tokens after the name to include, whose n-grams still see it.
    """
    place = torch.arange(asked.name.shape[1])
    ends = torch.where(asked.name, place, -1).amax(1, keepdim=True)
    tail = (place > ends) & (place <= ends + reach) & (place <= asked.last[:, None])
    seen = (asked.name | tail)[..., None].expand_as(read)
    return torch.where(seen, read.cpu(), NO_ROW).flatten(1)


def exchange(adapter: Adapter, first: Prompts, second: Prompts, reaching: bool = False) -> Writes:
    """Return the writes that exchange the rows of two names in prompts of one wording.

    Args:
        adapter: the model.
        first: prompts about one name each.
        second: the same prompts about the others.
        reaching: also the rows of n-grams that begin in the name and end behind it.
    """
    found = {}
    sides = [
        (rows_read(adapter, asked.tokens.to(adapter.device)), asked) for asked in (first, second)
    ]
    for memory in writable(adapter):
        reach = max(memory.orders) - 1 if reaching else 0
        ours, theirs = (name_rows(read[memory.layer], asked, reach) for read, asked in sides)
        rows = torch.cat([ours, theirs], dim=1)
        partner = torch.cat([theirs, ours], dim=1)
        rows, partner = distinct(rows, partner)
        table = widened(memory.table.detach().cpu())
        change = (table[partner] - table[rows]) * (rows != NO_ROW)[..., None]
        found[memory.layer] = RowWrites(rows.to(adapter.device), change.to(adapter.device))
    return found


def write_answers(adapter: Adapter, asked: Prompts, steps: int = STEPS) -> Writes:
    """Return the writes that make each prompt prefer its *other* answer.

    Adam on the cross-entropy of that answer; nothing but the rows that the name takes part in
    moves, each prompt's on its own.
    """
    places, changes, rates = {}, {}, []
    read = rows_read(adapter, asked.tokens.to(adapter.device))
    for memory in writable(adapter):
        rows = name_rows(read[memory.layer], asked, reach=max(memory.orders) - 1)
        (rows,) = distinct(rows)
        places[memory.layer] = rows.to(adapter.device)
        shape = (*rows.shape, memory.table.shape[1])
        changes[memory.layer] = torch.zeros(shape, device=adapter.device, requires_grad=True)
        rates.append(RATE * float(widened(memory.table.detach()).square().mean().sqrt()))
    groups = [{"params": [c], "lr": r} for c, r in zip(changes.values(), rates, strict=True)]
    optimiser = torch.optim.Adam(groups)
    target = asked.answers[:, 1].to(adapter.device)
    for _ in range(steps):
        writes = {layer: RowWrites(places[layer], change) for layer, change in changes.items()}
        with torch.enable_grad(), written(adapter, writes):
            loss = F.cross_entropy(last_logits(adapter, asked), target, reduction="sum")
        for change, grad in zip(
            changes.values(), torch.autograd.grad(loss, list(changes.values())), strict=True
        ):
            change.grad = grad
        optimiser.step()
    return {layer: RowWrites(places[layer], c.detach()) for layer, c in changes.items()}


@torch.no_grad()
def preferences(adapter: Adapter, asked: Prompts, writes: Mapping[int, RowWrites]) -> Tensor:
    """Return own minus other answer's logit with the writes in place, (P,)."""
    with written(adapter, writes):
        return preference(last_logits(adapter, asked), asked).cpu()


def one_of(writes: Mapping[int, RowWrites], index: int) -> Writes:
    """Return the writes of one prompt, to be tried on others."""
    return {
        layer: RowWrites(write.rows[index : index + 1], write.change[index : index + 1])
        for layer, write in writes.items()
    }


def chosen(writes: Mapping[int, RowWrites], index: Sequence[int]) -> Writes:
    """Return the writes of some prompts, one each."""
    picked = torch.tensor(list(index))
    return {layer: RowWrites(w.rows[picked], w.change[picked]) for layer, w in writes.items()}


@torch.no_grad()
def change_on_prompts(
    adapter: Adapter, asked: Prompts, before: Tensor, writes: Mapping[int, RowWrites]
) -> Change:
    """Compare the predictions after prompts without writes, ``before`` (P, V), and with them."""
    with written(adapter, writes):
        return _change(before, last_logits(adapter, asked))


@torch.no_grad()
def change_on_text(
    adapter: Adapter, tokens: Tensor, before: Tensor, writes: Mapping[int, RowWrites]
) -> Change:
    """Compare the predictions on text (B, T) without and with writes, (B * T,).

    Args:
        adapter: the model.
        tokens: the text.
        before: the last stream without writes, (B, T, D).
        writes: what is written.
    """
    with written(adapter, writes):
        after = last_stream(adapter, tokens)
    old, new = (adapter.normed(stream.flatten(0, 1)) for stream in (before, after))
    parts = [
        _change(adapter.unembedding(old[part]), adapter.unembedding(new[part]))
        for part in pieces(tokens.numel(), adapter.vocab_size, CELLS, adapter.device)
    ]
    return Change(*map(torch.cat, zip(*parts, strict=True)))


def _change(before: Tensor, after: Tensor) -> Change:
    """Compare logits (n, V)."""
    # Whether it is the largest is known sooner than which one is.
    likeliest = before.argmax(-1, keepdim=True)
    kept = after.gather(-1, likeliest)[:, 0] == after.amax(-1)
    return Change(kept.float().cpu(), kl_bits(before, after).cpu())


def surgery(adapter: Adapter, people: People, report: Reporter | None = None) -> Findings:
    """Exchange names and write facts; no rows without a memory, people, or known facts.

    The memory is one that looks rows up by token, ours or another's (``tables`` and ``reads`` of
    the adapter, taps ``memory_index`` and ``memory_rows``). A table that layers share, or that is
    the token embedding as well, is not written to, and there are no rows. Where rows are of single
    tokens, as in Gemma 3n, those of a name's tokens are exchanged, at all layers at once; nothing
    reaches beyond the name, and both exchanges are one.

    Rows, site ``memory_rows``; conditions ``rows_exchanged`` (read at the name's tokens),
    ``rows_exchanged_reaching`` (and by n-grams that begin in the name) and ``rows_written``:
    ``flip_rate``, the share of prompts whose preferred answer becomes the other one, by ``slice``
    prompts (``same_wording``, ``other_wording``); ``top1_agreement`` and ``kl_bits`` of the
    predictions before and after on ``other_people`` and on ``text``. Errors are over people:
    prompts that share one, on either side, vary together, as do all prompts and all text that one
    pair's write was tried on.
    """
    check_kinds(adapter, people.sample)
    right = known(adapter, people.pairs)
    pairs = [pair for pair, fine in zip(people.pairs, right, strict=True) if fine]
    if not pairs or not writable(adapter):
        return Findings([], {})
    with (report or Reporter(quiet=True)).task(NAME, 2) as progress:
        rows = _exchange_rows(adapter, pairs[:PAIRS], people)
        progress.advance()
        rows += _write_rows(adapter, pairs[:WRITTEN], people)
        progress.advance()
    return Findings(rows, {})


def _exchange_rows(adapter: Adapter, pairs: list[Pair], people: People) -> list[MetricRow]:
    both = [*pairs, *swapped(pairs)]
    asked, other = prompts(both), prompts(swapped(both))
    rows = []
    for condition, reaching in (("rows_exchanged_reaching", True), ("rows_exchanged", False)):
        writes = exchange(adapter, asked, other, reaching)
        flips = preferences(adapter, asked, writes) < 0
        chance = _third_name_flips(adapter, both, asked, reaching)
        found = _flip_row(condition, "same_wording", flips, both)
        rows += [dataclasses.replace(row, baseline=chance) for row in found]
    return rows + _locality_rows(adapter, "rows_exchanged", writes, pairs, people.sample)


def _third_name_flips(
    adapter: Adapter, pairs: list[Pair], asked: Prompts, reaching: bool
) -> float | None:
    """Exchange a's rows with those of somebody else who is not b; how often is b answered?"""
    found = []
    for number, pair in enumerate(pairs):
        others = [p for p in pairs if _third(pair, p)]
        if others:
            found.append((number, others[number % len(others)].a))
    if not found:
        return None
    here = [number for number, _ in found]
    own = Prompts(*(part[here] for part in asked))
    tokens = own.tokens.clone()
    for row, (_, third) in enumerate(found):
        tokens[row, : len(third)] = torch.tensor(third)
    writes = exchange(adapter, own, own._replace(tokens=tokens), reaching)
    return float((preferences(adapter, own, writes) < 0).double().mean())


def _third(pair: Pair, other: Pair) -> bool:
    """Tell whether ``other.a`` is a third person, asked about in the same wording."""
    same = (other.attribute, other.template) == (pair.attribute, pair.template)
    fits = other.name == pair.name and len(other.a) == len(pair.a)
    return same and fits and other.person_a not in (pair.person_a, pair.person_b)


def _write_rows(adapter: Adapter, pairs: list[Pair], people: People) -> list[MetricRow]:
    asked = prompts(pairs)
    writes = write_answers(adapter, asked)
    flips = preferences(adapter, asked, writes) < 0
    rows = _flip_row("rows_written", "same_wording", flips, pairs)
    reworded = [
        (number, other)
        for number, pair in enumerate(pairs)
        for other in people.other_wordings.get((pair.attribute, pair.person_a, pair.person_b), ())
    ]
    if reworded:
        others = [other for _, other in reworded]
        again = preferences(
            adapter, prompts(others), chosen(writes, [number for number, _ in reworded])
        )
        rows += _flip_row("rows_written", "other_wording", again < 0, others)
    return rows + _locality_rows(adapter, "rows_written", writes, pairs, people.sample)


def _flip_row(condition: str, kind: str, flips: Tensor, pairs: Sequence[Pair]) -> list[MetricRow]:
    everyone = [Slice({"prompts": kind}, np.ones(len(pairs), dtype=bool))]
    return _rows(flips, people_of(pairs), everyone, metric="flip_rate", condition=condition)


def _locality_rows(
    adapter: Adapter,
    condition: str,
    writes: Mapping[int, RowWrites],
    pairs: list[Pair],
    sample: Sample,
) -> list[MetricRow]:
    """Try a few writes on what they are not about."""
    tokens = torch.from_numpy(sample.token[:TEXT_WINDOWS, :-1]).to(adapter.device)
    documents = sample.document[:TEXT_WINDOWS, :-1].reshape(-1)
    found: dict[str, list[tuple[Change, Any]]] = {"other_people": [], "text": []}
    asked, person = prompts(pairs), np.array([pair.person_a for pair in pairs])
    with torch.no_grad():
        answers, text = last_logits(adapter, asked), last_stream(adapter, tokens)
    for number, pair in enumerate(pairs[:BYSTANDERS]):
        write = one_of(writes, number)
        others = np.flatnonzero(~np.isin(person, (pair.person_a, pair.person_b)))
        if len(others):
            part = Prompts(*(field[others] for field in asked))
            change = change_on_prompts(adapter, part, answers[others], write)
            found["other_people"].append((change, _with_pair(pair, person[others])))
        # Negative, so that no document is taken for a person.
        whole_text = _with_pair(pair, -1 - documents)
        found["text"].append((change_on_text(adapter, tokens, text, write), whole_text))
    rows = []
    for kind, parts in found.items():
        if parts:
            clusters = np.concatenate([cluster for _, cluster in parts])
            whole = [Slice({"prompts": kind}, np.ones(len(clusters), dtype=bool))]
            for metric, field in (("top1_agreement", "kept"), ("kl_bits", "kl_bits")):
                values = torch.cat([getattr(change, field) for change, _ in parts])
                rows += _rows(values, clusters, whole, metric=metric, condition=condition)
    return rows


def _with_pair(pair: Pair, sources: Any) -> Any:
    """Put the two people of a write beside what it was tried on, (n,) -> (n, 3)."""
    return np.column_stack([np.repeat(people_of([pair]), len(sources), axis=0), sources])


def _rows(values: Tensor, clusters: Any, slices: list[Slice], **fields: Any) -> list[MetricRow]:
    return mean_rows(
        values.double().numpy(), clusters, slices, name=NAME, site="memory_rows", **fields
    )
