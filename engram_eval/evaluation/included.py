"""Folders of the user's own tasks: what they name, and what they are.

Imports nothing heavy, so that a study is planned at once.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from engram_eval.errors import UserError
from engram_eval.evaluation.suites import BPB, SUITES
from engram_eval.files import content_hash, known_sha256
from engram_eval.paths import tasks_dir

_NAME = re.compile(r"^[\"']?(?:task|group)[\"']?[ \t]*:[ \t]*[\"']?([\w.:+-]+)[\"']?[ \t]*$", re.M)
_TAGS = re.compile(r"^[\"']?tag[\"']?[ \t]*:[ \t]*(\S[^\n#]*|(?:\n[ \t]*-[^\n#]*)+)", re.M)


def read_names(folder: Path) -> Mapping[str, frozenset[Path]]:
    """Return every task, group and tag that a folder's YAML names, with the files.

    Templates, which other files include, end in ``_yaml``; tags often stand in them.
    """
    found: dict[str, set[Path]] = {}
    for path in sorted(folder.rglob("*yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        for name in (*_NAME.findall(text), *_tags(text)):
            found.setdefault(name, set()).add(path)
    return {name: frozenset(paths) for name, paths in found.items()}


names_in = functools.cache(read_names)
"""Of folders that do not change while a program runs: lm-eval's, and this project's."""


def _tags(text: str) -> list[str]:
    return [tag for part in _TAGS.findall(text) for tag in re.findall(r"[\w.:+-]*\w", part)]


def included_names(folders: Iterable[str]) -> dict[str, frozenset[Path]]:
    """Return every name of the user's folders, with the files that give it.

    Raises:
        UserError: no such folder, one without tasks, or a name that is given twice: in two
            folders, or by this project, whose tasks and suites keep theirs. Names of lm-eval's
            own tasks may be given anew, as with its ``--include_path``.
    """
    found: dict[str, frozenset[Path]] = {}
    kept = {*names_in(tasks_dir()), *SUITES, *(f"{suite}{BPB}" for suite in SUITES)}
    for given in folders:
        if not Path(given).is_dir():
            raise UserError(f"evaluate.include_path: {given}: no such folder")
        names = read_names(Path(given).resolve())
        if not names:
            raise UserError(f"evaluate.include_path: {given}: no task's .yaml here")
        for name in names:
            if name in kept or name in found:
                owner = "a task or suite of engram-eval" if name in kept else "another folder's"
                raise UserError(
                    f"evaluate.include_path: {given}: {name!r} is {owner}; rename yours"
                )
        found |= names
    return found


def included_sha256(folders: Sequence[str]) -> str:
    """Hash all files of the user's folders: tasks, templates, functions and data beside them."""
    resolved = [Path(folder).resolve() for folder in folders]
    return content_hash(
        [
            [path.relative_to(folder).as_posix(), known_sha256(path)]
            for folder in resolved
            for path in sorted(_files(folder))
        ]
    )


def _files(folder: Path) -> Iterator[Path]:
    """Yield what could change a score: neither hidden files nor what Python compiles."""
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(p.startswith(".") or p == "__pycache__" for p in parts):
            yield path
