"""Real benchmark items, where they are: every benchmark runs, canonical programs all pass."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from mirror_tools import QUIET, KnowingLM

from engram_eval.errors import UserError
from engram_eval.evaluation.code_eval import ContainedCodeEval
from engram_eval.evaluation.loading import check_data, load_tasks
from engram_eval.evaluation.mirror_build import build_mirror
from engram_eval.evaluation.mirror_check import check_mirror
from engram_eval.evaluation.mirror_spec import read_spec
from engram_eval.evaluation.runner import run_tasks
from engram_eval.evaluation.sandbox import check_sandbox
from engram_eval.evaluation.scores import task_rows

DATA = Path(
    os.environ.get(
        "ENGRAM_EVAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data" / "eval"
    )
)
CODE = {"openai/openai_humaneval", "google-research-datasets/mbpp", "cruxeval-org/cruxeval"}
BENCHMARKS = [
    *("gsm8k", "mmlu", "arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande", "boolq"),
    *("openbookqa", "commonsense_qa", "lambada_openai", "triviaqa", "truthfulqa_mc1", "popqa"),
    *("truthfulqa_mc2", "truthfulqa_gen", "bbh", "blimp", "humaneval", "mbpp", "nq_open"),
    *("cruxeval_input", "cruxeval_output"),
]

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not here")


class CanonicalLM(KnowingLM):
    """Writes a programming problem's own solution, or something else."""

    def __init__(self, right: bool = True) -> None:
        super().__init__()
        self.right = right

    def generate_until(self, requests: list[Instance], **_: Any) -> list[str]:
        return [self._solution(request.doc) if self.right else "?" for request in requests]

    def _solution(self, doc: dict[str, Any]) -> str:
        if "output" in doc:
            return f"[ANSWER]\nassert f({doc['input']}) == {doc['output']}\n"
        return str(doc.get("canonical_solution") or doc["code"])


@pytest.fixture(scope="module")
def code_mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        check_sandbox()
    except UserError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    spec = read_spec(Path("eval-pack"))
    sets = tuple(source for source in spec.sets if source.repo in CODE)
    out = tmp_path_factory.mktemp("code") / "mirror"
    return build_mirror(dataclasses.replace(spec, sets=sets), DATA, out, QUIET)


def scores(mirror: Path, out: Path, lm: KnowingLM, tasks: list[str], limit: int) -> dict[str, Any]:
    samples = run_tasks(lm, load_tasks(tasks, mirror=mirror), out, QUIET, limit)
    return {
        task: next(r.value for r in task_rows(task, {}, found) if r.metric == "pass_at_1")
        for task, found in samples.items()
    }


def test_some_canonical_programs_pass_and_others_do_not(code_mirror: Path, tmp_path: Path) -> None:
    tasks = ["humaneval", "mbpp", "cruxeval_output", "cruxeval_input"]
    right = scores(code_mirror, tmp_path / "right", CanonicalLM(), tasks, 2)
    assert right == dict.fromkeys(tasks, 1.0)
    wrong = scores(code_mirror, tmp_path / "wrong", CanonicalLM(right=False), tasks[:2], 2)
    assert wrong == dict.fromkeys(tasks[:2], 0.0)


@pytest.mark.slow
def test_all_canonical_programs_pass(code_mirror: Path, tmp_path: Path) -> None:
    found = scores(code_mirror, tmp_path, CanonicalLM(), ["humaneval", "mbpp"], 0)
    assert found == {"humaneval": 1.0, "mbpp": 1.0}


def test_tests_run_after_the_set_up_code_that_they_need(code_mirror: Path) -> None:
    task = load_tasks(["mbpp"], mirror=code_mirror)["tasks"]["mbpp"]
    docs = task.eval_docs
    (needy,) = [doc for doc in docs if doc["test_setup_code"]]
    tests = task.doc_to_target(needy)
    program = ContainedCodeEval()
    assert program.check(f"{needy['code']}\n{tests}")
    # Without it, in lm-eval's form, the authors' own program fails.
    assert not program.check(f"{needy['code']}\n{tests.removeprefix(needy['test_setup_code'])}")
    assert task.doc_to_target(docs[0]) == "\n" + "\n".join(docs[0]["test_list"])
    # Neither the question nor the examples before it say anything about it.
    prompt = task.fewshot_context(needy, 3)
    assert "root1 = Node(1)" not in prompt and prompt.count("[DONE]") == 3


def test_code_tasks_stop_where_there_is_no_sandbox(
    code_mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise UserError("no sandbox")

    monkeypatch.setattr("engram_eval.evaluation.task_manager.check_sandbox", missing)
    with pytest.raises(UserError, match="no sandbox"):
        check_data(["humaneval"], str(code_mirror))
    # The right answers can be measured all the same: nothing is run for them.
    docs = load_tasks(["humaneval_bpb"], mirror=code_mirror)["tasks"]["humaneval_bpb"].eval_docs
    assert docs[0]["answer"].startswith("    for idx, elem in enumerate(numbers):")
    assert docs[0]["prompt"].startswith("from typing import List")


@pytest.mark.slow
def test_every_benchmark_runs_end_to_end(tmp_path: Path) -> None:
    mirror = build_mirror(read_spec(Path("eval-pack")), DATA, tmp_path / "mirror", QUIET)
    verdicts = check_mirror(mirror, [*BENCHMARKS, "small"], QUIET)
    assert {v.task: v.remark for v in verdicts if not v.runs} == {}
    samples = run_tasks(KnowingLM(), load_tasks(BENCHMARKS, mirror=mirror), tmp_path, QUIET, 2)
    assert set(samples) == set(BENCHMARKS)
    for task, found in samples.items():
        assert [row for row in task_rows(task, {}, found) if row.value is not None], task
