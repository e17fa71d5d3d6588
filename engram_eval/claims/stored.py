"""Reads the verdicts that a study folder holds; imports nothing heavy."""

from pathlib import Path
from typing import Any

from engram_eval.errors import UserError
from engram_eval.files import read_json

FILE = "verdicts.json"
NEEDED = ("id", "claim", "verdict", "source", "published", "scale", "seeds", "effect")
"""What every verdict says, tested or not."""


def read_verdicts(study_dir: Path) -> list[dict[str, Any]]:
    """Read a study folder's verdicts.

    Raises:
        UserError: there are none, or they are damaged.
    """
    path = study_dir / FILE
    if not study_dir.is_dir():
        raise UserError(f"{study_dir}: no such folder; expected a study's, as runs/quick")
    if not path.exists():
        ran = (study_dir / "stages.json").exists()
        why = f"`engram-eval analyze {study_dir}` writes it" if ran else "no claim could be judged"
        raise UserError(f"{study_dir}: no {FILE} here; {why}")
    found: Any = read_json(path)
    if not isinstance(found, list):
        raise UserError(f"{path}: damaged; expected a list of verdicts")
    for place, entry in enumerate(found):
        lacking = NEEDED if not isinstance(entry, dict) else [k for k in NEEDED if k not in entry]
        if lacking:
            raise UserError(f"{path}, entry {place}: damaged; it lacks {', '.join(lacking)}")
    return found
