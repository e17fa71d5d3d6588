"""Use of, and writing to, memories that are not ours: Qwen4-Exp's, Gemma 3n's, a module's own."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from adapters_fixture import FAMILIES, opened, seeded
from lab_fixture import Lab, parts_of
from probes_fixture import engram, noise_sample
from torch import Tensor
from transformers import PreTrainedModel

from engram_eval.adapters.base import Adapter, Reads, Tap
from engram_eval.adapters.load import open_model
from engram_eval.adapters.plain import PlainModel
from engram_eval.errors import UserError
from engram_eval.records import MetricRow
from probes.memory_usage import memory_usage
from probes.ngram_rows import row_memories, rows_of_text, rows_read
from probes.patterns import Text
from probes.people import Pair, People, Prompts, last_logits, prompts, swapped
from probes.row_writes import NO_ROW, RowWrites, writable, written
from probes.surgery import exchange, surgery, write_answers

LOOKING_UP = ("qwen4_exp", "gemma3n", "engram_moe", "engram_streams")


def text(length: int, vocabulary: int, seed: int = 0) -> Text:
    """Draw tokens, a tenth of them ends of documents."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(1, vocabulary, length)
    return Text(np.where(rng.random(length) < 0.1, 0, drawn))


def pairs(adapter: Adapter, vocabulary: int, count: int = 8) -> list[Pair]:
    """Pair prompts of two-token names, answered as this very model answers."""
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        rest = tuple(rng.integers(1, vocabulary, 1))
        a, b = ((0, 7, 9, *rng.integers(1, vocabulary, 2), *rest) for _ in range(2))
        with torch.no_grad():
            said = [int(adapter.logits(torch.tensor([x]))[0, -1].argmax()) for x in (a, b)]
        if said[0] != said[1]:
            found.append(Pair(a, b, (3, 5), *said, 2 * number, 2 * number + 1, 0, 0))
    assert len(found) >= 3
    return found


def loud(family: str) -> Adapter:
    """Open a model whose rows are so long that they decide what it says."""
    model = seeded(FAMILIES[family])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("embed_tokens_per_layer.weight", "ngram_embedding.weight")):
                weight.mul_(20)
    return open_model(model)


def laboratory(ours: PreTrainedModel, **changes: Any) -> Adapter:
    """Open the laboratory's module with the weights of one of ours."""
    lab = Lab(ours)
    reads = open_model(ours).reads[1]
    return open_model(PlainModel(lab, parts_of(lab, reads=reads, **changes)))


@pytest.mark.parametrize("length", [1, 63, 64, 65, 126, 127, 700])
def test_windows_read_what_the_whole_text_reads(length: int) -> None:
    ours = open_model(engram())
    theirs = laboratory(ours.model)
    assert ours.look_up is not None and theirs.look_up is None
    tokens = torch.from_numpy(text(length, 48).tokens)
    assert torch.equal(rows_of_text(theirs, tokens)[1], ours.look_up(tokens[None])[1][0])


@pytest.mark.parametrize("changes", [{}, {"engram_reset_at_eos": False}])
def test_a_modules_memory_is_used_as_ours(changes: dict[str, Any]) -> None:
    ours = open_model(engram(**changes))
    asked = text(600, 48)
    expected = memory_usage(ours, asked).rows
    assert memory_usage(laboratory(ours.model), asked).rows == expected
    assert {row.metric for row in expected} >= {"crowding", "cache_hit_rate", "row_norm"}


def test_a_modules_memory_is_written_to_as_ours() -> None:
    ours = open_model(engram())
    people = People(tuple(pairs(ours, 48)), {}, noise_sample(windows=4, length=16))
    expected = surgery(ours, people).rows
    found = surgery(laboratory(ours.model), people).rows
    assert [replace(row, value=None, stderr=None, baseline=None) for row in found] == [
        replace(row, value=None, stderr=None, baseline=None) for row in expected
    ]
    for one, other in zip(found, expected, strict=True):
        assert (one.value, one.baseline) == pytest.approx((other.value, other.baseline), abs=1e-4)
    assert {row.condition for row in expected} >= {"rows_exchanged_reaching", "rows_written"}


def test_tokens_that_a_memory_takes_for_one_do_not_collide() -> None:
    """Of 48 tokens it sees 13; what only differs in what it does not see is one n-gram."""
    ours = engram(engram_compression=True, engram_rows=[40_009, 40_009])
    classes = (torch.arange(48) + 3) // 4
    ours.model.set_compression(classes)
    asked = text(600, 48)
    expected = memory_usage(open_model(ours), asked).rows
    assert memory_usage(laboratory(ours, sees=lambda ids: classes[ids]), asked).rows == expected
    crowded = {r.metric: r.value for r in expected if r.condition == "all_heads"}["crowding"]
    blind = memory_usage(laboratory(ours), asked).rows
    assert crowded == 0
    assert all(r.value > 0.3 for r in blind if r.metric == "crowding" and r.slice["order"] == "2")


