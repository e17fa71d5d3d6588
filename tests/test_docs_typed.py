"""Every command of the documentation is typed as it stands, where a reader would stand.

A study that takes an hour is played by the smallest one, with few tokens; what a line says that it
needs (a network, hours, the paper's data) is not typed here.
"""

import gzip
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_docs import NEEDS, PAGES, ROOT, Shown, ours, shown

# Long verbs get these, so that a line takes seconds.
SHORT = ["train.tokens=4096", "evaluate.limit=4", "probe.probes=[]", "probe.tokens=512"]
LINES = [line for line in shown() if ours(line) and not any(n in line.comment for n in NEEDS)]
QUESTION = {"query": "Question: Which is hot?", "choices": ["ice", "fire", "snow", "rain"]}


def typed(line: Shown) -> list[str]:
    """Return the words of a line; the smallest study stands in where one would be trained."""
    verb, *words = line.words[1:]
    if verb in ("run", "train"):
        words = ["smoke" if word in ("quick", "main") else word for word in words]
        scale = words.index("--scale") if "--scale" in words else len(words)
        words = [*words[:scale], *words[scale + 2 :], "--workers", "2"]
        if "--set" not in words:
            words.append("--set")
        given = words.index("--set") + 1
        words[given:given] = SHORT
    return [verb, *words]


def call(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    code = "import sys; from engram_eval.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with finished studies and what a reader brings: text, a study, data sets."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "tasks").symlink_to(ROOT / "tasks")
    shutil.copytree(ROOT / "reports" / "published", desk / "reports" / "published")
    few = ["train.tokens=8192", "evaluate.limit=4", "probe.tokens=1024"]
    done = call(desk, ["run", "smoke", "--out", "runs/quick", "--set", *few])
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("smoke", "main-tiny"):
        shutil.copytree(desk / "runs/quick", desk / "runs" / name, symlinks=True)
    _bring(desk)
    return desk


def _bring(desk: Path) -> None:
    texts = ["A page about the capital of France and of other countries.\n" * 40] * 30
    (desk / "my_texts").mkdir()
    for number, text in enumerate(texts):
        (desk / "my_texts" / f"{number}.txt").write_text(f"Page {number}. {text}")
    with gzip.open(desk / "notes.jsonl.gz", "wt") as notes:
        notes.writelines(json.dumps({"text": f"Note {n}. {t}"}) + "\n" for n, t in enumerate(texts))
    study = json.loads((desk / "runs/quick/study.json").read_text()) | {"name": "mine"}
    lines = [f"{key} = {toml(value)}\n" for key, value in study.items() if value is not None]
    (desk / "my_study.toml").write_text("".join(lines))
    page = (ROOT / "docs/benchmarks.md").read_text()
    shown = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    (sets,) = (block for block in shown if "[[sets]]" in block)
    (desk / "my_sets.toml").write_text(sets)
    (desk / "my_tasks" / "data").mkdir(parents=True)
    shutil.copy(ROOT / "tasks" / "_choice_yaml", desk / "my_tasks")
    (desk / "my_tasks" / "my_task.yaml").write_text("include: _choice_yaml\ntask: my_task\n")
    item = json.dumps({**QUESTION, "choices": [" ice", " fire"], "gold": 1})
    (desk / "my_tasks" / "data" / "my_task.jsonl").write_text(f"{item}\n" * 3)
    (desk / "downloads").mkdir()
    with lzma.open(desk / "downloads" / "arc_easy.jsonl.xz", "wt") as items:
        items.writelines(json.dumps({**QUESTION, "gold": 1}) + "\n" for _ in range(5))
    vectors = ROOT.parent / "shared" / "reference" / "engram_module_hc4.safetensors"
    if vectors.exists():
        (desk / "vectors.safetensors").symlink_to(vectors)
        (desk / "tokenizer.json").symlink_to(vectors.with_name("tokenizer.json"))


def toml(value: Any) -> str:
    """Write plain data as TOML, which has no null."""
    if isinstance(value, dict):
        parts = [f"{json.dumps(k)} = {toml(v)}" for k, v in value.items() if v is not None]
        return f"{{{', '.join(parts)}}}"
    return f"[{', '.join(map(toml, value))}]" if isinstance(value, list) else json.dumps(value)


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line.words[1:])[:90])
def test_the_line_works(line: Shown, desk: Path) -> None:
    if "vectors.safetensors" in line.words and not (desk / "vectors.safetensors").exists():
        pytest.skip("no reference vectors beside the repository")
    done = call(desk, typed(line))
    # A check of a mirror with one set of many says so by its exit status.
    assert done.returncode == (1 if line.words[1:3] == ["mirror", "check"] else 0), done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_works(page: Path, desk: Path) -> None:
    """Blocks of one page follow on each other, so they run in one process."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    if not blocks:
        pytest.skip("no Python on this page")
    # Studies use processes, which import the script anew.
    script = "\n".join(blocks).replace("\n", "\n    ")
    (desk / "shown.py").write_text(f"if __name__ == '__main__':\n    {script}\n")
    done = subprocess.run(
        [sys.executable, "shown.py"], cwd=desk, capture_output=True, text=True, timeout=900,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
