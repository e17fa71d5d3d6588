"""Generated code is contained: whatever it tries, it fails, and nothing of it is left."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engram_eval.errors import UserError
from engram_eval.evaluation import sandbox
from engram_eval.evaluation.code_eval import ContainedCodeEval, pass_at_k
from engram_eval.evaluation.sandbox import Limits, Outcome, check_sandbox, run_program

QUICK = Limits(wall_s=20.0, cpu_s=1, memory_bytes=2**28)


TEMPORARY = "import tempfile\nplace = tempfile.gettempdir()\n"


@pytest.fixture(scope="module", autouse=True)
def _needs_the_sandbox() -> None:
    """Elsewhere the tests are skipped; where everything must be there, they fail."""
    try:
        check_sandbox()
    except UserError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


def test_a_right_program_passes_and_a_wrong_one_says_why() -> None:
    assert run_program("import math\nassert math.sqrt(4) == 2") == Outcome(True, "passed")
    assert run_program("assert 1 + 1 == 3, 'sum'") == Outcome(False, "AssertionError: sum")
    assert run_program("def f(:").reason.startswith("SyntaxError")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("while True: pass", "limit"),
        ("x = []\nwhile True: x.append(bytearray(10**7))", "MemoryError"),
        ("import os\nwhile True: os.fork()", "unavailable"),
        ("import socket\nsocket.create_connection(('1.1.1.1', 80), 2)", "unreachable"),
        ("open('/usr/x', 'w')", "Read-only"),
        ("open('/python/x', 'w')", "Read-only"),
        (f"{TEMPORARY}open(f'{{place}}/x', 'wb').write(b'x' * 10**8)", "File too large"),
        (
            f"{TEMPORARY}for i in range(99): open(f'{{place}}/{{i}}', 'wb').write(b'x' * 10**6)",
            "No space",
        ),
        ("for i in range(99): open(f'/dev/shm/{i}', 'wb').write(b'x' * 10**6)", "No space"),
        ("f = [open('/dev/null') for _ in range(999)]", "Too many open files"),
        (f"import os\nos.listdir({str(Path.home())!r})", "No such file"),
        (f"open({__file__!r})", "No such file"),
        ("while True: print('x' * 10**6)", "limit"),
        ("import os\nwhile True: os.write(3, b'x' * 10**5)", "wrote where it must not"),
        (
            "import os, time\nif os.fork() == 0:\n os.setsid()\n"
            " if os.fork() == 0: time.sleep(99)\n os._exit(0)\nos.wait()",
            "left processes behind",
        ),
        ("import os\nos._exit(0)", "ended by itself"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("import os\nos.kill(1, 9)\nos.setuid(0)", "not permitted"),
        ("input()", "EOF"),
        ("import os\nassert len([p for p in os.listdir('/proc') if p.isdigit()]) > 2", "Assertion"),
        ("import os\nassert 'HOME' in os.environ", "Assertion"),
    ],
)  # fmt: skip
def test_it_is_contained_and_counts_as_a_failure(program: str, reason: str) -> None:
    passed, why = run_program(program, QUICK)
    assert not passed and reason in why


def test_a_program_that_only_waits_is_killed() -> None:
    started = time.monotonic()
    outcome = run_program("import time\ntime.sleep(99)", Limits(wall_s=1.0))
    assert outcome == Outcome(False, "killed after 1 s") and time.monotonic() - started < 30


def test_nothing_outlives_whoever_started_it() -> None:
    code = (
        "from engram_eval.evaluation.sandbox import Limits, run_program\n"
        "run_program('import time; marker_7391 = time.sleep(60)', Limits(wall_s=60))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        _wait(lambda: len(_descendants(parent.pid)) >= 2)
        children = _descendants(parent.pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _wait(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def _wait(condition, seconds: float = 30.0) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def _descendants(pid: int) -> list[int]:
    """Return the processes below one, at any depth."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in children.read_text().split()] if children.exists() else []
    return found + [below for child in found for below in _descendants(child)]


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    metric = ContainedCodeEval(lambda program: Outcome("right" in program, ""))
    scores, results = metric.compute(["t"], [["right", "wrong", "right", "wrong"]], k=[1, 2, 9])
    assert scores == {"pass@1": pytest.approx(0.5), "pass@2": pytest.approx(1 - 1 / 6)}
    assert [found["passed"] for _, found in results[0]] == [True, False, True, False]
    assert pass_at_k(3, 0, 1) == 0.0 and pass_at_k(3, 3, 2) == 1.0


def test_root_may_not_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UserError, match="refused as root"):
        run_program("pass", unsafe=True)


def test_without_bubblewrap_one_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"apt install bubblewrap.*--unsafe-code"):
        sandbox.check_sandbox.__wrapped__()


@pytest.mark.skipif(os.geteuid() == 0, reason="runs programs without a sandbox; not as root")
def test_the_unsafe_way_still_has_limits() -> None:
    assert run_program("pass", QUICK, unsafe=True).passed
    assert not run_program("while True: pass", QUICK, unsafe=True).passed
