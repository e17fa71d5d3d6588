"""The tasks as committed: well-formed, fair, right, held out, and what the generators make."""

import ast
import bisect
import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml

from engram_eval.config import CorpusConfig
from engram_eval.corpus import facts
from engram_eval.corpus.arithmetic import (
    answer,
    arithmetic_documents,
    problems,
    question,
)
from engram_eval.corpus.entities import entity_documents
from engram_eval.corpus.facts import facts_documents
from engram_eval.corpus.recall import recall_documents
from engram_eval.corpus.stdlib import stdlib_documents
from engram_eval.corpus.tokenizer import train_tokenizer
from engram_eval.evaluation.choices import Draft, fair
from engram_eval.evaluation.committed import LIBRARY, committed_items, library
from engram_eval.evaluation.loading import load_tasks
from engram_eval.files import read_jsonl
from engram_eval.paths import tasks_dir

DOMAINS = {"knowledge": 3, "code": 3, "math": 3, "context": 2}
FILES = {path.stem: path for path in sorted(tasks_dir().glob("*/data/*.jsonl"))}
DATA = {task: list(read_jsonl(path)) for task, path in FILES.items()}


def gold(item: dict) -> str:
    return item["choices"][item["gold"]]


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def of_domain(domain: str) -> list[tuple[str, dict]]:
    return [(t, i) for t, items in DATA.items() if t.startswith(domain) for i in items]


@pytest.mark.parametrize("domain", DOMAINS)
def test_each_domain_has_its_tasks_and_a_description(domain: str) -> None:
    folder = tasks_dir() / domain
    readme = (folder / "README.md").read_text()
    tasks = [task for task, path in FILES.items() if path.parent.parent == folder]
    named = {path.stem for path in folder.glob(f"{domain}_*.yaml")}
    assert named == set(tasks), (
        "YAML and committed items differ; `python -m engram_eval.evaluation.committed` writes items"
    )
    assert len(tasks) >= DOMAINS[domain]
    assert [task for task in tasks if f"`{task}`" not in readme] == [], "the README's table"
    group = yaml.safe_load((folder / f"pocket_{domain}.yaml").read_text())
    assert sorted(group["task"]) == sorted(tasks), f"pocket_{domain}.yaml names the tasks"


def test_every_task_loads_and_tells_domain_version_and_chance() -> None:
    loaded = load_tasks(("pocket",))["tasks"]
    assert set(loaded) == set(FILES)
    for name, task in loaded.items():
        metadata = task.config.metadata
        assert metadata["domain"] == FILES[name].parent.parent.name
        assert metadata["version"] >= 1
        sizes = {len(item["choices"]) for item in DATA[name]}
        assert {1 / size for size in sizes} == {metadata["chance"]}
        assert len(task.eval_docs) == len(DATA[name])


@pytest.mark.parametrize("task", DATA)
def test_items_are_unique_fair_and_balanced(task: str) -> None:
    items = DATA[task]
    assert 150 <= len(items) <= 400
    assert len({item["id"] for item in items}) == len(items)
    assert len({(item["query"], gold(item)) for item in items}) == len(items)
    positions = Counter(item["gold"] for item in items)
    assert max(positions.values()) - min(positions.values()) <= 1
    assert len({tuple(item["slices"]) for item in items}) == 1
    for item in items:
        wrong = tuple(choice for choice in item["choices"] if choice != gold(item))
        assert fair(Draft(item["query"], gold(item), wrong, {}))


@pytest.mark.parametrize("task", DATA)
@pytest.mark.parametrize("pick", [min, max])
def test_length_does_not_tell_the_right_choice(task: str, pick: Callable[[list[int]], int]) -> None:
    shares = []
    for item in DATA[task]:
        lengths = [len(choice) for choice in item["choices"]]
        best = [i for i, length in enumerate(lengths) if length == pick(lengths)]
        shares.append((item["gold"] in best) / len(best))
    chance = 1 / len(DATA[task][0]["choices"])
    assert sum(shares) / len(shares) < chance + 0.12


