"""Reads rows from local files, each with the place where it stands."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from engram_eval.decompressed import COMPRESSIONS, decompressed, suffixes
from engram_eval.errors import UserError, nearest


class SourceRow(NamedTuple):
    """One row: its fields, and ``file:line`` for messages."""

    fields: dict[str, Any]
    place: str


def source_rows(path: Path) -> Iterator[SourceRow]:
    """Yield the rows of ``.jsonl`` or ``.csv`` (also ``.gz``, ``.xz``, ``.zst``) or ``.parquet``.

    Raises:
        UserError: no such file, another kind, damage, or a row that is no table of fields.
    """
    if not path.is_file():
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file{nearest(path.name, names)}")
    kind, _ = suffixes(path)
    if kind not in _READERS:
        allowed = f"{', '.join(_READERS)} (all but parquet also with {', '.join(COMPRESSIONS)})"
        raise UserError(f"{path}: cannot read this kind of file; allowed: {allowed}")
    yield from _READERS[kind](path)


@contextmanager
def _text(path: Path) -> Iterator[io.TextIOWrapper]:
    """Open a file as text, decompressed; damage found while it is read is a ``UserError``."""
    with decompressed(path) as raw:
        try:
            with io.TextIOWrapper(raw, encoding="utf-8", newline="") as handle:
                yield handle
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: cannot be read ({error})") from error


def _json_rows(path: Path) -> Iterator[SourceRow]:
    with _text(path) as handle:
        for number, line in enumerate(handle, start=1):
            place = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{place}: malformed row: not JSON ({error.msg})") from error
            if not isinstance(row, dict):
                raise UserError(f"{place}: malformed row: expected an object, got {row!r:.60}")
            yield SourceRow(row, place)


def _csv_rows(path: Path) -> Iterator[SourceRow]:
    with _text(path) as handle:
        reader = csv.DictReader(handle, strict=True)
        try:
            for row in reader:
                place = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise UserError(f"{place}: malformed row: not as many fields as the header")
                yield SourceRow(dict(row), place)
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: malformed row ({error})") from error


def _parquet_rows(path: Path) -> Iterator[SourceRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield SourceRow(row, f"{path}:{number}")
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


_READERS: dict[str, Callable[[Path], Iterator[SourceRow]]] = {
    ".jsonl": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