def test_without_what_its_rows_stand_for_a_memory_has_no_rows() -> None:
    lab = Lab(engram())
    adapter = open_model(PlainModel(lab, parts_of(lab)))
    assert memory_usage(adapter, text(100, 48)).rows == []
    people = People(tuple(pairs(adapter, 48)), {}, noise_sample(windows=4, length=16))
    assert surgery(adapter, people).rows == []


@pytest.mark.parametrize("family", LOOKING_UP)
def test_looking_up_tells_what_the_running_model_reads(family: str) -> None:
    adapter = opened(family)
    tokens = torch.from_numpy(text(60, 40).tokens).view(3, 20)
    taps = [Tap("memory_index", layer) for layer in adapter.reads]
    with torch.no_grad(), adapter.record(taps) as found:
        adapter.run(tokens)
    read = rows_read(adapter, tokens)
    assert read.keys() == adapter.reads.keys() and read
    assert all(torch.equal(read[layer], found[Tap("memory_index", layer)]) for layer in read)


def test_qwen4s_rows_are_counted() -> None:
    """Against counts of n-grams as tuples, cut at the ends of documents."""
    adapter, asked = opened("qwen4_exp"), text(400, 40)
    tokens = asked.tokens.tolist()
    rows = rows_read(adapter, torch.tensor([tokens]))[1][0].tolist()
    found = memory_usage(adapter, asked).rows
    sizes = adapter.reads[1].head_rows
    for head in range(len(sizes)):
        order = 2 if head < 2 else 3
        grams = [gram(tokens, place, order) for place in range(len(tokens))]
        read = [row[head] for row in rows]
        often, used = Counter(grams), Counter(read)
        shares = [1 - often[g] / used[r] for g, r in zip(grams, read, strict=True)]
        (row,) = (
            r
            for r in found
            if r.metric == "crowding"
            and r.slice.get("head") == str(head % 2)
            and r.slice["order"] == str(order)
        )
        assert row.value == pytest.approx(np.mean(shares)) and row.value > 0.1
    for order, heads in ((2, (0, 1)), (3, (2, 3))):
        touched = sum(len({row[head] for row in rows}) for head in heads)
        (row,) = (
            r for r in found if r.metric == "rows_touched" and r.slice == {"order": str(order)}
        )
        assert row.value == pytest.approx(touched / sum(sizes[head] for head in heads))


def gram(tokens: list[int], place: int, order: int) -> tuple[int, ...]:
    """Return the n-gram that ends at a place, the end of the document before left out."""
    seen = [tokens[place]]
    for back in range(1, order):
        if place < back or tokens[place - back] == 0:
            break
        seen.append(tokens[place - back])
    return tuple(seen)


def test_gemma3ns_tokens_have_rows_of_their_own() -> None:
    """By hand: rows 1, 2 and 36 of 37 are read, 1 twice and 36 three times."""
    adapter = opened("gemma3n")
    rows = memory_usage(adapter, Text(np.array([1, 36, 2, 36, 1, 36]))).rows
    assert {row.layer for row in rows} == {0, 1, 2} and not picked(rows, "crowding")
    assert [row.value for row in picked(rows, "rows_touched")] == [3 / 37] * 3
    lengths = adapter.tables[1].detach().norm(dim=1)
    norm = next(r for r in picked(rows, "row_norm") if r.layer == 1 and r.condition is None)
    assert norm.value == pytest.approx(float(lengths[[1, 2, 36]].mean())) and norm.n == 3
    best = {r.slice["cached_share"]: r.value for r in picked(rows, "cache_hit_rate", 1, "hottest")}
    assert best["0.003"] == best["0.03"] == 0.5


def test_gemma3ns_tokens_outside_of_the_table_collide() -> None:
    """By hand: row 0 is read by token 0 twice, by 37 and by 38."""
    rows = memory_usage(opened("gemma3n"), Text(np.array([0, 37, 38, 0]))).rows
    shares = [r.value for r in picked(rows, "crowding", 1)]
    assert shares == [(0.5 + 0.75 + 0.75 + 0.5) / 4] * 2


def picked(
    rows: list[MetricRow], metric: str, layer: int | None = None, condition: str | None = None
) -> list[MetricRow]:
    found = [row for row in rows if row.metric == metric]
    found = found if layer is None else [row for row in found if row.layer == layer]
    return found if condition is None else [row for row in found if row.condition == condition]