def test_a_token_ends_with_every_query() -> None:
    texts = [item["query"] + gold(item) for items in DATA.values() for item in items]
    tokenizer = train_tokenizer(texts, 1500)
    for items in DATA.values():
        for item in items:
            query = tokenizer.encode(item["query"]).ids
            for choice in item["choices"]:
                whole = tokenizer.encode(item["query"] + choice).ids
                assert whole[: len(query)] == query and len(whole) > len(query)


@cache
def regenerated() -> dict[Path, list[dict]]:
    return committed_items()


def need_the_same_library() -> None:
    quoted = json.loads((tasks_dir() / LIBRARY).read_text())
    if quoted != library():
        pytest.skip(f"the items quote the library of Python {quoted['python']}")


@pytest.mark.parametrize("task", DATA)
def test_the_generator_makes_the_committed_items(task: str) -> None:
    if task.startswith("code") or task == "context_reuse":
        need_the_same_library()
    assert regenerated()[FILES[task]] == DATA[task]


def test_another_seed_makes_other_items() -> None:
    from engram_eval.evaluation.items import load_generator

    for domain in ("math", "context", "knowledge"):
        made = load_generator(tasks_dir() / domain / "generate.py").items(CorpusConfig(seed=1))
        assert all(items != DATA[task] for task, items in made.items())
        assert set(made) == {task for task in DATA if task.startswith(domain)}


@cache
def training_text(domain: str) -> str:
    config = CorpusConfig()
    documents = {
        "math": arithmetic_documents,
        "facts": facts_documents,
        "entities": entity_documents,
        "recall": recall_documents,
    }[domain](config)
    return "\n".join(d.text for d in documents if d.split == "train") + "\n"


def test_problems_and_contexts_are_not_in_the_training_text() -> None:
    for domain, source in (("math", "math"), ("context", "recall")):
        text = training_text(source)
        lines = set(text.split("\n"))
        for item in [i for t, i in of_domain(domain) if t != "context_reuse"]:
            told = item["query"] + gold(item)
            assert "\n" not in told and told not in lines
            assert domain == "math" or told not in text


def test_problems_that_are_not_held_out_are_found_by_the_same_search() -> None:
    config = CorpusConfig()
    trained = problems("sequence", "train", config.seed, config.val_fraction)
    lines = set(training_text("math").split("\n"))
    told = [f"{question(p, 0)} {answer(p)}" in lines for p in trained]
    assert sum(told) > len(told) / 2


def test_facts_are_known_from_other_wordings_only() -> None:
    text = training_text("facts") + training_text("entities")
    # "South Sudan's money ..." is not a line about Sudan.
    starts = [0, *(found.end() for found in re.finditer(r"\n|\. ", text))]
    sentences = sorted(text[start : start + 200] for start in starts)
    for task, item in of_domain("knowledge"):
        told = item["query"] + gold(item)
        assert len(told) < 200
        after = bisect.bisect_left(sentences, told)
        assert not any(sentence.startswith(told) for sentence in sentences[after : after + 1])
        assert task != "knowledge_people" or gold(item).rstrip(".") in text


def test_code_and_prose_come_from_modules_that_are_held_out() -> None:
    need_the_same_library()
    texts: dict[str, list[str]] = defaultdict(list)
    for document in stdlib_documents(CorpusConfig().val_fraction):
        texts[document.split or ""].append(document.text)
    held_out, trained = "\n".join(texts["val"]), "\n".join(texts["train"])
    lines = set(trained.split("\n"))
    in_both = 0
    for item in [item for _, item in of_domain("code")] + DATA["context_reuse"]:
        whole = (item["query"] + gold(item)).rstrip("\n")
        assert whole in held_out
        in_both += lines.issuperset(whole.split("\n")[1:-1]) and whole in trained
    # Modules share boilerplate, such as a file's last lines.
    assert in_both <= 0.03 * len(of_domain("code"))


