"""Each way of telling a model changed facts: what it does, and what it leaves alone."""

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from engram_eval.baselines.cache import Cache
from engram_eval.baselines.kneser_ney import KneserNey
from engram_eval.baselines.lm import PredictorLM
from engram_eval.baselines.mixture import Mixture, Weights
from engram_eval.baselines.passages import Passages
from engram_eval.baselines.rag import RagLM
from engram_eval.baselines.registry import BASELINES
from engram_eval.baselines.training_text import own_text
from engram_eval.config import EvalConfig, TrainConfig
from engram_eval.corpus.ngrams import NGramModel
from engram_eval.corpus.revised import revise
from engram_eval.corpus.store import Corpus
from engram_eval.errors import UserError
from engram_eval.evaluation.heldout import scored_tokens
from engram_eval.evaluation.stage import fast_lm
from engram_eval.models import EngramForCausalLM
from engram_eval.models.table import RowTable
from engram_eval.records import MetricRow
from engram_eval.stage_config import UpdateStage
from engram_eval.updates import index, weights
from engram_eval.updates.changes import (
    Changes,
    draw_changes,
    old_sentences,
    passages,
    questions,
)
from engram_eval.updates.registry import WAYS
from engram_eval.updates.stage import update
from engram_eval.updates.told import BEFORE, Told, answered, measure
from tests.evaluation_tools import QUIET, tiny_llama
from tests.probes_fixture import engram
from tests.tokenizer_tools import foreign_tokenizer
from tests.updates_fixture import OPTIONS, told_corpus

TRAIN = TrainConfig(lr=1e-2, table_lr_multiplier=5.0, clip_norm=1.0)
EVALUATE = EvalConfig(tasks=(), batch_size=32, seq_len=32, heldout_sequences=6)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return told_corpus(tmp_path_factory.mktemp("told") / "corpus")


@pytest.fixture(scope="module")
def changes(corpus: Corpus) -> Changes:
    return draw_changes(corpus, OPTIONS, 3)


