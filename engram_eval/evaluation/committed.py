"""The items that the project carries: those of the default corpus, for stock lm-eval.

``python -m engram_eval.evaluation.committed`` writes them anew. Studies do not use them: they
make their own, which fit their corpus.
"""

import platform
from pathlib import Path
from typing import Any

from engram_eval.config import CorpusConfig
from engram_eval.corpus.stdlib import stdlib_fingerprint
from engram_eval.evaluation.items import find_generators, load_generator
from engram_eval.files import write_json, write_jsonl
from engram_eval.paths import tasks_dir

LIBRARY = "library.json"


def library() -> dict[str, str]:
    """Name the running standard library; items that quote it differ from version to version."""
    return {"python": platform.python_version(), "stdlib_sha256": stdlib_fingerprint()}


def committed_items() -> dict[Path, list[dict[str, Any]]]:
    """Return the items of every task for the default corpus, by the file they belong in."""
    return {
        path.parent / "data" / f"{task}.jsonl": items
        for path in find_generators(tasks_dir()).values()
        for task, items in load_generator(path).items(CorpusConfig()).items()
    }


def write_committed() -> None:
    """Write all items, and which library those of code and prose quote."""
    for path, items in committed_items().items():
        write_jsonl(path, items)
    write_json(tasks_dir() / LIBRARY, library())


if __name__ == "__main__":
    write_committed()
