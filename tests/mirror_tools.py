"""A small mirror with made-up items in the shape of the hub's, and a model that knows answers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from engram_eval.evaluation.mirror_build import build_mirror
from engram_eval.evaluation.mirror_spec import read_spec
from engram_eval.progress import Reporter

QUIET = Reporter(quiet=True)

ARC = [
    {"q": f"What is {n} plus one?", "options": ["a cow", str(n + 1), "blue"], "right": 1}
    for n in range(6)
]
GSM = [
    {"question": f"Ann has {n} apples and gets {n}.", "answer": f"{n} + {n}\n#### {2 * n}"}
    for n in range(1, 9)
]
MMLU = [
    {"subject": s, "question": f"{s} {n}?", "choices": ["w", "x", "y", "z"], "answer": n % 4}
    for s, count in (("virology", 5), ("anatomy", 3))
    for n in range(count)
]
SPEC = """
about = "made up"
[[sets]]
repo = "allenai/ai2_arc"
config = "ARC-Easy"
split = "test"
files = ["arc.jsonl"]
rows = 6
note = "made up"
[sets.columns]
question = "q"
choices = "{'text': options, 'label': ['A', 'B', 'C']}"
answerKey = "'ABC'[right]"
[[sets]]
repo = "openai/gsm8k"
config = "main"
split = "test"
files = ["gsm.jsonl"]
where = "row_number < 4"
[[sets]]
repo = "openai/gsm8k"
config = "main"
split = "train"
files = ["gsm.jsonl"]
where = "row_number >= 2"
"""


def write_sources(folder: Path, spec: str = SPEC) -> Path:
    """Write the source files and a specification; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("arc", ARC), ("gsm", GSM), ("mmlu", MMLU)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    path = folder / "spec.toml"
    path.write_text(spec)
    return path


def make_mirror(folder: Path, spec: str = SPEC) -> Path:
    path = write_sources(folder / "sources", spec)
    return build_mirror(read_spec(path), path.parent, folder / "mirror", QUIET)


class KnowingLM(LM):
    """Finds what it was told likely, and writes what it was told to write."""

    def __init__(self, likely: Sequence[str] = (), writes: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.likely, self.writes = set(likely), dict(writes or {})
        self.prompts: list[str] = []

    def loglikelihood(self, requests: list[Instance], **_: Any) -> list[tuple[float, bool]]:
        self.prompts += [request.args[0] for request in requests]
        return [
            (-1.0 if request.args[1].strip() in self.likely else -9.0, True) for request in requests
        ]

    def loglikelihood_rolling(self, requests: list[Instance], **_: Any) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Instance], **_: Any) -> list[str]:
        self.prompts += [request.args[0] for request in requests]
        return [
            next((text for end, text in self.writes.items() if request.args[0].endswith(end)), "")
            for request in requests
        ]