def test_sums_are_right() -> None:
    for item in DATA["math_addition"]:
        a, b = numbers(item["query"])
        assert numbers(gold(item)) == [a + b]
    for item in DATA["math_subtraction"]:
        a, b = numbers(item["query"])
        assert numbers(gold(item)) == [b - a if item["query"].startswith("take") else a - b]
    for item in DATA["math_comparison"]:
        assert numbers(gold(item)) == [max(numbers(item["query"]))]
        named = {n for n in numbers(" ".join(item["choices"])) if n in numbers(item["query"])}
        assert named == set(numbers(item["query"])) and len(item["choices"]) == 4
    for item in DATA["math_sequence"]:
        *_, last = asked = numbers(item["query"])
        step = asked[-1] - asked[-2] if len(asked) == 3 else 1
        assert numbers(gold(item)) == [last + step]


def test_rank_does_not_tell_the_right_number() -> None:
    for task in ("math_addition", "math_subtraction", "math_sequence"):
        ranks = Counter(sorted(item["choices"], key=int).index(gold(item)) for item in DATA[task])
        assert max(ranks.values()) < 0.4 * len(DATA[task])


def share(items: list[dict], score: Callable[[str], float]) -> float:
    """How often the choice with the greatest score is right; equals share a question."""
    shares = []
    for item in items:
        scores = [score(choice) for choice in item["choices"]]
        best = [place for place, found in enumerate(scores) if found == max(scores)]
        shares.append((item["gold"] in best) / len(best))
    return sum(shares) / len(shares)


ARITHMETIC = {
    "math_addition": r"\d+ (?:\+|plus) \d+ (?:=|is) (\d+)",
    "math_subtraction": r"\d+ (?:-|minus) \d+ (?:=|is) (\d+)",
    "math_sequence": r"(?:after|next to) \d+ (?:comes|is) (\d+)"
    r"|\d+, \d+, \d+, (\d+)|series \d+ \d+ \d+ then (\d+)",
    "math_comparison": r"(?:the larger of \d+ and \d+ is|max\(\d+, \d+\) =) (\d+)",
}


@pytest.mark.parametrize("task", ARITHMETIC)
def test_how_often_a_number_is_right_does_not_tell_the_right_one(task: str) -> None:
    lines = (re.fullmatch(ARITHMETIC[task], line) for line in training_text("math").split("\n"))
    right = Counter(int(next(filter(None, line.groups()))) for line in lines if line)
    assert right.total() > 3_000
    for items in ([i for i in DATA[task] if i["slices"].get("distance") == "far"], DATA[task]):
        if items:
            assert share(items, lambda choice: right[int(choice)]) < 0.25 + 0.12
            assert share(items, lambda choice: int(choice)) < 0.25 + 0.12


def test_items_of_one_problem_share_a_source() -> None:
    for task in ARITHMETIC:
        swapped = task in ("math_addition", "math_comparison")
        asked = defaultdict(set)
        for item in DATA[task]:
            read = numbers(item["query"])
            asked[tuple(sorted(read) if swapped else read)].add(item["source"])
        assert all(len(sources) == 1 for sources in asked.values())
        assert len(set.union(*asked.values())) == len(asked) < len(DATA[task])


def test_what_is_common_among_people_told_as_often_does_not_tell() -> None:
    text = training_text("entities")
    for bucket in ("low", "mid", "high"):
        items = [i for i in DATA["knowledge_people"] if i["slices"]["exposures"] == bucket]
        assert len(items) >= 10
        assert share(items, lambda choice: text.count(choice.rstrip("."))) < 0.25 + 0.2


def test_people_are_not_asked_what_training_told_in_the_same_words_from_the_name_on() -> None:
    text = training_text("entities")
    name = re.compile(r"[A-Z][a-z]+ [A-Z][a-z]+ [A-Z][a-z]+")
    for item in DATA["knowledge_people"]:
        asked = item["query"] + gold(item).rstrip(".")
        found = name.search(asked.removeprefix("The ").removeprefix("By trade, "))
        assert found is not None
        assert asked[asked.index(found.group()) :] not in text


