"""Patching and surgery where it is known what carries the answer."""

import numpy as np
import pytest
import torch
from probes_fixture import PEOPLE, engram, llama, noise_sample, silence
from transformers import PreTrainedModel

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.adapters.load import open_model
from engram_eval.config import CorpusConfig, EntityDials, ProbeConfig
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.entities import ATTRIBUTES, held_out_template, make_people
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.progress import Reporter
from probes.ngram_rows import row_memories, rows_read
from probes.patching import Patch, patch_effects, patches, patching, positions
from probes.people import (
    Fact,
    Pair,
    People,
    known,
    last_logits,
    make_prompts,
    pair_up,
    preference,
    prompts,
    swapped,
)
from probes.row_writes import NO_ROW, RowWrites, distinct, written
from probes.sample import draw_sample
from probes.surgery import exchange, name_rows, surgery, write_answers


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp("people")
    build_corpus({}, PEOPLE, None, out, Reporter(quiet=True))
    return load_corpus(out)


def only_memory() -> PreTrainedModel:
    """Make a model whose logits come from the memory alone."""
    model = silence(
        engram(n_routed_experts=0, engram_conv=False, engram_rows=[1009, 1009]), range(3)
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        model.model.layers[1].engram.table.weight.normal_()
    return model


def no_memory() -> PreTrainedModel:
    """Make a model that ignores its memory."""
    model = engram()
    with torch.no_grad():
        model.model.layers[1].engram.value_proj.weight.zero_()
    return model


def asked(adapter: Adapter, count: int = 6, tail: int = 0) -> list[Pair]:
    """Pair prompts of two-token names at the end, answered as this very model answers."""
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(count):
        rest = tuple(rng.integers(1, 48, tail))
        a, b = ((0, 7, 9, *rng.integers(1, 48, 2), *rest) for _ in range(2))
        sides = [torch.tensor([side]) for side in (a, b)]
        with torch.no_grad():
            answers = [int(adapter.logits(side)[0, -1].argmax()) for side in sides]
        if answers[0] != answers[1]:
            pairs.append(Pair(a, b, (3, 5), *answers, 2 * number, 2 * number + 1, 0, 0))
    assert len(pairs) >= 3
    return pairs


def effect(adapter: Adapter, pairs: list[Pair], *patch) -> np.ndarray:
    """Return the share of the difference that a patch restores, per pair."""
    on_a, on_b, patched = patch_effects(adapter, pairs, [Patch(*patch)])
    return (patched - on_b) / (on_a - on_b)


def test_a_decisive_memory_carries_the_whole_answer() -> None:
    adapter = open_model(only_memory())
    pairs = asked(adapter)
    assert known(adapter, pairs).all()
    np.testing.assert_allclose(effect(adapter, pairs, "memory_out", 1, "all"), 1, atol=1e-4)
    np.testing.assert_allclose(effect(adapter, pairs, "memory_out", 1, "last"), 1, atol=1e-4)
    for layer in (0, 1):
        np.testing.assert_allclose(effect(adapter, pairs, "resid_pre", layer, "all"), 0, atol=1e-4)
    np.testing.assert_allclose(effect(adapter, pairs, "resid_pre", 2, "last"), 1, atol=1e-4)
    np.testing.assert_allclose(effect(adapter, pairs, "attn_out", 1, "all"), 0, atol=1e-4)


def test_an_ignored_memory_carries_nothing() -> None:
    adapter = open_model(no_memory())
    pairs = asked(adapter, tail=2)
    np.testing.assert_allclose(effect(adapter, pairs, "memory_out", 1, "all"), 0, atol=1e-4)
    for layer in range(3):
        np.testing.assert_allclose(effect(adapter, pairs, "resid_pre", layer, "all"), 1, atol=1e-3)
    np.testing.assert_allclose(effect(adapter, pairs, "resid_pre", 0, "name"), 1, atol=1e-3)
    np.testing.assert_allclose(effect(adapter, pairs, "resid_pre", 0, "last"), 0, atol=1e-3)


@pytest.mark.parametrize("make", [llama, engram])
def test_effects_equal_plain_patching(make) -> None:
    """One prompt at a time, no padding, no blocks left out."""
    adapter = open_model(make())
    pairs = [*asked(adapter, tail=1), *asked(adapter, tail=3)]
    wanted = patches(adapter)[::3]
    found = patch_effects(adapter, pairs, wanted)
    masks = positions(prompts(pairs))
    for row, pair in enumerate(pairs[::4]):
        row = 4 * row
        a, b = torch.tensor([pair.a]), torch.tensor([pair.b])
        for number, patch in enumerate(wanted, start=2):
            tap = Tap(patch.site, patch.layer)
            mask = masks[patch.position][row, : a.shape[1], None]
            with torch.no_grad(), adapter.record([tap]) as seen:
                adapter.run(a)
                clean = seen[tap]
            with (
                torch.no_grad(),
                adapter.edit(*tap, lambda x, m=mask, c=clean: torch.where(m, c, x)),
            ):
                logits = adapter.logits(b)[0, -1]
            expected = float(logits[pair.answer_a] - logits[pair.answer_b])
            assert found[number, row] == pytest.approx(expected, abs=1e-3)


def people(adapter: Adapter, tail: int = 0) -> People:
    return People(tuple(asked(adapter, 8, tail)), {}, noise_sample(windows=4, length=16))


def test_rows_of_patching() -> None:
    adapter = open_model(only_memory())
    rows = patching(adapter, people(adapter)).rows
    first = rows[0]
    assert (first.metric, first.value, first.baseline) == ("acc", 1, 0.25)
    assert {r.slice["position"] for r in rows[1:]} == {"name", "after", "last", "all"}
    flips = {
        (r.site, r.layer, r.slice["position"]): r.value for r in rows if r.metric == "flip_rate"
    }
    assert flips["memory_out", 1, "last"] == 1 and flips["resid_pre", 1, "all"] == 0
    assert next(r for r in rows if r.metric == "depth_half_layers").value == 2
    assert patching(adapter, People((), {}, noise_sample())).rows == []


def test_writes_equal_a_changed_table() -> None:
    adapter = open_model(engram())
    pairs = asked(adapter, tail=1)[:3]
    first, second = prompts(pairs), prompts(swapped(pairs))
    writes = exchange(adapter, first, second)
    with torch.no_grad(), written(adapter, writes):
        together = last_logits(adapter, first)
    table = row_memories(adapter)[0].table
    saved = table.detach().clone()
    for number in range(len(pairs)):
        rows, change = writes[1].rows[number], writes[1].change[number]
        real = rows != NO_ROW
        assert len(set(rows[real].tolist())) == int(real.sum())
        with torch.no_grad():
            table[rows[real]] += change[real]
            alone = adapter.logits(first.tokens[number : number + 1])[0, -1]
            table.copy_(saved)
        torch.testing.assert_close(together[number], alone, rtol=1e-4, atol=1e-4)


def test_exchanging_exchanges_the_table_rows() -> None:
    adapter = open_model(engram())
    pairs = asked(adapter)[:1]
    memory = row_memories(adapter)[0]
    first, second = prompts(pairs), prompts(swapped(pairs))
    ours, theirs = (
        name_rows(rows_read(adapter, side.tokens)[1], side)[0] for side in (first, second)
    )
    write = exchange(adapter, first, second)[1]
    changed = memory.table.detach().clone()
    real = write.rows[0] != NO_ROW
    changed[write.rows[0][real]] += write.change[0][real]
    for row, partner in zip(ours.tolist(), theirs.tolist(), strict=True):
        if row != NO_ROW and ours.tolist().count(row) == 1 and row not in theirs.tolist():
            torch.testing.assert_close(changed[row], memory.table[partner].detach())


def test_surgery_on_a_decisive_memory_moves_every_answer() -> None:
    adapter = open_model(only_memory())
    rows = surgery(adapter, people(adapter)).rows
    flips = {r.condition: r for r in rows if r.metric == "flip_rate"}
    assert flips["rows_exchanged"].value == 1 and flips["rows_written"].value == 1
    # The name is last: no n-gram begins in it and ends behind it.
    assert flips["rows_exchanged_reaching"].value == 1
    assert flips["rows_exchanged"].baseline < 0.7
    kl = {(r.condition, r.slice["prompts"]): r.value for r in rows if r.metric == "kl_bits"}
    assert set(kl) == {
        (c, p) for c in ("rows_exchanged", "rows_written") for p in ("other_people", "text")
    }


def test_ngrams_that_reach_over_the_name_are_exchanged_on_demand() -> None:
    """One token stands behind the name, so that the last trigram and bigram begin in it."""
    adapter = open_model(only_memory())
    rows = surgery(adapter, people(adapter, tail=1)).rows
    flips = {r.condition: r.value for r in rows if r.metric == "flip_rate"}
    assert flips["rows_exchanged_reaching"] == 1 and flips["rows_exchanged"] == 0


def test_surgery_on_an_ignored_memory_moves_nothing() -> None:
    adapter = open_model(no_memory())
    rows = surgery(adapter, people(adapter)).rows
    for row in rows:
        expected = 1 if row.metric == "top1_agreement" else 0
        assert row.value == pytest.approx(expected, abs=1e-6)
    assert surgery(open_model(llama()), people(open_model(llama()))).rows == []


def test_written_rows_leave_the_table_alone() -> None:
    adapter = open_model(engram())
    table = row_memories(adapter)[0].table
    before, asked_now = table.detach().clone(), prompts(asked(adapter))
    writes = write_answers(adapter, asked_now, steps=30)
    assert torch.equal(table, before) and table.grad is None
    with torch.no_grad(), written(adapter, writes):
        after = preference(last_logits(adapter, asked_now), asked_now)
    with torch.no_grad():
        intact = preference(last_logits(adapter, asked_now), asked_now)
    assert (after < intact).all()


def test_repeated_rows_are_blanked() -> None:
    rows, other = distinct(torch.tensor([[5, 6, 5, NO_ROW]]), torch.tensor([[1, 2, 3, 4]]))
    assert rows.tolist() == [[5, 6, NO_ROW, NO_ROW]] or rows.tolist() == [[5, 6, NO_ROW, -1]]
    assert other.tolist() == [[1, 2, NO_ROW, 4]]
    assert isinstance(RowWrites(rows, other), tuple)


def test_people_of_a_corpus(corpus: Corpus) -> None:
    """Prompts differ in the name alone, in a wording that was trained for both."""
    found = make_prompts(corpus, draw_sample(corpus, ProbeConfig(tokens=512, seq_len=32)))
    assert len(found.pairs) > 10
    tokenizer = corpus.tokenizer()
    config = CorpusConfig(entities=EntityDials(n_entities=8, max_exposures=6, min_exposures=3))
    told = make_people(config.entities, config.seed)
    for pair in found.pairs:
        assert len(pair.a) == len(pair.b) and pair.answer_a != pair.answer_b
        start, stop = pair.name
        assert pair.a[:start] == pair.b[:start] and pair.a[stop:] == pair.b[stop:]
        for side, person in ((pair.a, pair.person_a), (pair.b, pair.person_b)):
            name = tokenizer.decode(list(side[start:stop])).strip()
            assert name == told[person].name
            held = held_out_template(told[person], ATTRIBUTES[pair.attribute], 5, 0)
            assert held != pair.template
        text = tokenizer.decode([*pair.a[1:], pair.answer_a])
        value = told[pair.person_a].values[pair.attribute]
        assert any(text.endswith(f" {value[:n]}") for n in range(len(value) + 1))
    for key, others in found.other_wordings.items():
        assert all((o.attribute, o.person_a, o.person_b) == key for o in others)
        (pair,) = [p for p in found.pairs if (p.attribute, p.person_a, p.person_b) == key]
        # From the name on nothing may be the same, which would read the same rows.
        ends = {other.a[other.name[0] :] for other in others}
        assert pair.a[pair.name[0] :] not in ends
    assert any(found.other_wordings.values())


def test_answers_are_told_apart_where_they_differ() -> None:
    a = Fact(0, 0, 0, (0, 5, 6, 7), (1, 3), (9, 4, 2))
    b = Fact(1, 0, 0, (0, 8, 6, 7), (1, 3), (9, 5))
    pair = pair_up(a, b)
    assert (
        pair is not None and pair.a == (0, 5, 6, 7, 9) and (pair.answer_a, pair.answer_b) == (4, 5)
    )
    assert pair_up(a, b._replace(answer=(9,))) is None
    assert pair_up(a, b._replace(name=(1, 2))) is None
    assert pair_up(a, b._replace(tokens=(0, 8, 6))) is None


@pytest.mark.parametrize("run", [patching, surgery])
def test_probes_run_on_a_corpus_with_people(run, corpus: Corpus) -> None:
    found = make_prompts(corpus, draw_sample(corpus, ProbeConfig(tokens=256, seq_len=32)))
    adapter = open_model(engram(vocab_size=corpus.vocab_size))
    rows = run(adapter, found).rows
    assert rows and rows == run(adapter, found).rows
    keys = {(r.metric, r.layer, r.site, r.condition, tuple(r.slice.items())) for r in rows}
    assert len(keys) == len(rows)
