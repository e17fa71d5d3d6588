"""Imports run one way: reports -> records; probes -> models, adapters, ...; nothing back.

What is found by name (``stages.resolve``) counts as imported.
"""

import ast
import re
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
    "engram_eval.arrays",
    "engram_eval.bench.arms",
    "engram_eval.config",
    "engram_eval.config_json",
    "engram_eval.corpus",
    "engram_eval.environment",
    "engram_eval.errors",
    "engram_eval.evaluation.questions",
    "engram_eval.files",
    "engram_eval.models",
    "engram_eval.own_module",
    "engram_eval.progress",
    "engram_eval.records",
    "engram_eval.stage_config",
    "engram_eval.analysis.stats",
}
REPORTS_MAY = {
    *("engram_eval.errors", "engram_eval.files", "engram_eval.records"),
    "engram_eval.analysis.arms",
}
"""What is recorded, how it is read and written, and what its arms are; nothing that computes."""
LAYERS = (
    "arrays errors models paths progress quiet stages tensor_cores threads allocator",
    "corpus.tokenizer_file files",
    "config_json records environment locks listing model_folder decompressed own_module",
    "analysis.arms analysis.stats analysis.contrasts parallel.launched parallel.folders",
    "config overrides parallel.ranks formats",
    "corpus arm_corpus costs scales stage_config",
    "adapters node variants",
    "evaluation tokenizer_use generate tracing variant_table",
    "baselines training",
    "studies updates parallel bench",
    "claims check study",
    "analysis running publish",
    "api verbs",
    "cli",
    "__main__",
)
"""What is in ``engram_eval``, lowest first: a module imports of its package and of earlier lines.

A module may stand lower than its package."""
LEVELS = {f"engram_eval.{name}": n for n, line in enumerate(LAYERS) for name in line.split()}
LATE = {
    "engram_eval/__init__.py": "",
    "engram_eval/stages.py": "",
    "engram_eval/listing.py": "",
    "engram_eval/bench/registry.py": "probes.bench",
    "engram_eval/training/stage.py": "engram_eval.parallel.loop",
}
"""Who may find by name what it must not import, and what (empty: all).

Stages and pages run what lies above them, lists show it, one bench times a probe, and a training by
several processes is one way of training.
"""
TARGET = re.compile(r"((?:engram_eval|probes|reports)(?:\.\w+)+):(\w*)")


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports or finds by name, also inside functions."""
    late = LATE.get(path.relative_to(ROOT).as_posix())
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = TARGET.fullmatch(node.value)
            if found and late not in ("", found[1]):
                names |= {f"{found[1]}.{found[2]}", found[1]}
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


def layer(name: str) -> str:
    """Return the entry of ``LEVELS`` that a module, or a name in it, belongs to."""
    parts = name.split(".")
    found = [known for n in (3, 2) if (known := ".".join(parts[:n])) in LEVELS]
    assert found, f"{name}: give it a place in LAYERS"
    return found[0]


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.is_relative_to(ROOT / "engram_eval")],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_lower_layers_import_nothing_of_higher_ones(path: Path) -> None:
    names = imported(path)
    # Of `from engram_eval.analysis import stats` the module counts, not what it lies in.
    used = {name for name in names if not any(n.startswith(f"{name}.") for n in names)}
    used = {layer(name) for name in used if name.startswith("engram_eval.")}
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if module == "engram_eval.__init__":
        assert not used
        return
    own = layer(module)
    assert not {name for name in used - {own} if LEVELS[name] >= LEVELS[own]}


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
