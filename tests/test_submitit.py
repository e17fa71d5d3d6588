"""A study's stages as jobs: the local executor of submitit runs them in processes of their own."""

import functools
import io
import os
import shutil
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from engram_eval import stages
from engram_eval.cli import main
from engram_eval.config import EvalConfig
from engram_eval.errors import UserError
from engram_eval.node import Node
from engram_eval.progress import Reporter
from engram_eval.records import read_record
from engram_eval.running import submitit_jobs
from engram_eval.running.submitit_jobs import read_parameters, run_as_jobs, run_job
from engram_eval.running.workers import Plan, run_nodes

QUIET = Reporter(quiet=True)

JOB_STAGES = """
    import os, signal
    from engram_eval.records import MetricRow
    import engram_eval.stages as stages

    NAMES = ("fine", "fails", "dies", "looks", "late")
    stages.STAGES.update({n: stages.Stage(f"job_stages:{n}", 1) for n in NAMES})

    def fine(inputs, config, seed, out, report):
        return [MetricRow("fine", "seconds", float(os.getpid()))]

    def looks(inputs, config, seed, out, report):
        seen = os.environ["CUDA_VISIBLE_DEVICES"]
        return [MetricRow("looks", "seconds", float(len(seen.split(","))))]

    def fails(inputs, config, seed, out, report):
        raise RuntimeError("broken")

    def late(inputs, config, seed, out, report):
        # As submitit's handler of the signal at the time limit does.
        from submitit.core.utils import UncompletedJobError
        raise UncompletedJobError("Job not requeued because: timed-out and not checkpointable.")

    def dies(inputs, config, seed, out, report):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def job_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a module of stages where the jobs' processes find it too."""
    (tmp_path / "job_stages.py").write_text(textwrap.dedent(JOB_STAGES))
    (tmp_path / "sitecustomize.py").write_text("import job_stages\n")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parent.parent)])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(stages, "STAGES", dict(stages.STAGES))
    for module in ("engram_eval.node", "engram_eval.running.node_run"):
        monkeypatch.setattr(sys.modules[module], "STAGES", stages.STAGES)
    monkeypatch.delitem(sys.modules, "job_stages", raising=False)
    __import__("job_stages")


def test_jobs_run_in_order_and_failures_leave_the_rest_alone(
    tmp_path: Path, job_stages: None
) -> None:
    first = Node("fine", EvalConfig(limit=1))
    second = Node("fine", EvalConfig(limit=2), {"first": first})
    broken = Node("fails", EvalConfig())
    dead = Node("dies", EvalConfig())
    blocked = Node("fine", EvalConfig(limit=3), {"broken": broken})
    parameters = {"cluster": "local", "timeout_min": 2}

    def launcher(plan, store, report):
        run_as_jobs(plan, store, report, parameters)

    store = tmp_path / "store"
    nodes = [first, broken, dead, second, blocked]
    failed = run_nodes(nodes, store, QUIET, 1, launcher)
    assert {node.key for node in failed} == {broken.key, dead.key, blocked.key}
    processes = set()
    for node in (first, second):
        record = read_record(node.folder(store))
        assert record is not None and record.status == "ok"
        processes.add(record.metrics[0].value)
    assert len(processes) == 2 and os.getpid() not in processes
    record = read_record(broken.folder(store))
    assert record is not None and record.error == "RuntimeError: broken"
    assert run_nodes([first, second], store, QUIET, 1, launcher) == []


def test_jobs_of_this_machine_see_its_gpus(
    tmp_path: Path, job_stages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitit_jobs, "gpus", lambda: 3)
    node, parameters = Node("looks", EvalConfig()), {"cluster": "local", "timeout_min": 2}
    launcher = functools.partial(run_as_jobs, parameters=parameters)
    assert run_nodes([node], tmp_path, QUIET, 1, launcher) == []
    record = read_record(node.folder(tmp_path))
    assert record is not None and record.metrics[0].value == 3


def test_a_timeout_is_told_as_one(tmp_path: Path, job_stages: None) -> None:
    node = Node("late", EvalConfig())
    error, _ = run_job(node, tmp_path, 0)
    record = read_record(node.folder(tmp_path))
    assert record is not None and record.status == "failed"
    assert record.error == error
    assert error == "took longer than the job's time limit; --job timeout_min=MINUTES allows more"


class Here:
    """An executor whose jobs end when they are asked about it, and that counts them meanwhile."""

    cluster = "local"

    def __init__(self) -> None:
        self.at_once = [0]

    def submit(self, job, node, store, turn):
        self.at_once.append(self.at_once[-1] + 1)

        def done() -> bool:
            self.at_once.append(self.at_once[-1] - 1)
            return True

        return SimpleNamespace(job_id=turn, done=done, result=lambda: (None, False), cancel=len)


def test_without_slurm_jobs_run_here_no_more_than_workers(
    tmp_path: Path, job_stages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitit_jobs, "POLL_S", 0.0)
    said = io.StringIO()
    nodes = [Node("fine", EvalConfig(limit=n)) for n in range(5)]
    for workers, most in ((2, 2), (None, 3)):
        executor = Here()
        monkeypatch.setattr(submitit_jobs, "_executor", lambda *_, made=executor: made)
        monkeypatch.setattr(submitit_jobs, "cores", lambda: 3)
        plan = Plan(list(nodes), tmp_path)
        run_as_jobs(plan, tmp_path, Reporter(out=said), {}, workers)
        assert max(executor.at_once) == most and len(executor.at_once) == 11
        told = f"there is no Slurm here (no srun): jobs run on this machine, at most {most} at once"
        assert said.getvalue().count(told) == 1


def test_jobs_here_have_time_unless_they_are_given_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for given, minutes in (({}, 7 * 24 * 60), ({"timeout_min": 3}, 3)):
        executor = submitit_jobs._executor(tmp_path, dict(given))
        assert executor.cluster == "local"
        assert executor.parameters["timeout_min"] == minutes


@pytest.mark.parametrize(
    ("cluster", "devices", "waits"),
    [("local", 1, True), ("local", 2, False), ("local", 0, False), ("slurm", 1, False)],
)
def test_trainings_wait_for_a_gpu_here(
    cluster: str, devices: int, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitit_jobs, "gpus", lambda: devices)
    plan = Plan([], Path())
    plan.running = {str(n): Node("train", EvalConfig(), seed=n) for n in range(2)}
    found = submitit_jobs._excluded(plan, SimpleNamespace(cluster=cluster))
    assert bool(found) == waits


def test_parameters_are_read_as_json_or_text() -> None:
    words = ["timeout_min=60", "slurm_partition=long", "cluster=local"]
    assert read_parameters(words) == {
        "timeout_min": 60,
        "slurm_partition": "long",
        "cluster": "local",
    }
    with pytest.raises(UserError, match="expected key=value"):
        read_parameters(["timeout_min"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--job", "timeout_min=1"], "--job is for --launcher submitit"),
        (["--launcher", "submitit", "--job", "cluster=local", "tmeout=1"], "tmeout"),
        (["--launcher", "submitit", "--job", "cluster=local", "timeout_min=0.5"], "timeout_min"),
    ],
)
def test_a_mistake_in_the_job_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "smoke", "--quiet", "--out", str(tmp_path / "smoke"), *words]) == 2
    captured = capsys.readouterr().err
    assert message in captured and captured.count("\n") == 1
