"""Several processes at work on one study: order, failures, deaths, mistakes."""

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from engram_eval import stages
from engram_eval.config import EvalConfig
from engram_eval.errors import UserError
from engram_eval.node import Node
from engram_eval.progress import Reporter
from engram_eval.records import read_record
from engram_eval.running import workers as runner_module
from engram_eval.running.workers import TRAININGS_PER_GPU, run_nodes

SLOW_STAGES = """
    import os, signal, time
    from engram_eval.errors import UserError
    from engram_eval.records import MetricRow
    import engram_eval.stages as stages

    NAMES = ("fine", "fails", "dies", "wrong", "loses")
    stages.STAGES.update({n: stages.Stage(f"slow_stages:{n}", 1) for n in NAMES})

    stages.STAGES["corpus"] = stages.Stage("slow_stages:wrong", 1)
    stages.STAGES["train"] = stages.Stage("slow_stages:times", 1)

    def times(inputs, config, seed, out, report):
        began = time.monotonic()
        time.sleep(0.3)
        moments = {"began": began, "ended": time.monotonic()}
        return [MetricRow(name, "seconds", moment) for name, moment in moments.items()]

    def fine(inputs, config, seed, out, report):
        with report.task("work", 2) as task:
            task.advance(1)
            report.say("half way")
            task.advance(1)
        return [MetricRow("fine", "seconds", float(os.getpid()))]

    def fails(inputs, config, seed, out, report):
        raise RuntimeError("broken")

    def dies(inputs, config, seed, out, report):
        os.kill(os.getpid(), signal.SIGKILL)

    def loses(inputs, config, seed, out, report):
        import engram_eval.running.workers
        engram_eval.running.workers.gpu_is_lost = lambda: True
        raise RuntimeError("illegal access")

    def wrong(inputs, config, seed, out, report):
        raise UserError("bad line")
"""


