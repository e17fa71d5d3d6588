"""JSON-lines logs that grow with a run and are cut back when it resumes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from engram_eval.errors import UserError
from engram_eval.files import canonical_json


class Log:
    """A file of one JSON object per line, opened at a known size.

    Args:
        path: the file.
        size: bytes to keep; what an interrupted run wrote after its last resume point goes.

    Raises:
        UserError: if the file is shorter than ``size``.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        present = path.stat().st_size if path.exists() else 0
        if present < size:
            raise UserError(
                f"{path}: {present} bytes, but the resume point knows {size}; "
                f"delete {path.parent} to train again from the start"
            )
        self._file = open(path, "ab")  # noqa: SIM115 (closed by __exit__)
        self._file.truncate(size)
        self._file.seek(size)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one object; it is visible to readers at once."""
        self._file.write(canonical_json(row).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Force the lines to the disk and return the file's size in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
