"""Run the stages of a study, one after the other or in several processes side by side."""

import functools
import itertools
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from engram_eval.allocator import kept_out_of_collections
from engram_eval.environment import gpu_is_lost, gpus, take_gpu
from engram_eval.errors import UserError
from engram_eval.node import Node
from engram_eval.progress import Board, RemoteReporter, Reporter
from engram_eval.running.node_run import run_node
from engram_eval.stages import TRAININGS

FOUNDATIONS = ("corpus", "load")
"""Stages whose mistakes end the study; elsewhere they are recorded and the rest goes on."""

TRAININGS_PER_GPU = 2
"""That share one: while one is compiled, loaded or saved, the other computes."""

Seconds = Callable[[Node], float]
"""About how long a stage takes; only ratios count."""

NOT_BEGUN = (
    "a worker process ended with exit code {} before it began. Each imports the script that starts "
    'it: what that does belongs under `if __name__ == "__main__":`, in a file; or workers=1'
)

Launcher = Callable[["Plan", Path, Reporter], None]
"""Runs everything that a plan allows; failures are noted in the plan."""


def run_nodes(
    nodes: Sequence[Node],
    store: Path,
    report: Reporter,
    workers: int,
    launcher: Launcher | None = None,
    usual: Seconds | None = None,
) -> list[Node]:
    """Run what is not finished, inputs first; return what failed or could not run.

    Args:
        nodes: in an order in which every input comes before its user.
        store: where results lie.
        report: where progress goes.
        workers: processes; 1 runs everything in this one.
        launcher: runs the stages elsewhere, as jobs of a cluster; None: processes here.
        usual: from which the time left is told, corrected by what has ended; None: all alike.

    Raises:
        UserError: a mistake in what everything else depends on (``FOUNDATIONS``).
    """
    # Arms of equal configuration share their results.
    nodes = list({node.key: node for node in nodes}.values())
    todo = [node for node in nodes if not node.done(store)]
    if len(todo) < len(nodes):
        report.say(f"{len(nodes) - len(todo)} of {len(nodes)} stages are finished already")
    plan = Plan(todo, store, usual or _alike)
    if launcher is not None:
        launcher(plan, store, report)
    elif workers <= 1 or len(todo) <= 1:
        _run_here(plan, store, report)
    else:
        _run_beside(plan, store, report, min(workers, len(todo)))
    for node in plan.blocked():
        report.say(f"{node.label}: not run, an input failed")
    return plan.failed + plan.blocked()


def _alike(node: Node) -> float:
    return 1.0


@dataclass
class Plan:
    """What is waiting, running, finished or failed.

    Attributes:
        usual: see ``run_nodes``.
        took: of each kind of stage, the seconds that those took that ended, and the usual ones.
    """

    waiting: list[Node]
    store: Path
    usual: Seconds = _alike
    running: dict[str, Node] = field(default_factory=dict)
    failed: list[Node] = field(default_factory=list)
    total: int = 0
    started: int = 0
    began: dict[str, float] = field(default_factory=dict)
    took: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.total = len(self.waiting)

    def next(self, without: Collection[str] = ()) -> Node | None:
        """Take the first node whose inputs are all finished, and whose stage is not excluded."""
        for node in self.waiting:
            ready = all(source.done(self.store) for source in node.inputs.values())
            if ready and node.stage not in without:
                self.waiting.remove(node)
                self.running[node.key] = node
                self.began[node.key] = time.monotonic()
                self.started += 1
                return node
        return None

    def finish(self, key: str, error: str | None) -> Node:
        """Note how a node ended."""
        node = self.running.pop(key)
        seconds = time.monotonic() - self.began[key]
        self.took.setdefault(node.stage, []).append((seconds, self.usual(node)))
        if error is not None:
            self.failed.append(node)
        return node

    def heading(self, node: Node) -> str:
        """Return a line on a node that starts, with the time left where something has ended."""
        left = self.seconds_left()
        time_left = "" if left is None else f", about {_in_words(left)} left"
        return f"[{self.started}/{self.total}{time_left}] {node.label}"

    def show(self, board: Board) -> None:
        """Show how many stages have ended, and the time left."""
        ended = self.started - len(self.running)
        board.whole(f"all {self.total} stages", ended, self.total, self.seconds_left())

    def seconds_left(self) -> float | None:
        """Estimate from what ended, over what is usual of it; None before the first.

        A kind that none has ended of is taken to be to the others as is usual. Divided by the
        stages that run side by side.
        """
        if not self.took:
            return None
        overall = _pace(itertools.chain(*self.took.values()))

        def expected(node: Node) -> float:
            ended = self.took.get(node.stage)
            return self.usual(node) * (_pace(ended) if ended else overall)

        halves = sum(map(expected, self.running.values())) / 2
        return (sum(map(expected, self.waiting)) + halves) / max(1, len(self.running))

    def blocked(self) -> list[Node]:
        """Return what still waits; at the end, what cannot run."""
        return list(self.waiting)


