"""Builds a mirror: a folder of datasets shaped like repositories of the Hugging Face hub.

``DIR/<owner>/<name>`` has a ``README.md`` that names the configurations and splits, and their
rows as parquet, so that ``datasets.load_dataset`` reads it as it reads a hub repository.
``DIR/mirror.json`` says what is there, from which files, with which hashes; it is written last.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml

from engram_eval.errors import UserError
from engram_eval.evaluation.mirror_spec import BadRow, MirrorSpec, Shaper, SourceSet
from engram_eval.evaluation.source_rows import source_rows
from engram_eval.files import file_sha256, write_atomic, write_json
from engram_eval.progress import Reporter

MANIFEST = "mirror.json"
SCHEMA = 1

Rows = list[dict[str, Any]]
Sets = dict[str, dict[str, dict[str, dict[str, Any]]]]


def build_mirror(spec: MirrorSpec, root: Path, out: Path, reporter: Reporter) -> Path:
    """Build the sets of a specification; sets that ``out`` has from elsewhere stay.

    Args:
        spec: what to build.
        root: the folder that the specification's paths start from.
        out: the mirror's folder.
        reporter: where progress goes.

    Returns:
        ``out``.

    Raises:
        UserError: a missing file, a malformed row (named by file and line), a wrong number of
            rows, or a split that two sets claim. The mirror is then as it was before.
    """
    _check_paths(spec, root)
    built: list[tuple[SourceSet, dict[str, Rows]]] = []
    with reporter.task("mirror", len(spec.sets)) as bar:
        for source in spec.sets:
            built.append((source, _shape(source, root)))
            bar.advance(1, source.repo)
    _check_distinct(built)
    manifest = _old_manifest(out)
    made = [
        (source, config, _table(source, rows))
        for source, configs in built
        for config, rows in configs.items()
    ]
    schemas = _schemas(made)
    for source, config, table in made:
        repo = manifest["sets"].setdefault(source.repo, {})
        schema = schemas[source.repo, config]
        repo.setdefault(config, {})[source.split] = _write(source, config, table, schema, out) | {
            "sources": {name: file_sha256(root / name) for name in source.files}
        }
    for repo in {source.repo for source in spec.sets}:
        write_atomic(out / repo / "README.md", _card(repo, manifest["sets"][repo]))
    write_json(out / MANIFEST, manifest)
    return out


def _check_paths(spec: MirrorSpec, root: Path) -> None:
    missing = [name for source in spec.sets for name in source.files if not (root / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"--root {root}: no file {missing[0]!r}{more} here")


def _shape(source: SourceSet, root: Path) -> dict[str, Rows]:
    """Return the rows of a set by configuration."""
    shaper = Shaper(source)
    found: dict[str, Rows] = {}
    number = 0
    for name in source.files:
        for row in source_rows(root / name):
            try:
                shaped = shaper.shape(row.fields, number)
            except BadRow as error:
                raise UserError(
                    f"{row.place}: malformed row for {source.label}: {error}"
                ) from error
            number += 1
            if shaped is not None:
                found.setdefault(shaped[0], []).append(shaped[1])
    total = sum(map(len, found.values()))
    if source.rows and total != source.rows:
        raise UserError(f"{source.label}: {total} rows, the specification says {source.rows}")
    if not total:
        raise UserError(f"{source.label}: no rows")
    for config in found:
        if not re.fullmatch(r"\w[\w.-]*", config):
            raise UserError(f"{source.label}: {config!r} cannot be a configuration's name")
    return found


def _check_distinct(built: Sequence[tuple[SourceSet, Mapping[str, Rows]]]) -> None:
    seen: set[tuple[str, str, str]] = set()
    for source, configs in built:
        for config in configs:
            key = (source.repo, config, source.split)
            if key in seen:
                raise UserError(f"two sets make {source.repo} ({config}, {source.split})")
            seen.add(key)


def _schemas(made: Sequence[tuple[SourceSet, str, pyarrow.Table]]) -> dict[Any, pyarrow.Schema]:
    """Return one schema per configuration: splits must agree, also on lists that are empty."""
    found: dict[tuple[str, str], list[pyarrow.Table]] = {}
    for source, config, table in made:
        found.setdefault((source.repo, config), []).append(table)
    return {
        key: pyarrow.unify_schemas([t.schema for t in tables], promote_options="permissive")
        for key, tables in found.items()
    }


def _write(
    source: SourceSet, config: str, table: pyarrow.Table, schema: pyarrow.Schema, out: Path
) -> dict[str, Any]:
    """Write one split and return its entry in the manifest."""
    relative = Path(source.repo) / "data" / config / f"{source.split}.parquet"
    columns = [
        table[name] if name in table.column_names else pyarrow.nulls(len(table))
        for name in schema.names
    ]
    same = pyarrow.Table.from_arrays(columns, names=schema.names).cast(schema)
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(same, sink, compression="zstd")
    write_atomic(out / relative, sink.getvalue().to_pybytes())
    return {
        "file": relative.as_posix(),
        "sha256": file_sha256(out / relative),
        "rows": len(table),
        "note": source.note,
    }


def _table(source: SourceSet, rows: Rows) -> pyarrow.Table:
    try:
        return pyarrow.Table.from_pylist(rows)
    except pyarrow.ArrowException as error:
        raise UserError(f"{source.label}: malformed row {_odd_row(rows)} ({error})") from error


def _odd_row(rows: Rows) -> int:
    """Return the number of the first row, from 1, whose types do not fit those before it."""
    low, high = 1, len(rows)
    while low < high:
        middle = (low + high) // 2
        try:
            pyarrow.Table.from_pylist(rows[:middle])
            low = middle + 1
        except pyarrow.ArrowException:
            high = middle
    return low


def _card(repo: str, configs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return a repository's README: the front matter that ``datasets`` reads, and a line."""
    front = {
        "configs": [
            {
                "config_name": config,
                "data_files": [
                    {"split": split, "path": Path(entry["file"]).relative_to(repo).as_posix()}
                    for split, entry in sorted(splits.items())
                ],
            }
            for config, splits in sorted(configs.items())
        ]
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\nMade by `engram-eval mirror`.\n"


def _old_manifest(out: Path) -> dict[str, Any]:
    path = out / MANIFEST
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: neither empty nor a mirror (no {MANIFEST} in it)")
        return {"schema": SCHEMA, "sets": {}}
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if manifest["schema"] == SCHEMA and isinstance(manifest["sets"], dict):
            return manifest
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error})") from error
    raise UserError(f"{path}: made by another version; build into a new folder")
