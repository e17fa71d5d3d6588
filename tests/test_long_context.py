"""Long contexts: what is asked can be read in them, within the length, and is fair."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_eval.errors import UserError
from engram_eval.evaluation.long_context import MAKERS, in_turns, long_items
from engram_eval.evaluation.long_dataset import load_long, process_fragment
from engram_eval.evaluation.repeats import FRAGMENT, KNOWN, repeat_items
from engram_eval.files import write_json
from engram_eval.paths import tasks_dir

LENGTHS, LOADS = (120, 400), (1, 2, 4, 8)


def words(text: str) -> int:
    return len(text.split())


def made(task: str) -> list[dict]:
    return long_items(task, LENGTHS, LOADS, 3, words)


def gold(item: dict) -> str:
    return item["choices"][item["gold"]].strip()


@pytest.mark.parametrize("task", MAKERS)
def test_items_fill_their_length_and_are_fair(task: str) -> None:
    items = made(task)
    assert {item["slices"]["length"] for item in items} == {"120", "400"}
    loads = {"1"} if task == "needle_single" else {"1", "2", "4", "8"}
    assert {item["slices"]["load"] for item in items} == loads
    assert items == made(task) and len({item["id"] for item in items}) == len(items)
    for item in items:
        length = int(item["slices"]["length"])
        assert length - 40 < words(item["query"]) <= length - 16
        assert len(set(item["choices"])) == 4
        # Every wrong answer stands in the context too, but for those of a single needle.
        told = [choice for choice in item["choices"] if choice.strip() in item["query"]]
        assert told == ([f" {gold(item)}"] if task == "needle_single" else item["choices"])
    positions = [item["gold"] for item in items]
    assert {positions.count(p) for p in range(3)} == {len(items) // 3}


def needles(query: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"magic numbers for ([a-z ]+) is: (\d+)\.", query):
        found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize(
    "task", ["needle_single", "needle_multikey", "needle_multivalue", "needle_multiquery"]
)
def test_needles_are_solved_by_reading(task: str) -> None:
    for item in made(task):
        told = needles(item["query"])
        asked, answered = re.search(
            r"numbers for ([a-z, ]+) mentioned in the provided text are(.*)$", item["query"]
        ).groups()
        keys = [key.strip().removeprefix("and ") for key in asked.split(",")]
        wanted = [value for key in keys for value in told[key]]
        given_already = re.findall(r"\d+", answered)
        assert sorted([*given_already, gold(item)]) == sorted(wanted)
        load = int(item["slices"]["load"])
        assert len(wanted) == (load if task in ("needle_multivalue", "needle_multiquery") else 1)
        assert task != "needle_single" or len(told) == 1


def test_variables_are_solved_by_following_them() -> None:
    for item in made("variable_tracking"):
        holds: dict[str, str] = {}
        for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", item["query"]):
            # Each step comes after the one that it follows.
            holds[name] = holds.get(source, source)
        value = re.search(r"assigned the value (\d+)", item["query"]).group(1)
        told = item["query"].split("Answer: ")[1].rstrip(",").split(", ")
        assert {name for name, held in holds.items() if held == value} == {*told, gold(item)}


def test_recall_is_solved_by_looking_up() -> None:
    for item in made("long_recall"):
        context, asked = item["query"].split(" Asked: ")
        key = asked.split(", ")[-1]
        assert f" {key} {gold(item)}." in context
        pairs = asked.split(", ")[:-1]
        assert all(f" {pair}." in context for pair in pairs)
        assert not any(pair.startswith(f"{key} ") for pair in pairs)
        # What was asked for before is no choice: it could be left out.
        answered = {pair.split(" ", 2)[2] for pair in pairs}
        choices = {choice.strip() for choice in item["choices"]}
        assert len(choices) == 4 and not answered & choices
        assert all(f" {choice}." in context for choice in choices)


@settings(max_examples=15)
@given(st.integers(90, 700), st.integers(1, 3))
def test_any_length_in_any_tokens(length: int, per_word: int) -> None:
    def size(text: str) -> int:
        return per_word * words(text)

    for item in long_items("needle_single", (length,), (1,), 1, size):
        assert size(item["query"]) + 16 <= length
        # Each further sentence of noise would be one too many.
        assert size(item["query"]) + 16 + 5 * per_word > length


def test_a_few_items_are_of_every_kind() -> None:
    """Whoever asks for the first ten must not get the shortest contexts alone."""
    items = made("long_recall")
    kinds = len(LENGTHS) * len(LOADS)
    for turn in (items[:kinds], items[-kinds:]):
        told = {(item["slices"]["length"], item["slices"]["load"]) for item in turn}
        assert len(told) == kinds
    repeats = repeat_items(KNOWN, (100, 200), (1, 2), 3, words)
    assert {(i["slices"]["length"], i["slices"]["repeat"]) for i in repeats[:8]} == {
        (length, f"{kind} {n}") for length in ("100", "200") for kind in ("static", "fresh")
        for n in (1, 2)
    }  # fmt: skip
    assert in_turns([[1, 2, 3], [4], [], [5, 6]]) == [1, 4, 5, 2, 6, 3]


def test_fragments_come_back_as_often_as_it_says() -> None:
    texts = [*KNOWN, "too short"]
    items = repeat_items(texts, (100,), (1, 2, 4), 5, words)
    assert len(items) == 3 * 5 * 2
    for static, fresh in zip(items[::2], items[1::2], strict=True):
        assert (static["slices"]["fragment"], fresh["slices"]["fragment"]) == ("static", "fresh")
        assert static["source"] == fresh["source"]
        parts = [gold(static), gold(fresh)]
        assert sorted(parts[0].split()) == sorted(parts[1].split())
        assert len(parts[0].split()) == FRAGMENT and any(parts[0] in text for text in texts)
        for item, part in zip((static, fresh), parts, strict=True):
            assert item["query"].count(part) == int(item["slices"]["occurrence"]) - 1
        # The same noise around both.
        assert static["query"].replace(parts[0], "") == fresh["query"].replace(parts[1], "")


def test_a_fragment_is_scored_by_its_cost() -> None:
    doc = {"choices": [" a b"]}
    assert process_fragment(doc, [(-3.5, True)]) == {"acc": 1.0, "bits_per_byte": (-3.5, 4)}


def test_the_tokenizer_is_the_studys_or_named(tmp_path: Path) -> None:
    source = str(tasks_dir() / "long_context" / "needle_single.yaml")
    with pytest.raises(UserError, match="name a tokenizer"):
        load_long(source)
    write_json(tmp_path / "none.json", {})
    with pytest.raises(UserError, match="name a tokenizer"):
        load_long(source, data_dir=str(tmp_path))


def test_lm_eval_runs_them_with_a_named_tokenizer(tmp_path: Path) -> None:
    from lm_eval import evaluate
    from lm_eval.tasks import TaskManager

    from engram_eval.corpus.tokenizer import save_tokenizer, train_tokenizer
    from tests.evaluation_tools import PlantedLM

    save_tokenizer(train_tokenizer(KNOWN, 300), tmp_path)
    metadata = {"tokenizer": str(tmp_path), "lengths": [900], "loads": [2], "count": 2}
    folder = str(tasks_dir())
    manager = TaskManager(include_path=[folder], include_defaults=False, metadata=metadata)
    loaded = dict(manager.load(["long_context"]))
    items = [doc for task in loaded["tasks"].values() for doc in task.eval_docs]
    results = evaluate(PlantedLM(items, 1.0), loaded, bootstrap_iters=0)
    assert len(results["samples"]) == 7 and results["groups"]
    assert all(s["acc"] == 1.0 for found in results["samples"].values() for s in found)
    slices = results["samples"]["repeated_fragments"][0]["doc"]["slices"]
    assert slices == {
        "length": "900",
        "occurrence": "2",
        "fragment": "static",
        "repeat": "static 2",
    }


def test_one_key_asked_for_is_not_counted_among_several() -> None:
    items = long_items("needle_multiquery", (400,), (1, 2, 4), 3, lambda text: len(text.split()))
    assert {item["slices"]["load"] for item in items} == {"1", "2", "4"}
    for item in items:
        # The question names its keys, with "and" before the last one if there are more.
        named = item["query"].rsplit("magic numbers for ", 1)[1].split(" mentioned")[0]
        assert item["slices"]["asked"] == ("several" if " and " in named else "one")
