"""What a study's folder holds and lacks, also while it runs."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engram_eval.errors import UserError
from engram_eval.files import read_json
from engram_eval.locks import is_locked
from engram_eval.records import read_record
from engram_eval.training.progress_file import read_progress

SHOWN = {
    "loss_nats": "loss {:.3f}",
    "tokens_per_s": "{:,.0f} tokens/s",
    "gate_mean": "gate {:.2f}",
    "rows_touched": "{:.0%} of rows read",
    "collision_rate": "{:.0%} collide",
    "router_load_max": "fullest expert {:.1f}x",
}


def status(folder: Path) -> list[dict[str, Any]]:
    """Return the stages of a study's folder, as they are this moment.

    ``status`` is ``ok``, ``failed``, ``running``, ``interrupted`` or ``not run``; ``progress`` of
    a training that has begun is its last step's numbers.

    Raises:
        UserError: the folder is not a study's.
    """
    path = folder / "stages.json"
    if not path.exists():
        raise UserError(f"{folder}: no stages.json here; expected a study's folder, as runs/quick")
    stages: list[dict[str, Any]] = read_json(path)
    return [stage if stage["status"] == "ok" else _now(stage, folder) for stage in stages]


def _now(stage: dict[str, Any], study: Path) -> dict[str, Any]:
    """Bring a stage up to date with its own folder, which changes while a study runs."""
    place = study / stage["folder"]
    if not place.is_dir():
        return stage
    record = read_record(place)
    if record is not None:
        ended = {"status": record.status, "error": record.error, "seconds": record.seconds}
        return {**stage, **ended}
    going_on = "running" if is_locked(place / ".lock") else "interrupted"
    progress = read_progress(place, stage["config"])
    return {**stage, "status": going_on, "error": None, "progress": progress}


def status_table(stages: list[dict[str, Any]]) -> str:
    """Lay the stages out as text, one a line, and count them."""
    counts = Counter(stage["status"] for stage in stages)
    done = f"{counts.pop('ok', 0)} of {len(stages)} stages are finished"
    rest = [f"{count} {status}" for status, count in counts.most_common()]
    return "\n".join([*(_line(stage) for stage in stages), ", ".join([done, *rest])])


def _line(stage: Mapping[str, Any]) -> str:
    seconds = "" if stage["seconds"] is None else f"{stage['seconds']:8.1f} s"
    more = [f": {stage['error']}"] if stage["error"] else []
    progress = stage.get("progress")
    if progress:
        more = [", ".join((f": step {progress['step']} of {progress['steps']}", *_told(progress)))]
    return f"{stage['status']:11} {seconds:>10}  {stage['label']}{''.join(more)}"


def _told(progress: Mapping[str, Any]) -> Iterator[str]:
    for name, words in SHOWN.items():
        if progress.get(name) is not None:
            yield words.format(progress[name])
