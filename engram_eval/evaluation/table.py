"""What tasks there are, read from their YAML files; imports nothing heavy."""

from typing import Any

import yaml

from engram_eval.paths import tasks_dir


class _Loader(yaml.SafeLoader):
    """Reads lm-eval's ``!function`` as the name that follows it."""


def _name(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    return node.value


_Loader.add_constructor("!function", _name)


def task_table() -> dict[str, str]:
    """Return task or group -> one line about it."""
    table = {}
    for path in sorted(tasks_dir().rglob("*.yaml")):
        entry = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if "group" in entry:
            table[entry["group"]] = f"group of {', '.join(entry['task'])}"
        else:
            facts = entry["metadata"]
            table[entry["task"]] = f"{facts['domain']}, chance {facts['chance']:.0%}"
    return table
