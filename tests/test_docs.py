"""Every command that the documentation shows is run.

What answers at once runs here; the verbs of all others are run by the tests that are named, and by
``make test-slow`` each line is typed as it stands (test_docs_typed.py).
"""

import ast
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from engram_eval.cli import build_parser, main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# Who runs the verbs that need a trained model or minutes; each test calls the verb for real.
ELSEWHERE = {
    "bench": "test_bench.py",
    "claims": "test_claims.py",
    "compare": "test_end_to_end.py",
    "convert": "test_convert.py",
    "generate": "test_end_to_end.py",
    "mirror": "test_mirror.py",
    "plan": "test_cli.py",
    "publish": "test_publish.py",
    "report": "test_reports_comparison.py",
    "run": "test_end_to_end.py",
    "status": "test_status.py",
    "trace": "test_trace.py",
    "train": "test_end_to_end.py",
    "verify": "test_cli.py",
}
# What no test of this machine can run says so in the comment behind it.
NEEDS = ("network", "GPU", "Slurm", "hours", "data sets", "trained models", "after the line above")


class Shown(NamedTuple):
    """One line of a shell block: where it is, its words, and the comment behind it."""

    page: str
    words: list[str]
    comment: str


def shown() -> list[Shown]:
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in filter(str.strip, block.splitlines()):
                words = shlex.split(line, comments=True)
                comment = line.rpartition(" # ")[2].strip() if " # " in line else ""
                found.append(Shown(page.name, words, comment))
    return [line for line in found if line.words]


def ours(line: Shown) -> bool:
    return line.words[0].endswith("engram-eval")


def quick(words: list[str]) -> bool:
    """Tell whether a command answers at once and needs nothing that a study makes."""
    verb, rest = words[1], words[2:]
    published = any(word.startswith("reports/published/") for word in rest)
    return (
        verb == "list"
        or (verb == "plan" and ("--no-time" in rest or "--paper" in rest))
        or (verb == "trace" and "--random" in rest)
        or (verb in ("claims", "report") and published)
    )


QUICK = [line.words[1:] for line in shown() if ours(line) and quick(line.words)]


@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_quick_commands_run(words, tmp_path, monkeypatch, capsys):
    for name in ("reports", "tasks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("line", [s for s in shown() if ours(s)], ids=lambda s: " ".join(s.words))
def test_every_command_parses_and_somebody_runs_it(line):
    arguments = line.words[1:]
    assert build_parser().parse_args(arguments).verb == arguments[0]
    if not quick(line.words) and not any(need in line.comment for need in NEEDS):
        assert arguments[0] in ELSEWHERE, f"name the test that runs {arguments[0]}"
        test = ROOT / "tests" / ELSEWHERE[arguments[0]]
        assert f'"{arguments[0]}"' in test.read_text()


def test_other_programs_are_known():
    """Nothing is shown that neither a target of the Makefile nor a marked line covers."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for line in shown():
        if line.words[0] == "make":
            assert set(line.words[1:]) <= set(targets), line
        elif not ours(line) and line.page != "README.md":
            assert any(need in line.comment for need in NEEDS) or "venv" in " ".join(line.words), (
                line
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_python_is_python(page):
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        imported = [n for n in ast.walk(ast.parse(block)) if isinstance(n, ast.ImportFrom)]
        for node in imported:
            module = __import__(node.module or "", fromlist=["_"])
            assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


def test_named_files_exist():
    """Paths in backticks that look like ours are there, placeholders apart."""
    for page in PAGES:
        for path in re.findall(
            r"`((?:engram_eval|probes|reports|tasks|tests)/[\w./-]+)`", page.read_text()
        ):
            assert (ROOT / path).exists(), (page.name, path)


def test_citation_names_the_version():
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), flags=re.M)
    cited = (ROOT / "CITATION.cff").read_text()
    assert version is not None and f"version: {version[1]}\n" in cited
