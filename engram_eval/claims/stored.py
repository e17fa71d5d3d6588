"""Reads the verdicts that a study folder holds; imports nothing heavy."""

from pathlib import Path
from typing import Any

from engram_eval.errors import UserError
from engram_eval.files import read_json

FILE = "verdicts.json"


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
    found: list[dict[str, Any]] = read_json(path)
    return found
