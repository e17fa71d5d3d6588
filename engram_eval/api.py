"""The Python face: run a study, load a model, load what a run has measured."""

import dataclasses
import multiprocessing
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engram_eval.config import StudyConfig
from engram_eval.errors import UserError
from engram_eval.files import read_jsonl
from engram_eval.progress import Reporter

if TYPE_CHECKING:
    import pandas as pd


def run(
    study: StudyConfig | str,
    out: Path | str | None = None,
    quiet: bool = False,
    workers: int = 1,
    corpus: Path | str | Sequence[Path | str] = (),
    tokenizer: str = "",
) -> Path:
    """Run a study (or go on with it) and return its folder.

    Args:
        study: a ``Study``, or a name such as ``"quick"``.
        out: the study's folder; default ``runs/<study>``, or a folder of its own where a shipped
            study has been changed, as on the command line.
        quiet: no progress.
        workers: processes; more than one needs a script guarded by ``__name__ == "__main__"``.
        corpus: files or folders of text instead of the study's, as ``--corpus``; ``corpus_of``
            makes one of texts.
        tokenizer: an existing one for the text, as ``--tokenizer``.

    Raises:
        RuntimeError: a stage failed; the message names it and says why.
        UserError: an impossible study; or several workers, asked for without that guard.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A worker imports a script without that guard; the process that started it says so.
        sys.exit(1)
    from engram_eval.running.runner import reason, run_study
    from engram_eval.studies.registry import find_study, is_changed, on_own_text, study_folder

    resolved = find_study(study) if isinstance(study, str) else study
    paths = [corpus] if isinstance(corpus, str | Path) else corpus
    if paths:
        resolved = on_own_text(resolved, [str(path) for path in paths])
    if tokenizer:
        text = dataclasses.replace(resolved.corpus, tokenizer=tokenizer)
        resolved = dataclasses.replace(resolved, corpus=text)
    name = study if isinstance(study, str) else resolved.name
    folder = Path(out) if out else study_folder(resolved, name, is_changed(resolved))
    failed = run_study(resolved, folder, Reporter(quiet=quiet), workers=workers)
    if failed:
        # What waited for a failed stage has no reason of its own.
        told = ((node.label, reason(node, folder.parent / "store")) for node in failed)
        reasons = (label if why is None else f"{label} ({why})" for label, why in told)
        raise RuntimeError(f"did not finish: {'; '.join(reasons)}")
    return folder


def load_run(folder: Path | str) -> "pd.DataFrame":
    """Return a study's metric rows as a table, one number a row (``records.MetricRow``).

    Raises:
        UserError: the folder is not a study's.
    """
    import pandas as pd

    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        raise UserError(f"{folder}: no metrics.jsonl here; expected a study's folder")
    return pd.DataFrame(read_jsonl(path))