@pytest.mark.parametrize("family", ["qwen4_exp", "gemma3n"])
def test_writes_equal_a_changed_table(family: str) -> None:
    adapter = loud(family)
    both = pairs(adapter, 37)[:3]
    first, second = prompts(both), prompts(swapped(both))
    writes = exchange(adapter, first, second)
    with torch.no_grad(), written(adapter, writes):
        together = last_logits(adapter, first)
    with torch.no_grad():
        intact = last_logits(adapter, first)
    tables = {layer: adapter.tables[layer].detach() for layer in writes}
    assert writes.keys() == adapter.reads.keys()
    for number in range(len(both)):
        saved = {layer: table.clone() for layer, table in tables.items()}
        for layer, write in writes.items():
            real = write.rows[number] != NO_ROW
            tables[layer][write.rows[number][real]] += write.change[number][real]
        with torch.no_grad():
            alone = adapter.logits(first.tokens[number : number + 1])[0, -1]
        for layer, table in tables.items():
            table.copy_(saved[layer])
        torch.testing.assert_close(together[number], alone, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(alone, intact[number], atol=1e-3)


@pytest.mark.parametrize("family", ["qwen4_exp", "gemma3n"])
def test_surgery_moves_what_other_families_say(family: str) -> None:
    adapter = loud(family)
    sample = noise_sample(windows=2, length=16)
    sample.token[:] = sample.token % 37
    both = pairs(adapter, 37)
    rows = surgery(adapter, People(tuple(both), {}, sample)).rows
    flips = {r.condition: r.value for r in rows if r.metric == "flip_rate"}
    assert flips.keys() == {"rows_exchanged", "rows_exchanged_reaching", "rows_written"}
    asked = prompts(both)
    # What is descended on: all prompts together.
    after, before = (chance(adapter, asked, w) for w in (write_answers(adapter, asked), {}))
    assert after.log().sum() > before.log().sum()
    # Rows of single tokens reach nowhere.
    same = flips["rows_exchanged"] == flips["rows_exchanged_reaching"]
    assert same if family == "gemma3n" else flips["rows_exchanged_reaching"] > 0
    assert any(r.value > 0 for r in rows if r.metric == "kl_bits")


def chance(adapter: Adapter, asked: Prompts, writes: dict[int, RowWrites]) -> Tensor:
    """Return how likely each prompt's other answer is, (P,)."""
    with torch.no_grad(), written(adapter, writes):
        return last_logits(adapter, asked).softmax(-1).gather(1, asked.answers[:, 1:])[:, 0]


def test_tables_with_another_use_are_not_written_to() -> None:
    adapter = opened("gemma3n")
    assert len(writable(adapter)) == 3
    shared = replace(adapter, tables=dict.fromkeys(range(3), adapter.tables[0]))
    tied = replace(adapter, tables={**adapter.tables, 1: adapter.embedding.weight})
    unseen = {tap: place for tap, place in adapter.places.items() if tap != ("memory_rows", 2)}
    people = People(tuple(pairs(adapter, 37)), {}, noise_sample(windows=2, length=16))
    for other in (shared, tied, replace(adapter, places=unseen)):
        assert len(row_memories(other)) == 3
        assert surgery(other, people).rows == []


def test_text_of_other_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="the text has token id 40, the model 40 tokens"):
        memory_usage(opened("gemma3n"), Text(np.array([1, 40])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_rows": (101, 103, 107)}, "has 3 heads of 311 rows for 2 orders; its table has 420"),
        ({"head_rows": (101, 103, 107, 999)}, "has 4 heads of 1310 rows for 2 orders"),
        ({"head_rows": (101, 103)}, "reads 4 rows a token, but Reads has 2"),
        ({"head_rows": (107, 103, 101, 109)}, r"head \d reads row \d+, not one of \d+ to \d+"),
        ({"scale": 0.5}, r"memory_rows are not the table's times Reads.scale"),
        ({"orders": (2, 65)}, "n-grams of 65 tokens, but the model takes 64"),
    ],
)
def test_rows_that_are_elsewhere_are_refused(changes: dict[str, Any], message: str) -> None:
    lab = Lab(engram())
    reads = Reads((2, 3), (101, 103, 107, 109))._replace(**changes)
    with pytest.raises(UserError, match=message):
        open_model(PlainModel(lab, parts_of(lab, reads=reads)))


def test_a_text_that_reads_rows_elsewhere_is_refused() -> None:
    """The few tokens of the self-check have not read them."""
    ours = open_model(engram())

    def elsewhere(ids: Tensor) -> dict[int, Tensor]:
        return {1: torch.full((*ids.shape, 4), 7)}

    with pytest.raises(UserError, match="head 1 reads row 7, not one of 101 to 203"):
        memory_usage(replace(ours, look_up=elsewhere), text(20, 48))
