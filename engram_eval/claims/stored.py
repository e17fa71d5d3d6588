"""Reads the verdicts that a study folder holds; imports nothing heavy."""

import json
from pathlib import Path
from typing import Any

from engram_eval.errors import UserError

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
        raise UserError(f"{study_dir}: no {FILE} here; `engram-eval analyze {study_dir}` writes it")
    try:
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error})") from error
    return found
