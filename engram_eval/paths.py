"""Where the suite's own data lie, in a checkout and in an installed wheel."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def tasks_dir() -> Path:
    """Return the folder of lm-eval tasks: inside the wheel, or beside the package in a checkout."""
    installed = PACKAGE / "_tasks"
    return installed if installed.is_dir() else PACKAGE.parent / "tasks"
