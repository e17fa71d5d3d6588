"""Which folders of lm-eval hold a task, so that only those are read.

Reading all of lm-eval's tasks takes it six seconds and more; a look at the names takes one.
"""

import functools
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lm_eval.tasks._yaml_loader import load_yaml

from engram_eval.paths import tasks_dir

_NAME = re.compile(r"^[\"']?(?:task|group)[\"']?[ \t]*:[ \t]*[\"']?([\w.:+-]+)[\"']?[ \t]*$", re.M)
_TAGS = re.compile(r"^[\"']?tag[\"']?[ \t]*:[ \t]*(\S[^\n#]*|(?:\n[ \t]*-[^\n#]*)+)", re.M)


def stock_folder() -> Path:
    """Return the folder of lm-eval's own tasks."""
    spec = importlib.util.find_spec("lm_eval.tasks")
    if spec is None or spec.origin is None:
        raise ImportError("lm_eval.tasks has no files")
    return Path(spec.origin).parent


def stock_names() -> Mapping[str, frozenset[Path]]:
    """Return every task, group and tag of lm-eval, with the files that name it."""
    return _names_in(stock_folder())


@functools.cache
def _names_in(folder: Path) -> Mapping[str, frozenset[Path]]:
    """Return every name that a folder's YAML gives, with the files.

    Templates, which other files include, end in ``_yaml``; tags often stand in them.
    """
    found: dict[str, set[Path]] = {}
    for path in sorted(folder.rglob("*yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        for name in (*_NAME.findall(text), *_tags(text)):
            found.setdefault(name, set()).add(path)
    return {name: frozenset(paths) for name, paths in found.items()}


def _tags(text: str) -> list[str]:
    return [tag for part in _TAGS.findall(text) for tag in re.findall(r"[\w.:+-]*\w", part)]


def folders_of(names: Iterable[str]) -> list[Path]:
    """Return lm-eval's folders that define tasks and all members of groups, ours among them.

    Unknown names are skipped.
    """
    own = _names_in(tasks_dir())
    names = list(names)
    known = own if all(_is_leaf(own, name) for name in names) else {**stock_names(), **own}
    pending, seen = list(names), set[str]()
    while pending:
        name = pending.pop()
        if name in known and name not in seen:
            seen.add(name)
            for path in known[name]:
                pending.extend(_members_of(name, path))
    found = {path.parent for name in seen for path in known[name]}
    return sorted(folder for folder in found if not folder.is_relative_to(tasks_dir()))


def _is_leaf(own: Mapping[str, frozenset[Path]], name: str) -> bool:
    return name in own and not any(_members_of(name, path) for path in own[name])


def _members_of(name: str, path: Path) -> list[str]:
    """Return the members of the group that a file defines under this name, at any depth."""
    config = load_yaml(path, resolve_func=False)
    return members_of(config) if config.get("group") == name else []


def members_of(config: Mapping[str, Any]) -> list[str]:
    """Return the tasks, groups and tags that a group's configuration names, at any depth."""
    task = config.get("task")
    if isinstance(task, str):
        return [task]
    found: list[str] = []
    for member in task or []:
        found += [member] if isinstance(member, str) else members_of(member)
    return found
