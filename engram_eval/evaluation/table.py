"""What tasks there are, read from their YAML files; imports nothing heavy."""

import yaml

from engram_eval.paths import tasks_dir


def task_table() -> dict[str, str]:
    """Return task or group -> one line about it."""
    table = {}
    for path in sorted(tasks_dir().rglob("*.yaml")):
        entry = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "group" in entry:
            table[entry["group"]] = f"group of {', '.join(entry['task'])}"
        else:
            facts = entry["metadata"]
            table[entry["task"]] = f"{facts['domain']}, chance {facts['chance']:.0%}"
    return table
