"""What tasks there are, read from their YAML files; imports nothing heavy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from engram_eval.files import content_hash, known_sha256
from engram_eval.paths import tasks_dir

LIMITED_LONG = 2
"""Version of what a limit takes of a task with long contexts: since 2 some items of each length."""


class _Loader(yaml.SafeLoader):
    """Reads lm-eval's ``!function`` as the name that follows it."""


def _name(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    return node.value


_Loader.add_constructor("!function", _name)


class OwnTask(NamedTuple):
    """A task whose items the project makes: its domain, the score of guessing, where it is."""

    name: str
    domain: str
    chance: float
    folder: Path


def own_tasks() -> dict[str, OwnTask]:
    """Return the tasks whose items are generated for each corpus, by name."""
    found = {}
    for script in sorted(tasks_dir().glob("*/generate.py")):
        for path in sorted(script.parent.glob("*.yaml")):
            entry = yaml.load(path.read_text(encoding="utf-8"), _Loader)
            if "group" not in entry:
                facts = entry["metadata"]
                task = OwnTask(entry["task"], facts["domain"], facts["chance"], path.parent)
                found[task.name] = task
    return found


def task_table() -> dict[str, str]:
    """Return task or group -> one line about it."""
    table = {}
    for path in sorted(tasks_dir().rglob("*.yaml")):
        entry = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if "group" in entry:
            table[entry["group"]] = f"group of {', '.join(entry['task'])}"
        elif "metadata" not in entry:
            table[entry["task"]] = _about(_included(path, entry)["metadata"])
        else:
            table[entry["task"]] = _about(entry["metadata"])
    return table


def has_generated_items(task: str) -> bool:
    """Tell whether a task or group of ours asks items that are made for each corpus.

    Long contexts are made when they are asked, of the corpus' fragments and by its tokenizer.
    """
    found = list(tasks_dir().rglob(f"{task}.yaml"))
    made = any((path.parent / "generate.py").exists() for path in found)
    return made or has_long_contexts(task) or any(path.parent == tasks_dir() for path in found)


def has_long_contexts(task: str) -> bool:
    """Tell whether a task or group of ours asks items whose contexts have a chosen length."""
    return any((path.parent / "_long_yaml").exists() for path in tasks_dir().rglob(f"{task}.yaml"))


def tasks_salt() -> dict[str, str]:
    """Return what the tasks are whose items a study makes, so that others are asked anew.

    That is: their YAML, the groups that name them, and the scripts that make their items.
    """
    folder = tasks_dir()
    made = [path.parent for name in ("generate.py", "_long_yaml") for path in folder.rglob(name)]
    files = [
        path
        for place in (folder, *made)
        for path in place.iterdir()
        if path.name.endswith("yaml") or path.name == "generate.py"
    ]
    named = sorted((path.relative_to(folder).as_posix(), known_sha256(path)) for path in files)
    return {"tasks": content_hash(named)}


def _included(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's template, whose functions are not of interest here."""
    text = (path.parent / entry["include"]).read_text(encoding="utf-8")
    template: dict[str, Any] = yaml.load(text, _Loader)
    return template


def _about(facts: Mapping[str, Any]) -> str:
    if "base" in facts:
        return f"bits per byte of the right answers of {facts['base']}"
    chance = f", chance {facts['chance']:.0%}" if "chance" in facts else ""
    return f"{facts['domain']}{chance}"