@pytest.fixture(scope="module")
def folder(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a memory that knows nothing."""
    path = tmp_path_factory.mktemp("trained") / "model"
    changes = {"initializer_range": 0.12, "engram_rows": [301, 301], "engram_layers": [0]}
    shape = engram(layers=2, vocab_size=corpus.vocab_size, **changes).config
    torch.manual_seed(0)
    EngramForCausalLM(shape).save_pretrained(path)
    corpus.tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def told(corpus: Corpus, changes: Changes, folder: Path, tmp_path: Path) -> Told:
    val = scored_tokens(corpus, "val", EVALUATE.seq_len, EVALUATE.heldout_sequences)
    return Told(folder, corpus, changes, OPTIONS, TRAIN, EVALUATE, val, tmp_path, 0, QUIET)


def documents(corpus: Corpus, split: str = "train") -> list[str]:
    stream, tokenizer = np.asarray(corpus.tokens(split), np.int64), corpus.tokenizer()
    return [tokenizer.decode(stream[start : end - 1]) for start, end, *_ in corpus.docs(split)]


def one(rows: Sequence[MetricRow], metric: str, before: bool = False, **labels: str) -> float:
    (row,) = [
        row
        for row in rows
        if row.metric == metric and row.slice == labels and (row.condition == BEFORE) == before
    ]
    assert row.value is not None
    return row.value


def stage(way: str, **changes: object) -> UpdateStage:
    return UpdateStage(way, OPTIONS, EVALUATE, dataclasses.replace(TRAIN, **changes))


def test_an_ngram_model_alone_answers_as_one_counted_by_hand(
    corpus: Corpus, changes: Changes, tmp_path: Path
) -> None:
    """Greedy decoding by a Kneser-Ney model of the very text that there should be."""
    rows = update({"corpus": corpus.folder}, stage("ngram_replaced"), 3, tmp_path, QUIET)
    tokenizer, gone = corpus.tokenizer(), old_sentences(changes)
    told = [
        " ".join(s for s in text.replace(". ", ".\0").split("\0") if s not in gone)
        if any(s in text for s in gone)
        else text
        for text in documents(corpus)
    ]
    stream = [id_ for text in [*told, *passages(changes)] for id_ in [*tokenizer.encode(text), 0]]
    counts = NGramModel.count(np.array(stream), corpus.vocab_size, 5)
    model = KneserNey.fit(counts, 5)
    for kind, wording in (("changed", "told"), ("stale", "told"), ("unchanged", None)):
        right = []
        for asked in questions(changes):
            if (asked.kind, asked.wording) == (kind, wording) and (
                asked.person not in changes.chooses
            ):
                prompt = tokenizer.encode(asked.prompt)
                whole = tokenizer.encode(f"{asked.prompt} {asked.answer}")
                right.append(
                    all(
                        model.distributions([np.array(whole[:at])]).p[0].argmax() == whole[at]
                        for at in range(len(prompt), len(whole))
                    )
                )
        labels = {"facts": kind, **({"wording": wording} if wording else {})}
        assert one(rows, "exact_match", **labels) == pytest.approx(np.mean(right)), kind
    assert one(rows, "exact_match", facts="stale", wording="told") == 0
    assert one(rows, "exact_match", True, facts="changed", wording="told") == 0
    assert one(rows, "update_bytes") > 0 and one(rows, "update_seconds") > 0
    assert not list(tmp_path.iterdir())


def test_a_cache_reads_the_passage_that_is_found(
    corpus: Corpus, changes: Changes, tmp_path: Path
) -> None:
    """The new passage is the only one that has all words of its own prompt, so it is copied."""
    text, vocab = own_text(corpus), corpus.vocab_size
    counted = KneserNey.fit(corpus.ngrams(), 5)
    trusted = Mixture(Cache(vocab), counted, Weights(np.full(6, 0.99)))
    reader = PredictorLM(trusted, text.tokenizer, text.vocabulary)
    asked = [q for q in questions(changes) if (q.kind, q.wording) == ("changed", "told")]
    revised = revise(corpus, "entities", passages(changes), old_sentences(changes))
    for name, source, right in (("old", corpus, False), ("new", revised, True)):
        found = Passages.build(documents(source), tmp_path / name)
        assert all((found.best(q.prompt, 1) == [f"{q.prompt} {q.answer}."]) == right for q in asked)
        lm = RagLM(reader, found, reader.row_bits, k=1)
        assert answered(lm, asked).tolist() == [right] * len(asked)


INDEX_WAYS = [way for way in WAYS if "_" in way]


@pytest.mark.parametrize("way", INDEX_WAYS)
def test_around_a_model_the_model_itself_stays(
    way: str, corpus: Corpus, folder: Path, tmp_path: Path
) -> None:
    weights_before = (folder / "model.safetensors").read_bytes()
    inputs = {"corpus": corpus.folder, "train": folder.parent}
    rows = update(inputs, stage(way, tokens=2000), 3, tmp_path, QUIET)
    assert (folder / "model.safetensors").read_bytes() == weights_before
    labels = {tuple(row.slice.values()) for row in rows if row.metric == "exact_match"}
    assert len(labels) == 6 and all(row.name == "update" for row in rows)
    assert math.isfinite(one(rows, "bits_per_byte")) and one(rows, "bits_per_byte", True) > 0
    assert one(rows, "exact_match", True, facts="changed", wording="told") == 0
    assert WAYS[way].alone == (BASELINES[way.partition("_")[0]].alone is not None)


@pytest.fixture(scope="module")
def moved(corpus: Corpus, changes: Changes, folder: Path) -> dict[str, list[MetricRow]]:
    inputs = {"corpus": corpus.folder, "train": folder.parent}
    out = folder.parent / "out"
    return {way: update(inputs, stage(way), 3, out, QUIET) for way in ("finetune", "rows")}


def test_planted_facts_are_learnt_and_an_untouched_model_is_the_floor(
    moved: dict[str, list[MetricRow]],
) -> None:
    for way, rows in moved.items():
        before = {row.value for row in rows if row.condition == BEFORE and "facts" in row.slice}
        assert before == {0.0}, way
    found = moved["finetune"]
    assert one(found, "exact_match", facts="changed", wording="told") == 1.0
    assert one(found, "update_rate") in OPTIONS.weight_rates
    assert one(moved["rows"], "update_rate") == 1.0
    assert one(moved["rows"], "update_bytes") < one(found, "update_bytes")
    assert one(found, "bits_per_byte") != one(found, "bits_per_byte", True)


def opened(told: Told, rows_alone: bool) -> torch.nn.Module:
    model = weights.load_model(told.model)
    weights.movable(model, rows_alone)
    return model


def encoded(told: Told) -> list[list[int]]:
    tokenizer = told.corpus.tokenizer()
    return [[0, *tokenizer.encode(text), 0] for text in passages(told.changes)]


def test_frozen_rows_are_not_moved(told: Told) -> None:
    model = weights.load_model(told.model)
    (table,) = [module for module in model.modules() if isinstance(module, RowTable)]
    table.freeze()
    weights.movable(model, rows_alone=False)
    assert not table.weight.requires_grad and model.lm_head.weight.requires_grad
    with pytest.raises(UserError, match="no table of rows that are trained"):
        weights.movable(model, rows_alone=True)


def test_a_table_elsewhere_is_refused(told: Told) -> None:
    host = type(weights.load_model(told.model)).from_pretrained(told.model, engram_storage="host")
    for rows_alone in (False, True):
        with pytest.raises(UserError, match="table lies elsewhere"):
            weights.movable(host, rows_alone)


def test_rows_alone_leave_every_other_number_as_it_was(told: Told) -> None:
    model, texts = opened(told, True), encoded(told)
    old = {name: value.clone() for name, value in model.state_dict().items()}
    weights.tell(model, texts, told, 1.0)
    new = model.state_dict()
    (table,) = [name for name in old if name.endswith("table.weight")]
    assert all(torch.equal(new[name], value) for name, value in old.items() if name != table)
    read = set()
    for text in texts:
        for rows in model.model.ngram_rows(torch.tensor([text[:-1]])).values():
            read |= set(rows.flatten().tolist())
    changed = (new[table] != old[table]).any(1).nonzero().flatten().tolist()
    assert changed and set(changed) <= read < set(range(len(old[table])))
    count = int((new[table] != old[table]).sum())
    assert weights.changed_bytes(model, {table: old[table]}) == 4 * count


def test_the_steps_are_those_of_plain_adamw(told: Told) -> None:
    """Two steps on all passages at once, as the equations have them."""
    everything = dataclasses.replace(told.options, steps=2, batch_size=len(encoded(told)))
    told = dataclasses.replace(told, options=everything)
    ours, theirs = opened(told, False), opened(told, False)
    weights.tell(ours, encoded(told), told, 0.1)
    rate, decay = 0.1 * TRAIN.lr, TRAIN.weight_decay
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p],
                "lr": rate * (TRAIN.table_lr_multiplier if n.endswith("table.weight") else 1),
                "weight_decay": 0.0 if p.ndim < 2 or "table" in n or "embed" in n else decay,
            }
            for n, p in theirs.named_parameters()
            if "conv" not in n
        ]
        + [
            {"params": [p], "lr": rate, "weight_decay": 0.0}
            for n, p in theirs.named_parameters()
            if "conv" in n
        ],
        betas=(TRAIN.beta1, TRAIN.beta2),
    )
    for _ in range(2):
        sums, count = 0.0, 0
        for text in encoded(told):
            logits = theirs(input_ids=torch.tensor([text[:-1]])).logits[0]
            sums = sums + torch.nn.functional.cross_entropy(
                logits, torch.tensor(text[1:]), reduction="sum"
            )
            count += len(text) - 1
        optimizer.zero_grad()
        (sums / count).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), TRAIN.clip_norm)
        optimizer.step()
    reached = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        # Adam's first steps are signs, which rounding decides where a gradient is next to nothing.
        apart = (parameter - reached[name]).abs() > 1e-5
        assert apart.float().mean() < 0.01, name


def test_every_passage_takes_its_turn() -> None:
    batches = weights._batches(5, 3, 0)
    drawn = np.concatenate([next(batches) for _ in range(10)])
    assert all(sorted(drawn[at : at + 5]) == [0, 1, 2, 3, 4] for at in range(0, 30, 5))
    assert not np.array_equal(drawn[:5], drawn[5:10])


class Scripted:
    """Answers a share of the questions of each kind."""

    def __init__(self, right: set[tuple[str, str | None]], told: Told) -> None:
        self.known = {
            (q.prompt, f" {q.answer}")
            for q in questions(told.changes)
            if (q.kind, q.wording) in right
        }

    def loglikelihood(self, requests, disable_tqdm=False):
        assert disable_tqdm
        return [(0.0, request.args in self.known) for request in requests]


def test_the_score_that_chooses_is_the_mean_of_three(told: Told) -> None:
    assert weights.score_of(told, Scripted({("changed", "told")}, told)) == pytest.approx(1 / 3)
    assert weights.score_of(told, Scripted({("stale", "told")}, told)) == 0
    others = {("neighbours", None), ("unchanged", None)}
    assert weights.score_of(told, Scripted(others, told)) == pytest.approx(1 / 3)
    neighbours = weights.score_of(told, Scripted({("neighbours", None)}, told))
    # Two of those who choose change (5 facts left), one does not (6 facts), in three wordings each.
    assert neighbours == pytest.approx(10 / 16 / 3)


def test_those_who_choose_are_not_scored(told: Told) -> None:
    choosing, scored = told.asked(True), told.asked(False)
    assert {q.person for q in choosing} == told.changes.chooses
    assert not {q.person for q in scored} & told.changes.chooses
    assert len(choosing) + len(scored) == len(questions(told.changes))
    lm = Scripted({("changed", "untold")}, told)
    rows = measure(told, lm, lambda tokens: np.ones(len(tokens)))
    assert one(rows, "exact_match", facts="changed", wording="untold") == 1
    assert one(rows, "exact_match", facts="changed", wording="told") == 0
    assert answered(lm, scored).sum() == sum(
        q.kind == "changed" and q.wording == "untold" for q in scored
    )


def test_other_text_is_all_but_that_about_people(told: Told) -> None:
    """A bit per token of everything else, by its bytes."""
    corpus, total = told.corpus, len(told.val)
    people = corpus.domains.index("entities")
    spans = [
        (start, min(end, total))
        for start, end, domain, _ in corpus.docs("val")
        if domain != people and start < total
    ]
    sizes = corpus.token_bytes[np.asarray(corpus.tokens("val"), np.int64)]
    expected = sum(e - s for s, e in spans) / sum(sizes[s:e].sum() for s, e in spans)
    rows = measure(told, Scripted(set(), told), lambda tokens: np.ones(len(tokens)), BEFORE)
    assert one(rows, "bits_per_byte", True) == pytest.approx(expected)


def test_of_equal_rates_the_lowest_is_taken(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(told, False)
    lm = fast_lm(model, told.corpus.tokenizer(), 8)
    scores = iter([0.2, 0.7, 0.7])
    monkeypatch.setattr(weights, "score_of", lambda told, lm: next(scores))
    monkeypatch.setattr(weights, "tell", lambda model, texts, told, rate: None)
    options = dataclasses.replace(told.options, weight_rates=(0.9, 0.5, 0.1))
    told = dataclasses.replace(told, options=options)
    best = weights._chosen(told, model, lm, weights.state_of(model), False)
    assert (best.rate, best.score) == (0.5, 0.7)


def test_rows_need_a_table(told: Told, tmp_path: Path) -> None:
    path = tmp_path / "train" / "model"
    tiny_llama(told.corpus.vocab_size).save_pretrained(path)
    told.corpus.tokenizer().save_pretrained(path)
    with pytest.raises(UserError, match="no table of rows that are trained"):
        weights.rows(dataclasses.replace(told, model=path))


@pytest.mark.parametrize("way", ["finetune", "rows", "ngram_added", "knn_replaced"])
def test_a_model_of_other_tokens_is_refused_before_anything_moves(
    way: str, corpus: Corpus, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its vocabulary is as large as the text's, so that every number would be plausible."""
    model = tmp_path / "given" / "model"
    shutil.copytree(folder, model)
    foreign_tokenizer(model, corpus.vocab_size)
    inputs = {"corpus": corpus.folder, "train": model.parent}
    for told in (weights, index):
        monkeypatch.setattr(told, "measure", None)
    message = rf"^update.ways: '{way}': {model} has another tokenizer than the text of the study"
    with pytest.raises(UserError, match=message):
        update(inputs, stage(way), 0, tmp_path, QUIET)


def test_the_stage_needs_a_seed_and_people(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="drawn by a seed"):
        update({"corpus": corpus.folder}, stage("rows"), None, tmp_path, QUIET)
    with pytest.raises(UserError, match="way of updating 'row'"):
        update({"corpus": corpus.folder}, stage("row"), 0, tmp_path, QUIET)
