"""An opened model's tokenizer is the one beside its weights; text in other tokens is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from probes_fixture import llama, noise_sample, small_corpus
from tokenizer_tools import foreign_tokenizer
from tokenizers import Tokenizer

from engram_eval.adapters.load import open_model
from engram_eval.config import ProbeConfig
from engram_eval.corpus.store import Corpus
from engram_eval.errors import UserError
from probes.capacity import capacity
from probes.capture import batches, check_fit, check_kinds
from probes.cka import cka
from probes.depth import depth
from probes.knockout import knockout
from probes.lens import logit_lens
from probes.linear import linear
from probes.memory_usage import memory_usage
from probes.offsets import offsets
from probes.patterns import training_text
from probes.router import router
from probes.sample import Sample, draw_sample
from probes.sample_stage import FACTS, read_sample, write_sample
from probes.task_knockout import ask_tasks, task_knockout
from probes.told_facts import tell_facts
from probes.tuned_lens import tuned_lens

TEXT = "The naïve fox, 漢字."
OPTIONS = ProbeConfig(tokens=128, seq_len=32)
SINGLE = (logit_lens, tuned_lens, knockout, linear, router, offsets, depth)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    """Models of one shape, whose folders have the corpus's tokenizer, another, and none."""
    home = tmp_path_factory.mktemp("home")
    for name in ("own", "foreign", "none"):
        llama(vocab_size=512).save_pretrained(home / name)
    corpus.tokenizer().save_pretrained(str(home / "own"))
    foreign_tokenizer(home / "foreign")
    return home


def test_the_tokenizer_is_that_of_the_folder(home: Path) -> None:
    adapter = open_model(home / "foreign")
    library = Tokenizer.from_file(str(home / "foreign" / "tokenizer.json"))
    ids = adapter.encode(TEXT)
    assert ids.tolist() == [library.encode(TEXT).ids]
    assert adapter.logits(ids).shape == (1, ids.shape[1], 512)
    assert adapter.decode(ids) == library.decode(ids[0].tolist(), skip_special_tokens=False)
    assert adapter.decode(ids[0, 1:]) == TEXT
    with pytest.raises(UserError, match=r"^expected a text, got \['a'\]$"):
        adapter.encode(["a"])  # type: ignore[arg-type]


def test_without_a_tokenizer_one_line_says_so(home: Path) -> None:
    with pytest.raises(UserError, match=r"none: no tokenizer lies beside the weights$"):
        open_model(home / "none").encode(TEXT)
    with pytest.raises(UserError, match="opened as an object, which brings no tokenizer"):
        _ = open_model(llama()).tokenizer


def test_code_of_a_tokenizer_is_not_run(home: Path, tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(UserError, match=r"its tokenizer cannot be opened: [^\n]*$"):
        open_model(tmp_path).encode(TEXT)


def test_a_sample_in_other_tokens_is_refused(home: Path, corpus: Corpus) -> None:
    sample = draw_sample(corpus, OPTIONS)
    check_fit(open_model(home / "own"), sample)
    message = r"^a sample in the tokens of tokenizer [0-9a-f]{12}: .*foreign has another tokenizer"
    foreign = open_model(home / "foreign")
    with pytest.raises(UserError, match=message):
        logit_lens(foreign, sample)
    # Nothing is known of the one or the other.
    check_fit(open_model(home / "none"), sample)
    check_fit(open_model(llama(vocab_size=512)), sample)
    check_fit(foreign, replace(sample, tokenizer=None))


MADE: dict[Any, tuple[str, Callable[[Corpus, Sample], Any]]] = {
    memory_usage: ("a text", training_text),
    task_knockout: ("asked tasks", partial(ask_tasks, most=1)),
    capacity: ("told facts", tell_facts),
}
"""Probes that read something else than a sample, which is made of one."""


@pytest.mark.parametrize("probe", MADE, ids=lambda probe: probe.__name__)
def test_what_is_made_of_other_tokens_or_is_something_else_is_refused(
    probe: Any, home: Path, corpus: Corpus
) -> None:
    """Their numbers would be plausible: no token id is out of range here."""
    sample = draw_sample(corpus, OPTIONS)
    named, make = MADE[probe]
    given = make(corpus, sample)
    own, foreign = open_model(home / "own"), open_model(home / "foreign")
    check_kinds(own, given, type(given))
    with pytest.raises(
        UserError, match=rf"^{named} in the tokens of tokenizer .*foreign has anoth"
    ):
        probe(foreign, given)
    with pytest.raises(UserError, match=rf"^expected {named} \(.*\), got Corpus$"):
        probe(own, corpus)
    with pytest.raises(UserError, match=r"^expected an opened model .*, got LlamaForCausalLM$"):
        probe(llama(), given)


def test_a_class_that_makes_another_tokenizer_of_a_file_counts_as_both(
    home: Path, tmp_path: Path
) -> None:
    """GPT-2's class drops the Unicode form that this file asks for: its tokens are also meant."""
    from engram_eval.corpus.same_tokenizer import opened_identity, tokenizer_identity

    llama(vocab_size=512).save_pretrained(tmp_path)
    path = foreign_tokenizer(tmp_path) / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>"}))
    adapter = open_model(tmp_path)
    both = {tokenizer_identity(tmp_path), opened_identity(adapter.tokenizer)}
    assert len(both) == 2
    for identity in both:
        check_fit(adapter, replace(noise_sample(), tokenizer=identity))


def test_samples_on_disk_know_their_tokenizer_and_old_ones_are_read(
    home: Path, corpus: Corpus, tmp_path: Path
) -> None:
    drawn = draw_sample(corpus, OPTIONS)
    write_sample(drawn, tmp_path)
    assert drawn.tokenizer is not None and read_sample(tmp_path).tokenizer == drawn.tokenizer
    facts = json.loads((tmp_path / FACTS).read_text())
    del facts["tokenizer"]
    (tmp_path / FACTS).write_text(json.dumps(facts))
    old = read_sample(tmp_path)
    assert old.tokenizer is None and old.texts == drawn.texts
    check_fit(open_model(home / "foreign"), old)


@pytest.mark.parametrize("probe", SINGLE, ids=lambda probe: probe.__name__)
def test_what_is_no_opened_model_or_no_sample_is_told(probe: Any, corpus: Corpus) -> None:
    model, sample = llama(vocab_size=512), noise_sample()
    with pytest.raises(UserError, match=r"^expected an opened model .*, got LlamaForCausalLM$"):
        probe(model, sample)
    with pytest.raises(UserError, match=r"^expected a sample .*, got Corpus$"):
        probe(open_model(model), corpus)


def test_pairs_and_batches_tell_too(corpus: Corpus) -> None:
    adapter = open_model(llama())
    with pytest.raises(UserError, match="expected an opened model"):
        cka(adapter, adapter.model, noise_sample())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="expected a sample"):
        next(batches(adapter, torch.zeros(2, 3)))  # type: ignore[arg-type]