def _in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _pace(ended: Iterable[tuple[float, float]]) -> float:
    """Return how much longer stages took than usual."""
    took, usual = map(sum, zip(*ended, strict=True))
    return took / usual


def _run_here(plan: Plan, store: Path, report: Reporter) -> None:
    with kept_out_of_collections() as keep:
        while node := plan.next():
            report.say(plan.heading(node))
            try:
                error = run_node(node, store, report)
            except UserError as mistake:
                if node.stage in FOUNDATIONS:
                    raise
                error = str(mistake)
            keep()
            plan.finish(node.key, error)
            if error is not None:
                report.say(f"{node.label} failed: {error}")
                _check_gpu(node)


def _check_gpu(failed: Node) -> None:
    """End the study where nothing that comes after a failed stage could be computed."""
    if gpu_is_lost():
        raise UserError(
            f"the GPU answers no more after {failed.label}: run the same command again, "
            "what is finished stays"
        )


def _run_beside(plan: Plan, store: Path, report: Reporter, workers: int) -> None:
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    hire = functools.partial(_Worker, context, events, store=store)
    crew = [hire(number=number) for number in range(workers)]
    try:
        with Board(report) as board:
            _serve(plan, crew, hire, events, board)
    finally:
        for worker in crew:
            worker.stop()


class _Worker:
    """A process that runs the nodes it is given, until it is given None."""

    def __init__(self, context: Any, events: Any, number: int, store: Path) -> None:
        self.tasks: Any = context.Queue()
        self.begun: Any = context.Event()
        self.process: BaseProcess = context.Process(
            target=_work,
            args=(self.tasks, events, self.begun, number, store, os.getpid()),
            daemon=True,
        )
        self.number = number
        self.node: Node | None = None
        self.process.start()

    def give(self, node: Node) -> None:
        self.node = node
        self.tasks.put(node)

    def stop(self) -> None:
        """Let an idle process leave; ask a busy one to save and leave."""
        if self.node is None:
            self.tasks.put(None)
        else:
            self.process.terminate()
        self.process.join(timeout=60)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(
    plan: Plan, crew: list[_Worker], hire: Callable[..., _Worker], events: Any, board: Board
) -> None:
    devices = gpus()
    while True:
        _bury(plan, crew, hire, board)
        for worker in [w for w in crew if w.node is None and w.process.is_alive()]:
            node = plan.next(_excluded(crew, worker.number, devices))
            if node is None:
                continue
            board.say(plan.heading(node))
            worker.give(node)
        if not plan.running:
            return
        plan.show(board)
        try:
            event = events.get(timeout=1.0)
        except queue.Empty:
            continue
        if event[0] == "progress":
            board.update(*event[1:])
            continue
        _, number, key, error, users_mistake = event
        crew[number].node = None
        if users_mistake and plan.running[key].stage in FOUNDATIONS:
            raise UserError(error)
        node = plan.finish(key, error)
        if error is not None:
            board.say(f"{node.label} failed: {error}")


def _excluded(crew: Sequence[_Worker], number: int, devices: int) -> Sequence[str]:
    """Return the stages that a worker must not begin: its GPU has enough trainings."""
    if not devices:
        return ()
    beside = [w.node for w in crew if w.node and w.number % devices == number % devices]
    return TRAININGS if sum(n.stage in TRAININGS for n in beside) >= TRAININGS_PER_GPU else ()


def _bury(plan: Plan, crew: list[_Worker], hire: Callable[..., _Worker], board: Board) -> None:
    """Replace processes that died (out of memory, a signal); their nodes have failed.

    Raises:
        UserError: one that could not even begin, as its successors could not.
    """
    for number, worker in enumerate(crew):
        if worker.process.is_alive():
            continue
        code = worker.process.exitcode or 0
        if code > 0 and not worker.begun.is_set():
            raise UserError(NOT_BEGUN.format(code))
        if worker.node is not None and worker.node.key in plan.running:
            node = plan.finish(worker.node.key, "died")
            board.say(f"{node.label} failed: its process ended with {worker.process.exitcode}")
        crew[number] = hire(number=number)


def _work(tasks: Any, events: Any, begun: Any, number: int, store: Path, parent: int) -> None:
    begun.set()
    # A terminal's Ctrl-C reaches every process; only the parent decides who saves and leaves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    report = RemoteReporter(events)
    take_gpu(number)
    with kept_out_of_collections() as keep:
        while node := tasks.get():
            report.label = node.label
            try:
                error, users_mistake = run_node(node, store, report), False
            except UserError as mistake:
                error, users_mistake = str(mistake), True
            except (KeyboardInterrupt, SystemExit):
                return
            keep()
            if error is not None and gpu_is_lost():
                # Its successor has a GPU again.
                return
            events.put(("end", number, node.key, error, users_mistake))


def _leave_with(parent: int) -> None:
    """End this process when the one that started it is gone, killed or not."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
