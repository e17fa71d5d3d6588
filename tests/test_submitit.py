"""A study's stages as jobs: the local executor of submitit runs them in processes of their own."""

import functools
import os
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
from engram_eval.running.submitit_jobs import read_parameters, run_as_jobs
from engram_eval.running.workers import Plan, run_nodes

QUIET = Reporter(quiet=True)

JOB_STAGES = """
    import os, signal
    from engram_eval.records import MetricRow
    import engram_eval.stages as stages

    NAMES = ("fine", "fails", "dies", "looks")
    stages.STAGES.update({n: stages.Stage(f"job_stages:{n}", 1) for n in NAMES})

    def fine(inputs, config, seed, out, report):
        return [MetricRow("fine", "seconds", float(os.getpid()))]

    def looks(inputs, config, seed, out, report):
        seen = os.environ["CUDA_VISIBLE_DEVICES"]
        return [MetricRow("looks", "seconds", float(len(seen.split(","))))]

    def fails(inputs, config, seed, out, report):
        raise RuntimeError("broken")

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
    ],
)
def test_a_mistake_in_the_job_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "smoke", "--quiet", "--out", str(tmp_path / "smoke"), *words]) == 2
    captured = capsys.readouterr().err
    assert message in captured and captured.count("\n") == 1
