"""Which folders of lm-eval hold a task, so that only those are read.

Reading all of lm-eval's tasks takes it six seconds and more; a look at the names takes one.
"""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks._yaml_loader import load_yaml

from engram_eval.errors import UserError
from engram_eval.evaluation.included import included_names, names_in
from engram_eval.paths import tasks_dir


def stock_folder() -> Path:
    """Return the folder of lm-eval's own tasks."""
    spec = importlib.util.find_spec("lm_eval.tasks")
    if spec is None or spec.origin is None:
        raise ImportError("lm_eval.tasks has no files")
    return Path(spec.origin).parent


def stock_names() -> Mapping[str, frozenset[Path]]:
    """Return every task, group and tag of lm-eval, with the files that name it."""
    return names_in(stock_folder())


def folders_of(names: Iterable[str], include: Sequence[str] = ()) -> list[Path]:
    """Return lm-eval's folders that define tasks and all members of groups, ours among them.

    Unknown names are skipped.

    Args:
        names: tasks, groups and tags.
        include: folders of the user's own tasks, which may have groups of lm-eval's, too.
    """
    own = {**names_in(tasks_dir()), **included_names(include)}
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
    stock = stock_folder()
    return sorted(folder for folder in found if folder.is_relative_to(stock))


def _is_leaf(own: Mapping[str, frozenset[Path]], name: str) -> bool:
    return name in own and not any(_members_of(name, path) for path in own[name])


def _members_of(name: str, path: Path) -> list[str]:
    """Return the members of the group that a file defines under this name, at any depth."""
    config = read_yaml(path)
    return members_of(config) if config.get("group") == name else []


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a task's file and what it includes, without importing the functions that it names.

    Raises:
        UserError: it is no YAML, or includes what is not there.
    """
    try:
        found: dict[str, Any] = load_yaml(path, resolve_func=False)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    return found


def members_of(config: Mapping[str, Any]) -> list[str]:
    """Return the tasks, groups and tags that a group's configuration names, at any depth."""
    task = config.get("task")
    if isinstance(task, str):
        return [task]
    found: list[str] = []
    for member in task or []:
        found += [member] if isinstance(member, str) else members_of(member)
    return found
