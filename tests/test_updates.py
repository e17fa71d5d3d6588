"""Facts that change after training: what changes, what is told, and which models are asked."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from engram_eval.arm_corpus import told_apart
from engram_eval.check import check_study
from engram_eval.cli import main
from engram_eval.config import ModelSpec, StudyConfig, UpdateConfig
from engram_eval.corpus.entities import ATTRIBUTES, held_out_template, make_people
from engram_eval.corpus.ngrams import NGramModel
from engram_eval.corpus.revised import revise
from engram_eval.corpus.store import Corpus
from engram_eval.errors import UserError
from engram_eval.scales import SCALES
from engram_eval.studies.memory_systems import ALONE
from engram_eval.studies.registry import find_study
from engram_eval.study import graph, solve
from engram_eval.updates.changes import (
    Changes,
    draw_changes,
    old_sentences,
    passages,
    questions,
)
from engram_eval.updates.registry import WAYS, check_update
from engram_eval.updates.told import groups
from tests.probes_fixture import engram
from tests.tokenizer_tools import foreign_tokenizer
from tests.updates_fixture import DIALS, OPTIONS, TEXT, told_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return told_corpus(tmp_path_factory.mktemp("told") / "corpus")


@pytest.fixture(scope="module")
def changes(corpus: Corpus) -> Changes:
    return draw_changes(corpus, OPTIONS, 3)


def documents(corpus: Corpus, split: str = "train") -> list[str]:
    stream, tokenizer = np.asarray(corpus.tokens(split), np.int64), corpus.tokenizer()
    return [tokenizer.decode(stream[start : end - 1]) for start, end, *_ in corpus.docs(split)]


def test_each_change_is_told_in_half_of_the_wordings_that_training_used(
    corpus: Corpus, changes: Changes
) -> None:
    people = {person.name: person for person in make_people(DIALS, TEXT.seed)}
    text = " ".join(documents(corpus))
    assert len(changes.people) == 6 and len(changes.facts) == 3
    for fact in changes.facts:
        attribute, person = ATTRIBUTES[fact.attribute], fact.person
        assert people[person.name] == person
        assert fact.new in attribute.values and fact.new != person.values[fact.attribute]
        held_out = held_out_template(person, attribute, 5, TEXT.seed)
        # Of five wordings one has the value within, one is held out; three are left.
        assert len(fact.told) == 2 and held_out not in fact.told
        asked = {0, 1, 3, 4} - set(fact.told)
        ends = [template[template.index("{s}") :] for template in attribute.templates]
        known = {i for i in asked if ends[i] in [ends[told] for told in fact.told]}
        assert set(fact.untold) == asked - known
        old, new = (
            [template.format(s=person.name, o=value) for template in attribute.templates[:5]]
            for value in (person.values[fact.attribute], fact.new)
        )
        assert any(sentence in text for sentence in old) and set(old) <= old_sentences(changes)
        assert not any(sentence in text for sentence in new)
        assert {new[wording] for wording in fact.told} <= set(passages(changes))
    assert len(passages(changes)) == 6 and len(old_sentences(changes)) == 3 * 5


def test_half_of_those_who_change_and_half_of_the_others_choose(changes: Changes) -> None:
    changed = {fact.person.name for fact in changes.facts}
    everybody = {person.name for person in changes.people}
    assert len(changes.chooses) == 3 and len(changes.chooses & changed) == 2
    asked = questions(changes)
    assert {q.person for q in asked} == everybody
    kinds = {(q.kind, q.wording, q.person in changed) for q in asked}
    assert kinds == {
        *((kind, wording, True) for kind in ("changed", "stale") for wording in ("told", "untold")),
        ("neighbours", None, True),
        ("unchanged", None, False),
    }
    # One changed fact and five others of each; the others in the three wordings of training.
    wordings = sum(len(fact.told) + len(fact.untold) for fact in changes.facts)
    assert sum(q.kind == "changed" for q in asked) == wordings <= 3 * 4
    assert sum(q.kind == "neighbours" for q in asked) == 3 * 5 * 3
    assert sum(q.kind == "unchanged" for q in asked) == 3 * 6 * 3
    assert sum(len(places) for _, places in groups(asked)) == len(asked)


def test_no_other_wording_says_what_was_told_from_the_name_on(corpus: Corpus) -> None:
    options = dataclasses.replace(OPTIONS, changes=6)
    for changes in (draw_changes(corpus, options, seed) for seed in range(4)):
        told = " ".join(passages(changes))
        for fact in changes.facts:
            assert fact.untold
            for wording in fact.untold:
                asked = ATTRIBUTES[fact.attribute].templates[wording]
                end = asked[asked.index("{s}") :].format(s=fact.person.name, o=fact.new)
                assert end not in told


def test_a_seed_draws_what_changes(corpus: Corpus, changes: Changes) -> None:
    assert draw_changes(corpus, OPTIONS, 3) == changes != draw_changes(corpus, OPTIONS, 4)
    two = draw_changes(corpus, dataclasses.replace(OPTIONS, people=4, changes=2), 3)
    assert len(two.people) == 4 and len(two.facts) == 4
    assert len({(fact.person.name, fact.attribute) for fact in two.facts}) == 4


def test_facts_change_of_generated_people_alone(corpus: Corpus) -> None:
    def of(**settings: object) -> Corpus:
        config = {**corpus.manifest["config"], **settings}
        return dataclasses.replace(corpus, manifest={**corpus.manifest, "config": config})

    dials = dataclasses.asdict(DIALS)
    for settings, told in (
        ({"paths": ["mine.txt"]}, "none"),
        ({"entities": {**dials, "n_entities": 0}}, "none"),
        ({"entities": {**dials, "n_entities": 3}}, "3"),
    ):
        with pytest.raises(UserError, match=f"people, 4 or more; the text has {told}"):
            draw_changes(of(**settings), OPTIONS, 0)


def test_a_revised_text_is_the_old_one_with_sentences_gone_and_passages_behind(
    corpus: Corpus, changes: Changes
) -> None:
    new, gone = passages(changes), old_sentences(changes)
    found = revise(corpus, "entities", new, gone)
    expected = []
    for text in documents(corpus):
        for sentence in gone:
            text = text.replace(sentence, "\0")
        expected.append(" ".join(text.replace("\0", " ").split(" ")) if "\0" in text else text)
    squeezed = [" ".join(text.split()) for text in [*expected, *new]]
    assert [" ".join(text.split()) for text in documents(found)] == squeezed
    kept = revise(corpus, "entities", new)
    old = np.asarray(corpus.tokens("train"))
    assert np.array_equal(kept.tokens("train")[: len(old)], old)
    assert documents(kept) == [*documents(corpus), *new]
    for text in (found, kept):
        docs, tokens = text.docs("train"), text.tokens("train")
        assert docs[0, 0] == 0 and docs[-1, 1] == len(tokens)
        assert np.array_equal(docs[1:, 0], docs[:-1, 1]) and not tokens[docs[:, 1] - 1].any()
        assert docs[:, 3].tolist() == [len(each.encode()) for each in documents(text)]
        brute = NGramModel.count(tokens, text.vocab_size, 5)
        for ours, theirs in zip(text.ngrams().counts, brute.counts, strict=True):
            assert np.array_equal(ours, theirs)
        assert np.array_equal(text.tokens("val"), corpus.tokens("val"))
        assert np.array_equal(text.docs("val"), corpus.docs("val"))
        assert len(text.answers("val").start) == len(corpus.answers("val").start)
        with pytest.raises(ValueError, match="does not know the answers"):
            text.answers("train")


def test_a_document_of_nothing_else_goes_as_a_whole(corpus: Corpus) -> None:
    single = revise(corpus, "entities", ["Somebody sleeps.", "Nobody does."])
    found = revise(single, "entities", [], ["Somebody sleeps."])
    assert documents(found) == [*documents(corpus), "Nobody does."]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ways": ("moe+row",)}, "way of updating 'row'"),
        ({"ways": ("mo+rows",)}, "model 'mo'"),
        ({"ways": ("moe+rows", "knn_added")}, "'knn_added' needs a model: write MODEL"),
        ({"ways": ("ngram_added",)}, "none has a model"),
        ({"ways": ("moe+rows", "moe+rows")}, "listed twice"),
        ({"people": 3}, "update.people=3: at least 4"),
        ({"changes": 0}, "update.changes=0"),
        ({"steps": 0}, "update.steps=0"),
        ({"batch_size": 0}, "update.batch_size=0"),
        ({"weight_rates": ()}, "update.weight_rates"),
        ({"row_rates": (0.1, 0.0)}, "update.row_rates"),
    ],
)
def test_mistakes_are_named(changed: dict[str, object], message: str) -> None:
    check_update(UpdateConfig(ways=("moe+rows", "rag_added")), ["moe"])
    with pytest.raises(UserError, match=message):
        check_update(dataclasses.replace(UpdateConfig(), **changed), ["moe"])


def test_rows_are_asked_of_a_memory_alone() -> None:
    fine, wrong = 'update.ways=["engram+rows"]', 'update.ways=["engram+rows","moe+rows"]'
    check_study(find_study("brief", "smoke", assignments=[fine]))
    with pytest.raises(UserError, match=r"'moe\+rows' moves rows .*, which moe has not.*: engram$"):
        check_study(find_study("brief", "smoke", assignments=[wrong]))
    for key in ("engram_frozen_table=true", 'engram_storage="host"'):
        with pytest.raises(UserError, match=r"'engram\+rows' moves"):
            changed = [f"models.engram.architecture.{key}", fine]
            check_study(find_study("brief", "smoke", assignments=changed))


def test_people_are_wanted_before_anything_is_trained() -> None:
    ways = 'update.ways=["engram+finetune"]'
    with pytest.raises(UserError, match="4 or more; the text of engram has 3"):
        few = ["corpus.entities.n_entities=3", ways]
        check_study(find_study("brief", "smoke", assignments=few))
    with pytest.raises(UserError, match="the text of engram has none"):
        check_study(find_study("brief", "smoke", assignments=[ways], corpus=["mine.txt"]))


def test_a_loaded_model_of_other_tokens_is_refused_before_anything_runs(tmp_path: Path) -> None:
    for name, size in (("ours", 400), ("theirs", 330)):
        foreign_tokenizer(tmp_path / name, size)
        engram(layers=2, vocab_size=400).save_pretrained(tmp_path / name)
    folders = {name: str(tmp_path / name) for name in ("ours", "theirs")}
    study = find_study("brief", "smoke", tokenizer=folders["ours"])

    def told(way: str) -> StudyConfig:
        models = tuple(ModelSpec(name, path=path) for name, path in folders.items())
        return dataclasses.replace(study, models=models, update=UpdateConfig(ways=(way,)))

    check_study(told("ours+finetune"))
    for way in ("theirs+finetune", "theirs+ngram_added"):
        with pytest.raises(UserError, match=r"theirs \(.*theirs\) has another tokenizer than the"):
            check_study(told(way))


def test_tuned_rates_are_those_that_updates_start_from() -> None:
    study = solve(find_study("memory-systems", "smoke", n_seeds=1, tune=True))
    told = [node for node in graph(study) if node.stage == "update" and "train" in node.inputs]
    assert told and all(n.inputs["tune"] is n.inputs["train"].inputs["tune"] for n in told)


def test_memories_around_models_of_another_text_are_refused() -> None:
    study = find_study("memory-systems", "smoke", n_seeds=1)
    others = tuple(model for model in study.models if model.name.endswith("_people"))
    with pytest.raises(UserError, match=r"baselines.*cannot be compared on it"):
        check_study(dataclasses.replace(study, models=others, baselines=("engram_people+ngram",)))


def test_models_that_are_told_are_scored_on_their_own_text_alone(tmp_path: Path) -> None:
    study = find_study("memory-systems", "smoke", n_seeds=1)
    check_study(study)
    assert told_apart(study) == {"moe_people", "engram_people"}
    nodes = graph(solve(study))
    scored = {node.model for node in nodes if node.stage == "evaluate"}
    assert "engram" in scored and not scored & told_apart(study)
    told = [node for node in nodes if node.stage == "update"]
    assert {node.model for node in told} == set(study.update.ways) and len(told) == 13
    (text,) = {node.inputs["corpus"].key for node in told}
    (trained,) = [n for n in nodes if n.stage == "train" and n.model == "moe_people"]
    assert trained.inputs["corpus"].key == text
    for node in told:
        assert ("train" in node.inputs) == ("+" in node.model) and node.seed == 0
        assert node.config.train.tokens == 4 * SCALES["smoke"].train.tokens
    other = dataclasses.replace(study, update=UpdateConfig())
    with pytest.raises(UserError, match="cannot be compared on it"):
        check_study(other)


def test_a_users_own_text_has_no_facts_that_change(tmp_path: Path) -> None:
    study = find_study("memory-systems", "smoke", corpus=["mine.txt"])
    assert not study.update.ways and "moe_people" not in {model.name for model in study.models}


def test_what_is_left_out_of_a_study_is_told_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """What stands alone goes with the last model whose text and seeds it takes."""
    asked = ["plan", "memory-systems", "--scale", "smoke", "--json"]
    assert main([*asked, "--arms", "moe", "moe_people"]) == 0
    planned = capsys.readouterr().out
    assert "moe_people" in planned and "engram_people" not in planned
    both = find_study("memory-systems", "smoke", arms=["moe_people", "engram_people"])
    assert {"engram_people+finetune", "engram_people+rows", *ALONE} <= set(both.update.ways)
    assert not find_study("memory-systems", "smoke", arms=["moe"]).update.ways


def test_a_way_depends_on_what_it_looks_at_alone() -> None:
    def keys(**changes: object) -> dict[str, str]:
        study = find_study("memory-systems", "smoke", n_seeds=1)
        update = dataclasses.replace(study.update, **changes)
        study = solve(dataclasses.replace(study, update=update))
        return {str(n.model): n.key for n in graph(study) if n.stage == "update"}

    before = keys()
    for changes, kinds in (
        ({"weight_rates": (0.5,)}, {"finetune"}),
        ({"row_rates": (0.5,)}, {"rows"}),
        ({"steps": 3}, {"finetune", "rows"}),
        ({"batch_size": 3}, {"finetune", "rows"}),
        ({"people": 5}, set(WAYS)),
        ({"changes": 3}, set(WAYS)),
    ):
        after = keys(**changes)
        changed = {way.rpartition("+")[2] for way in before if after[way] != before[way]}
        assert changed == kinds, changes
