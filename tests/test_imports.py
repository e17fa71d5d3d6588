"""Imports run one way: reports -> records; probes -> models, adapters, ...; nothing back."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = [
    path
    for folder in ("engram_eval", "probes", "reports")
    for path in (ROOT / folder).rglob("*.py")
]
PROBES_MAY = {
    "engram_eval.adapters",
    "engram_eval.allocator",
    "engram_eval.bench.arms",
    "engram_eval.config",
    "engram_eval.config_json",
    "engram_eval.corpus",
    "engram_eval.environment",
    "engram_eval.errors",
    "engram_eval.evaluation.questions",
    "engram_eval.models",
    "engram_eval.progress",
    "engram_eval.records",
    "engram_eval.stage_config",
    "engram_eval.analysis.stats",
}
REPORTS_MAY = {"engram_eval.errors", "engram_eval.records"}


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports anywhere, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def ours(path: Path, *tops: str) -> set[str]:
    return {name for name in imported(path) if name.split(".")[0] in tops}


def within(name: str, allowed: set[str]) -> bool:
    return name == "engram_eval" or any(f"{name}.".startswith(f"{a}.") for a in allowed)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    top = path.relative_to(ROOT).parts[0]
    if top == "engram_eval":
        assert not ours(path, "probes", "reports", "tasks")
    elif top == "probes":
        assert not ours(path, "reports", "tasks")
        assert all(within(name, PROBES_MAY) for name in ours(path, "engram_eval"))
    else:
        assert not ours(path, "probes", "tasks", "torch", "transformers", "scipy")
        assert all(within(name, REPORTS_MAY) for name in ours(path, "engram_eval"))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "engram_eval" / "models").glob("*.py")), ids=lambda p: p.name
)
def test_model_code_can_travel_with_the_weights(path: Path) -> None:
    assert not ours(path, "engram_eval", "probes", "reports")


def test_records_and_reports_need_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, engram_eval.records, reports.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