def test_facts_are_those_of_the_tables_and_wrong_choices_are_not() -> None:
    table: dict[str, dict[str, str]] = defaultdict(dict)
    for path in facts.TABLES.glob("*.csv"):
        for relation, subject, value in csv.reader(path.open(encoding="utf-8")):
            table[relation][subject] = value
    for task, item in of_domain("knowledge"):
        if task == "knowledge_people":
            continue
        known = table[item["slices"]["relation"]]
        subjects = [s for s in known if re.search(rf"(?<!\w){re.escape(s)}(?!\w)", item["query"])]
        truth = known[max(subjects, key=len)]
        assert gold(item).strip(" ").removesuffix(".") == truth
        wrong = [c for c in item["choices"] if c != gold(item)]
        assert all(c.strip(" ").removesuffix(".") in known.values() for c in wrong)


def test_context_alone_answers_the_context_tasks() -> None:
    for item in DATA["context_recall"]:
        told, asked = item["query"].removeprefix("Pairs: ").split(". Asked: ")
        pairs = dict(pair.split() for pair in told.split(", "))
        assert gold(item).strip() == pairs[asked.split(", ")[-1]]
        assert all(choice.strip() in pairs.values() for choice in item["choices"])
    for item in DATA["context_copy"]:
        told, again = item["query"].removeprefix("Say: ").split("; ")
        assert told.startswith(again + gold(item))
        assert all(choice.strip() in told.split() for choice in item["choices"])
    for item in DATA["context_reuse"]:
        words = re.findall(r"[a-z]+", item["query"])
        assert [re.findall(r"[a-z]+", choice)[-1] in words for choice in item["choices"]] == [
            choice == gold(item) for choice in item["choices"]
        ]
    for item in DATA["context_presence"]:
        told = item["query"].removeprefix("Pairs: ").removesuffix(". Asked:")
        keys = {pair.split()[0] for pair in told.split(", ")}
        assert [choice.strip() in keys for choice in item["choices"]] == [
            choice == gold(item) for choice in item["choices"]
        ]


@pytest.mark.parametrize("task", ["context_recall", "context_copy"])
def test_how_often_a_choice_was_told_does_not_tell_the_right_one(task: str) -> None:
    for item in DATA[task]:
        told = Counter(re.findall(r"[a-z]+", item["query"]))
        assert len({told[choice.strip()] for choice in item["choices"]}) == 1


def parses(line: str) -> bool:
    """Whether a line is Python anywhere: alone, as a block, after ``if`` or ``try``."""
    before = ("", "if x: pass\n", "try: pass\n")
    after = ("", " pass", "\ndef f(): pass")
    frames = [f"{b}{{}}{a}" for b in before for a in after]
    return any(_compiles(frame.replace("{}", line.strip())) for frame in frames)


def _compiles(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_only_the_right_line_is_python() -> None:
    for item in DATA["code_syntax"]:
        lines = [choice.rstrip("\n").rsplit("\n", 1)[-1] for choice in item["choices"]]
        assert [parses(line) for line in lines] == [
            index == item["gold"] for index in range(len(lines))
        ]


def test_names_occur_before_and_attributes_belong_to_the_module() -> None:
    for item in DATA["code_names"]:
        names = [re.findall(r"\w+", choice)[-1] for choice in item["choices"]]
        assert all(re.search(rf"\b{name}\b", item["query"]) for name in names)
    for item in DATA["code_attribute"]:
        module = re.findall(r"\w+", item["query"])[-1]
        wrong = [choice for choice in item["choices"] if choice != gold(item)]
        assert not any(f"{module}{choice}" in item["query"] for choice in wrong)


def test_committed_data_are_small() -> None:
    assert sum(path.stat().st_size for path in FILES.values()) < 1_500_000