@pytest.fixture
def slow_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a module of stages where worker processes find it too."""
    (tmp_path / "slow_stages.py").write_text(textwrap.dedent(SLOW_STAGES))
    # sitecustomize makes the fresh processes know the stages before they unpickle a node.
    (tmp_path / "sitecustomize.py").write_text("import slow_stages\n")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parent.parent)])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(stages.STAGES)
    __import__("slow_stages")
    yield
    stages.STAGES.clear()
    stages.STAGES.update(before)
    sys.modules.pop("slow_stages")


def node(stage: str, number: int, *inputs: Node) -> Node:
    return Node(stage, EvalConfig(limit=number), {str(i): n for i, n in enumerate(inputs)})


@pytest.mark.parametrize("workers", [1, 2])
def test_inputs_first_whatever_fails_is_recorded_and_the_rest_finished(
    slow_stages: None, tmp_path: Path, workers: int
) -> None:
    first, other = node("fine", 1), node("fine", 2)
    broken, wrong = node("fails", 3, first), node("wrong", 4)
    after, last = node("fine", 5, broken), node("fine", 6, first, other)
    # Where the stages have a process of their own, one that dies is noticed.
    deadly = [node("dies", 7)] if workers > 1 else []
    nodes = [first, *deadly, other, broken, wrong, after, last]
    store, out = tmp_path / "store", io.StringIO()
    failed = run_nodes(nodes, store, Reporter(out=out), workers)
    assert {n.key for n in failed} == {n.key for n in (*deadly, broken, wrong, after)}
    assert failed[-1] == after, "what could not run comes last"
    assert all(n.done(store) for n in (first, other, last))
    errors = {broken.key: "RuntimeError: broken", wrong.key: "bad line"}
    for each in (broken, wrong):
        record = read_record(each.folder(store))
        assert record is not None and record.error == errors[each.key]
    assert "half way" in out.getvalue()
    assert "[1/" in out.getvalue() and " s left] " in out.getvalue()
    assert "not run, an input failed" in out.getvalue()
    assert ("its process ended with -9" in out.getvalue()) == bool(deadly)


@pytest.mark.parametrize(("devices", "at_once"), [(0, 4), (1, TRAININGS_PER_GPU), (2, 4)])
def test_a_gpu_is_shared_by_few_trainings(
    slow_stages: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int, at_once: int
) -> None:
    monkeypatch.setattr(runner_module, "gpus", lambda: devices)
    trains = [node("train", number) for number in range(4)]
    fine = node("fine", 9)
    assert not run_nodes([*trains, fine], tmp_path / "store", Reporter(quiet=True), 4)
    spans = []
    for each in trains:
        record = read_record(each.folder(tmp_path / "store"))
        assert record is not None
        found = {row.name: row.value for row in record.metrics}
        spans.append((found["began"], found["ended"]))
    most = max(sum(a <= began < b for a, b in spans) for began, _ in spans)
    # Processes start one after the other, so that fewer may have met.
    assert most <= at_once
    assert fine.done(tmp_path / "store")


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_computed_on_a_gpu_that_is_lost(
    slow_stages: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    # The stage puts something else in its place.
    monkeypatch.setattr(runner_module, "gpu_is_lost", runner_module.gpu_is_lost)
    lost, after = node("loses", 1), [node("fine", 2), node("fine", 3)]
    store, out = tmp_path / "store", io.StringIO()
    if workers == 1:
        with pytest.raises(UserError, match=r"the GPU answers no more after loses.*run the same"):
            run_nodes([lost, *after], store, Reporter(out=out), workers)
        assert not any(each.done(store) for each in after)
    else:
        assert run_nodes([lost, *after], store, Reporter(out=out), workers) == [lost]
        assert "its process ended with 0" in out.getvalue()
        assert all(each.done(store) for each in after)
    record = read_record(lost.folder(store))
    assert record is not None and record.error == "RuntimeError: illegal access"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_mistake_in_the_foundations_is_raised_here(
    slow_stages: None, tmp_path: Path, workers: int
) -> None:
    nodes = [node("corpus", 1), node("fine", 2)]
    with pytest.raises(UserError, match="bad line"):
        run_nodes(nodes, tmp_path / "store", Reporter(quiet=True), workers)


def test_workers_leave_with_a_killed_parent(slow_stages: None, tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent("""
        import multiprocessing, os, time
        from engram_eval.running.workers import _leave_with

        def wait(parent):
            import threading
            threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
            time.sleep(60)

        if __name__ == "__main__":
            child = multiprocessing.get_context("spawn").Process(target=wait, args=(os.getpid(),))
            child.start()
            print(child.pid, flush=True)
            time.sleep(60)
        """)
    )
    import subprocess

    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(1.0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(50):
        if (
            not Path(f"/proc/{child}").exists()
            or "zombie" in Path(f"/proc/{child}/status").read_text()
        ):
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")


def test_a_heading_tells_the_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "time", clock := Clock())
    nodes = [Node("train", EvalConfig(limit=n)) for n in range(4)]
    usual = {"train": 45.0, "evaluate": 4.5}
    stages_of_five = [*nodes, Node("evaluate", EvalConfig())]
    plan = runner_module.Plan(stages_of_five, tmp_path, lambda node: usual[node.stage])
    first = plan.next()
    assert first is not None and plan.heading(first) == "[1/5] train"
    clock.now += 120
    plan.finish(first.key, None)
    second = plan.next()
    assert second is not None
    # Half of the one that runs, two more trainings, and an evaluation, much shorter as a rule.
    evaluation = 12.0
    assert plan.seconds_left() == pytest.approx(60 + 2 * 120 + evaluation)
    assert plan.heading(second) == "[2/5, about 5 min left] train"
    assert plan.next() is not None
    assert plan.seconds_left() == pytest.approx((2 * 60 + 120 + evaluation) / 2)


def test_a_kind_that_takes_longer_than_usual_corrects_itself_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "time", clock := Clock())
    nodes = [Node(stage, EvalConfig(limit=n)) for stage in ("load", "probe") for n in range(2)]
    plan = runner_module.Plan(
        nodes, tmp_path, lambda node: {"load": 1.0, "probe": 10.0}[node.stage]
    )
    for _ in range(2):
        loaded = plan.next()
        assert loaded is not None
        clock.now += 3
        plan.finish(loaded.key, None)
    # Three times the usual, as long as no probe has ended.
    assert plan.seconds_left() == pytest.approx(2 * 30)
    probe = plan.next()
    assert probe is not None
    clock.now += 5
    plan.finish(probe.key, None)
    assert plan.seconds_left() == pytest.approx(5)


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_script_without_a_guard_is_told_in_one_line(tmp_path: Path) -> None:
    script = 'from engram_eval import run\nrun("smoke", "out", workers=2, quiet=True)\n'
    (tmp_path / "unguarded.py").write_text(script)
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "unguarded.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1, done.stderr
    told = done.stderr.splitlines()[-1]
    assert told.startswith("engram_eval.errors.UserError: a worker process ended with exit code 1")
    assert '`if __name__ == "__main__":`' in told
