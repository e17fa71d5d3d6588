"""Results of single tasks, kept across evaluations.

A result is found again by a hash over who answered (its weights, its tokenizer, how it is run),
what was asked (``task_hash``) and the version of the code that scores. A change of any of them is
another entry; nothing is ever overwritten by something else.
"""

from pathlib import Path
from typing import Any, NamedTuple

from engram_eval.evaluation.task_hash import task_hash
from engram_eval.files import content_hash, write_atomic
from engram_eval.stages import STAGES

FOLDER = "results"
_RESULTS, _SAMPLES = "results.json", "samples.jsonl"


class TaskFiles(NamedTuple):
    """Where an evaluation keeps what one task gave.

    Attributes:
        results: lm-eval's, written last.
        samples: a line per item.
    """

    results: Path
    samples: Path


class ResultCache(NamedTuple):
    """A folder of results.

    Attributes:
        folder: one subfolder per entry.
        who: hash of all that answers depend on beside the task.
    """

    folder: Path
    who: str

    def entry(self, name: str, task: Any, limit: int) -> Path:
        """Return where the results of a task lie, or will lie.

        Args:
            name: as the evaluation calls the task.
            task: of lm-eval, loaded.
            limit: most items; 0 means all.
        """
        key = {
            "who": self.who,
            "name": name,
            "task": task_hash(task, limit),
            "version": STAGES["evaluate"].version,
        }
        return self.folder / content_hash(key)


def restore(entry: Path, files: TaskFiles) -> bool:
    """Copy results to where an evaluation looks for them; tell if there were any."""
    if not (entry / _RESULTS).exists():
        return False
    write_atomic(files.samples, (entry / _SAMPLES).read_bytes())
    write_atomic(files.results, (entry / _RESULTS).read_bytes())
    return True


def keep(entry: Path, files: TaskFiles) -> None:
    """Copy the results of a finished task to its entry."""
    write_atomic(entry / _SAMPLES, files.samples.read_bytes())
    write_atomic(entry / _RESULTS, files.results.read_bytes())


def identity(**facts: Any) -> str:
    """Hash what answers: a checkpoint, a memory, how it is run."""
    return content_hash(facts)
