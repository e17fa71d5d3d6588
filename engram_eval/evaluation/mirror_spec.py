"""What a mirror is made of: local files, and how their rows become a hub dataset's.

A specification is a TOML file. One ``[[sets]]`` is one split of one dataset::

    [[sets]]
    repo = "allenai/ai2_arc"            # what tasks call dataset_path
    config = "ARC-Easy"                 # what tasks call dataset_name
    split = "test"
    files = ["choice/arc_easy.jsonl.xz"]   # below --root; .jsonl .csv (.gz .xz .zst), .parquet

    [sets.columns]                      # left out: rows are taken as they are
    question = "query.removeprefix('Question: ')"
    answerKey = "'ABCDE'[gold]"

Columns are Jinja expressions over the fields of a row, evaluated in Jinja's sandbox. They have
Jinja's own filters and, beside them, ``groups``, ``lines``, ``common_prefix`` and ``from_json``.
"""

import json
import os.path
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engram_eval.config_json import from_dict
from engram_eval.errors import UserError, nearest

SHIPPED = "mirror_specs"


@dataclass(frozen=True)
class SourceSet:
    """One split of one dataset.

    Attributes:
        repo: the dataset as tasks name it: ``owner/name``.
        split: ``train``, ``validation``, ``test``, ...
        files: paths below the root, read one after the other.
        config: the dataset's configuration; ``default`` where tasks name none.
        config_from: expression for the configuration of each row, instead of ``config``.
        where: expression; rows for which it is false are left out.
        columns: name -> expression; empty takes the rows as they are.
        rows: how many there must be (0: any number).
        note: what readers of the scores should know about the data.
    """

    repo: str
    split: str
    files: tuple[str, ...]
    config: str = "default"
    config_from: str = ""
    where: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    rows: int = 0
    note: str = ""

    @property
    def label(self) -> str:
        """What messages call it: ``owner/name (config, split)``."""
        return f"{self.repo} ({self.config_from or self.config}, {self.split})"


@dataclass(frozen=True)
class MirrorSpec:
    """A whole specification; ``about`` says in a line where the files come from."""

    sets: tuple[SourceSet, ...]
    about: str = ""


class BadRow(ValueError):
    """A row that an expression cannot be evaluated on; the message says which and why."""


class Shaper:
    """Turns rows of a source into rows of a dataset.

    Raises:
        UserError: an expression is no Jinja.
    """

    def __init__(self, source: SourceSet) -> None:
        self.source = source
        self.columns = {
            name: _compile(text, f"{source.label}: column {name!r}")
            for name, text in source.columns.items()
        }
        self.where = _compile(source.where, f"{source.label}: where") if source.where else None
        self.config = (
            _compile(source.config_from, f"{source.label}: config_from")
            if source.config_from
            else None
        )

    def shape(self, row: Mapping[str, Any], number: int) -> tuple[str, dict[str, Any]] | None:
        """Return (configuration, row), or None for a row that is left out.

        Args:
            row: fields of the source; the expressions also see ``row``, all of them (for names
                with blanks), and ``row_number``.
            number: of the row in the source, from 0.

        Raises:
            BadRow: a field is missing or an expression fails.
        """
        fields = {**row, "row": row, "row_number": number}
        if self.where is not None and not _evaluate(self.where, fields, "where"):
            return None
        config = self.source.config
        if self.config is not None:
            config = str(_evaluate(self.config, fields, "config_from"))
        if not self.columns:
            return config, dict(row)
        return config, {
            name: _evaluate(expression, fields, f"column {name!r}")
            for name, expression in self.columns.items()
        }


def read_spec(path: Path) -> MirrorSpec:
    """Read a specification from a TOML file, or a shipped one by its name.

    Raises:
        UserError: no such file or name, no TOML, an unknown key, or no sets.
    """
    shipped = shipped_specs()
    if str(path) in shipped:
        path = shipped[str(path)]
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        known = ", ".join(shipped)
        raise UserError(
            f"{path}: no such specification{nearest(str(path), shipped)}; "
            f"a TOML file, or one that is shipped: {known}"
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: {error}") from error
    spec = from_dict(MirrorSpec, data)
    if not spec.sets:
        raise UserError(f"{path}: no [[sets]]")
    for source in spec.sets:
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source.repo):
            raise UserError(f"{path}: repo {source.repo!r}: expected owner/name")
        if not re.fullmatch(r"\w[\w.-]*", source.split):
            raise UserError(f"{path}: split {source.split!r}: expected a name, as test")
        Shaper(source)
    return spec


def shipped_specs() -> dict[str, Path]:
    """Return the specifications that come with the package, by name."""
    folder = Path(str(resources.files("engram_eval.evaluation"))) / SHIPPED
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _compile(text: str, where: str) -> Any:
    try:
        return _ENVIRONMENT.compile_expression(text, undefined_to_none=False)
    except TemplateError as error:
        raise UserError(f"{where}: {text!r} is no expression ({error})") from error


def _evaluate(expression: Any, fields: Mapping[str, Any], what: str) -> Any:
    # An expression is the user's code: whatever it raises on a row is that row's fault or its own.
    try:
        return _plain(expression(**fields))
    except Exception as error:
        raise BadRow(f"{what}: {error}") from error


def _plain(value: Any) -> Any:
    """Return a value as JSON would have it; what is undefined anywhere in it raises."""
    if isinstance(value, StrictUndefined):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _groups(text: str, pattern: str) -> list[str]:
    """Return the groups of the first match of a regular expression; no match is an error."""
    found = re.search(pattern, text, flags=re.DOTALL)
    if found is None:
        raise ValueError(f"{pattern!r} is nowhere in {text[:60]!r}")
    return [group or "" for group in found.groups()]


def _common_prefix(texts: Sequence[str]) -> str:
    # By characters, which is what is wanted here.
    return os.path.commonprefix(list(texts))  # noqa: RUF071


_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
_ENVIRONMENT.filters |= {
    "groups": _groups,
    "lines": str.splitlines,
    "common_prefix": _common_prefix,
    "from_json": json.loads,
}
