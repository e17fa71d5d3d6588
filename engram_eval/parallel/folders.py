"""Where the resume points of many processes lie."""

import shutil
from pathlib import Path

PREFIX = "parallel-"
ABOUT = "about.json"
"""Written last: without it a resume point is not finished."""


def resume_folders(out: Path) -> list[Path]:
    """Return the finished resume points of a run, newest first."""
    found = out.glob(f"{PREFIX}*/{ABOUT}")
    return sorted((path.parent for path in found), key=lambda path: path.name, reverse=True)


def delete_parts(out: Path) -> None:
    """Remove the resume points of a finished run."""
    for folder in out.glob(f"{PREFIX}*"):
        shutil.rmtree(folder)
