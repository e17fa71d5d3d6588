"""Run the stages of a study as jobs of Slurm, through submitit: one job a stage.

Every job finds its inputs in the store, so that must lie on a disk that all nodes see. A killed or
failed job is recorded like a failed stage; the same command goes on from what is there.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engram_eval.environment import cores, gpus, take_gpu
from engram_eval.errors import UserError
from engram_eval.node import Node
from engram_eval.overrides import read_assignment
from engram_eval.progress import Board, Reporter
from engram_eval.records import read_record, write_record
from engram_eval.running.node_run import run_node
from engram_eval.running.workers import FOUNDATIONS, TRAININGS, TRAININGS_PER_GPU, Plan

POLL_S = 1.0
LOCAL = "local"
"""The executor whose jobs are processes of this machine; it hides its GPUs unless told how many."""

LOCAL_MINUTES = 7 * 24 * 60
"""Time limit of a job of this machine, where none is given; nobody waits for its cores."""

TIMED_OUT = "Job not requeued because: timed-out"
"""How submitit interrupts a stage at its time limit, as an error in the middle of it."""


def read_parameters(assignments: Sequence[str]) -> dict[str, Any]:
    """Return submitit's parameters from ``key=value`` words; values are JSON, or bare text.

    Raises:
        UserError: a word without ``=``.
    """
    return dict(read_assignment("--job", word, "timeout_min=60") for word in assignments)


def run_as_jobs(
    plan: Plan,
    store: Path,
    report: Reporter,
    parameters: Mapping[str, Any],
    workers: int | None = None,
) -> None:
    """Submit what can run, wait, submit what that allows, until nothing is left.

    Args:
        plan: what is to be done; failures are noted in it.
        store: where results lie; logs of jobs go to ``store/jobs``.
        report: where messages go.
        parameters: of ``submitit.AutoExecutor.update_parameters``; ``cluster`` (``slurm``,
            ``local``) chooses the executor, default: Slurm where it is installed.
        workers: most jobs at once where they run on this machine (None: one for each core).

    Raises:
        UserError: submitit is not installed, a parameter it does not know, or a mistake in what
            everything else depends on.
    """
    executor = _executor(store, dict(parameters))
    most = None
    if executor.cluster == LOCAL:
        most = workers or cores()
        why = "" if parameters.get("cluster") == LOCAL else "there is no Slurm here (no srun): "
        report.say(f"{why}jobs run on this machine, at most {most} at once")
    jobs: dict[str, Any] = {}
    try:
        with Board(report) as board:
            while True:
                while most is None or len(jobs) < most:
                    node = plan.next(_excluded(plan, executor))
                    if node is None:
                        break
                    jobs[node.key] = executor.submit(run_job, node, store, plan.started)
                    board.say(f"{plan.heading(node)}: job {jobs[node.key].job_id}")
                if not plan.running:
                    return
                plan.show(board)
                for key in [key for key, job in jobs.items() if job.done()]:
                    _end(plan, key, jobs.pop(key), board)
                time.sleep(POLL_S)
    finally:
        for job in jobs.values():
            job.cancel()


def _executor(store: Path, parameters: dict[str, Any]) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "--launcher submitit needs submitit: pip install engram-eval[slurm]"
        ) from error
    try:
        executor = submitit.AutoExecutor(
            folder=store / "jobs" / "%j", cluster=parameters.pop("cluster", None)
        )
        if executor.cluster == LOCAL:
            parameters.setdefault("gpus_per_node", gpus())
            parameters.setdefault("timeout_min", LOCAL_MINUTES)
        executor.update_parameters(name="engram-eval", **parameters)
    except (ValueError, NameError, TypeError, RuntimeError, AssertionError) as error:
        # submitit asserts, too, and not always in words.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"--job: {reason}") from error
    return executor


def _excluded(plan: Plan, executor: Any) -> Sequence[str]:
    """Return the stages that must not begin: jobs here share this machine's GPUs."""
    most = TRAININGS_PER_GPU * gpus() if executor.cluster == LOCAL else 0
    running = sum(node.stage in TRAININGS for node in plan.running.values())
    return TRAININGS if most and running >= most else ()


def run_job(node: Node, store: Path, turn: int) -> tuple[str | None, bool]:
    """Run one stage inside a job; return its error, and whether it is the user's mistake.

    Of several GPUs that it sees jobs take one each by ``turn``.
    """
    take_gpu(turn)
    try:
        error = run_node(node, store, Reporter())
    except UserError as mistake:
        return str(mistake), True
    if error is not None and TIMED_OUT in error:
        error = "took longer than the job's time limit; --job timeout_min=MINUTES allows more"
        record = read_record(node.folder(store))
        if record is not None:
            write_record(node.folder(store), dataclasses.replace(record, error=error))
    return error, False


def _end(plan: Plan, key: str, job: Any, board: Board) -> None:
    """Note how a job ended."""
    import submitit

    try:
        error, users_mistake = job.result()
    except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as failure:
        error, users_mistake = f"job {job.job_id}: {str(failure).splitlines()[0]}", False
    if users_mistake and plan.running[key].stage in FOUNDATIONS:
        raise UserError(str(error))
    node = plan.finish(key, error)
    board.say(f"{node.label}: {'done' if error is None else f'failed: {error}'}")
