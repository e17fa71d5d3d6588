"""The suites by name: every task is known, has a domain, and a twin in bits per byte."""

import pytest
import yaml

from engram_eval.errors import UserError
from engram_eval.evaluation.loading import check_tasks
from engram_eval.evaluation.stock_tasks import folders_of, stock_names
from engram_eval.evaluation.suites import (
    BOTH,
    SUITES,
    bpb_task,
    domain_of,
    expand,
    parse_request,
    suite_table,
    suite_tasks,
)
from engram_eval.evaluation.table import task_table
from engram_eval.paths import tasks_dir

PAPER = {
    "mmlu": 5, "mmlu_redux_generative": 5, "mmlu_pro": 5, "cmmlu": 5, "ceval-valid": 5,
    "agieval": 0, "arc_easy": 25, "arc_challenge": 25, "triviaqa": 5, "popqa": 15, "ccpm": 0,
    "bbh": 3, "hellaswag": 0, "piqa": 0, "winogrande": 5, "drop": 1, "race_middle": 5, "race": 5,
    "c3": 0, "humaneval": 0, "mbpp": 3, "cruxeval_input": 0, "cruxeval_output": 0, "gsm8k": 8,
    "mgsm_direct": 8, "minerva_math": 4, "pile_loss": None,
}  # fmt: skip


@pytest.mark.parametrize("suite", SUITES)
def test_every_task_is_known_and_has_a_domain_and_a_twin(suite: str) -> None:
    own = task_table()
    check_tasks([suite, f"{suite}_bpb"])
    for task in SUITES[suite].tasks:
        name = parse_request(task).name
        assert name in own or name in stock_names()
        assert domain_of(task) is not None and domain_of(task) == domain_of(bpb_task(task))
        assert name in BOTH or name.endswith("_bpb") or f"{name}_bpb" in own


def test_names_of_ours_are_not_lm_evals() -> None:
    assert not set(task_table()) & set(stock_names())
    assert not set(suite_table()) & (set(stock_names()) | set(task_table()))


def test_the_paper_suite_has_the_papers_examples() -> None:
    assert {r.name: r.shots for r in map(parse_request, SUITES["paper"].tasks)} == PAPER


def test_expansion_keeps_order_and_takes_each_task_once() -> None:
    assert expand(["math", "gsm8k", "pocket"]) == [*SUITES["math"].tasks, "pocket"]
    assert expand(["math_bpb"]) == ["gsm8k_bpb", "mgsm_direct_bpb", "minerva_math_bpb"]
    assert bpb_task("mmlu@5") == "mmlu_bpb@5" and bpb_task("context_copy") == "context_copy"
    assert suite_tasks("pocket") is None and suite_tasks("nothing_bpb") is None
    with pytest.raises(UserError, match="number of examples"):
        parse_request("gsm8k@")


def test_only_the_folders_that_are_needed_are_read() -> None:
    assert [path.name for path in folders_of(["arc_easy"])] == ["arc"]
    assert folders_of(["pocket", "math_addition"]) == []
    assert {path.name for path in folders_of(["pile_loss"])} == {"pile"}
    # The tag of a template, the members of a group in another folder.
    assert [path.name for path in folders_of(["mgsm_direct"])] == ["direct"]
    assert {"arc", "gsm8k"} <= {path.name for path in folders_of(["openllm"])}


@pytest.mark.parametrize("path", sorted((tasks_dir() / "bpb").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_twin_names_a_base_that_is_known(path) -> None:  # type: ignore[no-untyped-def]
    entry = yaml.safe_load(path.read_text())
    assert entry["task"] == path.stem and entry["include"] == "_bpb_yaml"
    base = entry["metadata"]["base"]
    assert base in stock_names() or base in task_table()
