"""Lets lm-eval's code tasks run what a model wrote in the sandbox, and nowhere else.

HumanEval and MBPP ask ``evaluate`` for its metric ``code_eval`` (which would be downloaded);
CRUXEval brings a function of its own. Both are replaced in the task's module; prompts, stop
strings and the extraction of code stay lm-eval's. One thing is added: where a document has set-up
code for its tests, it runs between program and tests, as MBPP's authors have it
(arXiv:2108.07732). lm-eval leaves it out, and two of MBPP's programs cannot be tested without.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from engram_eval.errors import UserError
from engram_eval.evaluation.sandbox import Outcome, run_program

METRIC = "code_eval"
# The function that CRUXEval's module runs a program with: source, seconds -> whether it passed.
CHECKER = "check_correctness"
# Examples before a question have a program in the place of the tests.
_SET_UP = (
    "{% if test_setup_code is defined and is_fewshot is not defined %}"
    "{{test_setup_code}}\n{% endif %}"
)


class ContainedCodeEval:
    """Stands in for ``evaluate.load("code_eval")``.

    Args:
        run: runs one program, as ``sandbox.run_program`` does.
    """

    def __init__(self, run: Callable[[str], Outcome] = run_program) -> None:
        self.run = run

    def check(self, check_program: str, timeout: float = 3.0) -> bool:
        """Tell whether a program passes; in CRUXEval's form (the limits here are ours)."""
        return self.run(check_program).passed

    def compute(
        self,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        **_: object,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """Run every candidate with its test and return pass@k and the results.

        pass@k = mean of 1 - C(n - c, k) / C(n, k) for n candidates of which c are right
        (arXiv:2107.03374 eq. 1).

        Args:
            references: a test per problem.
            predictions: candidates per problem.
            k: how many candidates may be tried; values above the number of candidates are left out.
        """
        results: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for task, (test, candidates) in enumerate(zip(references, predictions, strict=True)):
            outcomes = [self.run(f"{candidate}\n{test}") for candidate in candidates]
            results[task] = [
                (number, {"task_id": task, "passed": o.passed, "result": o.reason})
                for number, o in enumerate(outcomes)
            ]
        counts = [(len(r), sum(found["passed"] for _, found in r)) for r in results.values()]
        scores = {
            f"pass@{most}": sum(pass_at_k(n, c, most) for n, c in counts) / len(counts)
            for most in k
            if counts and all(n >= most for n, _ in counts)
        }
        return scores, results


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the chance that one of k candidates, drawn from n of which c are right, is right."""
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


@contextmanager
def contained_load(metric: ContainedCodeEval) -> Iterator[None]:
    """Give ``metric`` to modules that load ``code_eval`` while the block runs."""
    import evaluate

    load = evaluate.load

    def ours(path: str, *args: Any, **kwargs: Any) -> Any:
        return metric if path == METRIC else load(path, *args, **kwargs)

    evaluate.load = ours
    try:
        yield
    finally:
        evaluate.load = load


def contain(config: dict[str, Any], metric: ContainedCodeEval) -> None:
    """Make a loaded task run programs with ``metric``, tests after the set-up code they need.

    Args:
        config: lm-eval's, with functions resolved; the tests' template is changed in place.
        metric: what to run them with.

    Raises:
        UserError: the task runs code in a way of its own.
    """
    contained = False
    for function in _functions(config):
        names: dict[str, Any] = function.__globals__
        for name, value in list(names.items()):
            if type(value).__name__ in ("CodeEval", "ContainedCodeEval"):
                names[name] = metric
                contained = True
        if CHECKER in names:
            names[CHECKER] = metric.check
            contained = True
    if not contained:
        raise UserError(
            f"task {config.get('task')!r} runs generated code in a way of its own, which the "
            "sandbox cannot contain; it is not run here"
        )
    if isinstance(config.get("doc_to_target"), str) and "test_list" in config["doc_to_target"]:
        config["doc_to_target"] = _SET_UP + config["doc_to_target"]


def _functions(config: Mapping[str, Any]) -> list[Callable[..., Any]]:
    """Return the functions by which a task scores."""
    metrics = [entry.get("metric") for entry in config.get("metric_list") or []]
    found = [*metrics, config.get("process_results")]
    return [function for function in found if hasattr(function, "__globals__")]
