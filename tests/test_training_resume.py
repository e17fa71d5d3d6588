"""Killed at any step and started again, a run ends with the same bytes."""

import dataclasses
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import training_tools as tools

from engram_eval.errors import UserError
from engram_eval.progress import Reporter, Task
from engram_eval.stage_config import TrainStage
from engram_eval.training.stage import train

SAME = ("train.jsonl", "validation.jsonl", "model/model.safetensors")
STEPS = 40
STAGE = TrainStage(
    tools.ARCHITECTURES["engram"],
    dataclasses.replace(tools.SETTINGS, tokens=STEPS * 128, save_every_s=0.05),
)


# Saves nothing but what is asked for.
UNSAVED = dataclasses.replace(STAGE, train=dataclasses.replace(STAGE.train, save_every_s=1e9))


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return finish(corpus, tmp_path_factory.mktemp("whole"))


def start(corpus: Path, out: Path) -> multiprocessing.process.BaseProcess:
    out.mkdir(exist_ok=True)
    process = multiprocessing.get_context("fork").Process(
        target=train, args=({"corpus": corpus}, STAGE, 0, out, Reporter(quiet=True))
    )
    process.start()
    return process


def finish(corpus: Path, out: Path, stage: TrainStage = STAGE) -> dict[str, bytes]:
    train({"corpus": corpus}, stage, 0, out, Reporter(quiet=True))
    assert not list(out.glob("resume-*"))
    return {name: (out / name).read_bytes() for name in SAME}


def steps_done(out: Path) -> int:
    log = out / "train.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def kill_at(corpus: Path, out: Path, step: int) -> int | None:
    """Kill a training process once ``step`` steps are logged; return its exit code."""
    process = start(corpus, out)
    while process.is_alive() and steps_done(out) < step:
        time.sleep(0.002)
    process.kill()
    process.join(timeout=60)
    return process.exitcode


def test_killed_once(corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    assert kill_at(corpus, tmp_path, 17) == -signal.SIGKILL
    assert steps_done(tmp_path) < STEPS
    assert finish(corpus, tmp_path) == undisturbed


@pytest.mark.slow
def test_killed_ten_times_at_random(
    corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    rng = random.Random(0)
    for _ in range(10):
        # Beyond what the killed run before has logged, so that every run gets somewhere.
        kill_at(corpus, tmp_path, steps_done(tmp_path) + rng.randint(1, 5))
    assert finish(corpus, tmp_path) == undisturbed


class Signaller(Reporter):
    """Sends this process a signal when a step is reported, as a user or a scheduler would."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(quiet=True)
        self.step, self.number = step, number

    @contextmanager
    def task(self, title: str, total: float) -> Iterator[Task]:
        signaller = self

        class Counting(Task):
            def show(self, info: str) -> None:
                if self.done == signaller.step:
                    os.kill(os.getpid(), signaller.number)

        yield Counting(title, total)


def interrupt(
    corpus: Path,
    out: Path,
    step: int,
    number: int = signal.SIGTERM,
    stage: TrainStage = STAGE,
) -> BaseException:
    out.mkdir(exist_ok=True)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as caught:
        train({"corpus": corpus}, stage, 0, out, Signaller(step, number))
    return caught.value


def test_asked_to_end_it_saves_and_leaves(
    corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    left = interrupt(corpus, tmp_path, 9, stage=UNSAVED)
    assert isinstance(left, SystemExit) and left.code == 128 + signal.SIGTERM
    assert list(tmp_path.glob("resume-000009-*")) and steps_done(tmp_path) == 9
    assert isinstance(interrupt(corpus, tmp_path, 5, signal.SIGINT, UNSAVED), KeyboardInterrupt)
    assert list(tmp_path.glob("resume-000014-*")) and steps_done(tmp_path) == 14
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert finish(corpus, tmp_path, UNSAVED) == undisturbed


def test_a_damaged_resume_point_stops_and_is_named(
    corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    interrupt(corpus, tmp_path, 9)
    interrupt(corpus, tmp_path, 9)
    newest = max(tmp_path.glob("resume-*"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 4
    newest.write_bytes(data)
    with pytest.raises(UserError, match=f"{newest.name}: damaged .* go on from resume-0"):
        train({"corpus": corpus}, STAGE, 0, tmp_path, Reporter(quiet=True))
    newest.unlink()
    assert finish(corpus, tmp_path) == undisturbed


def test_a_resume_point_of_another_seed_is_refused(corpus: Path, tmp_path: Path) -> None:
    interrupt(corpus, tmp_path, 2)
    with pytest.raises(UserError, match="resume point of another run"):
        train({"corpus": corpus}, STAGE, 1, tmp_path, Reporter(quiet=True))


def test_a_lost_log_is_named(corpus: Path, tmp_path: Path) -> None:
    interrupt(corpus, tmp_path, 2)
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(UserError, match=r"train.jsonl: 0 bytes, but the resume point knows"):
        train({"corpus": corpus}, STAGE, 0, tmp_path, Reporter(quiet=True))
