"""Runs a program that a language model wrote, inside bubblewrap.

The program sees a read-only Python and system libraries, a small temporary folder of its own, no
network, no other process and no home folder; CPU time, memory, files and processes are limited.
Run as root, it becomes a user without rights first: limits on processes do not bind root.
"""

import contextlib
import functools
import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from engram_eval.errors import UserError

INSTALL = (
    "install bubblewrap (Debian, Ubuntu: apt install bubblewrap, or `make system`; Fedora: dnf "
    "install bubblewrap), or run as an ordinary user with --unsafe-code"
)
MOST_REPORT_BYTES = 4096
_FIRST_UID, _UIDS = 20_000, 40_000


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
        wall_s: seconds on the clock, after which it is killed.
        cpu_s: seconds of CPU time of each of its processes.
        memory_bytes: address space of each of its processes.
        file_bytes: one file; also all of its temporary folder together.
        processes: processes and threads, its own included.
        open_files: file descriptors.
    """

    wall_s: float = 60.0
    cpu_s: int = 20
    memory_bytes: int = 2**29
    file_bytes: int = 2**24
    processes: int = 8
    open_files: int = 64

    def rlimits(self) -> dict[str, int]:
        """Return them as ``setrlimit`` knows them."""
        return {
            "RLIMIT_CPU": self.cpu_s,
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
        }


class Outcome(NamedTuple):
    """How a program ended: whether it ran to its end without an error, and what happened."""

    passed: bool
    reason: str


def run_program(program: str, limits: Limits | None = None, unsafe: bool = False) -> Outcome:
    """Run Python source; it passes if it ends without an exception or a process left behind.

    Args:
        program: what to run; its output goes nowhere, its input is empty.
        limits: default ``Limits()``.
        unsafe: without bubblewrap. The limits hold, but it can read and write what you can.

    Raises:
        UserError: no bubblewrap, or ``unsafe`` as root.
    """
    limits = limits or Limits()
    if unsafe:
        check_unsafe()
    else:
        check_sandbox()
    return _run(program, limits, unsafe)


@functools.cache
def check_sandbox() -> None:
    """Raise ``UserError`` unless bubblewrap is installed and works here."""
    if shutil.which("bwrap") is None:
        raise UserError(f"generated code runs only in a sandbox, and there is none: {INSTALL}")
    outcome = _run("pass", Limits(), unsafe=False)
    if not outcome.passed:
        raise UserError(f"bubblewrap does not work here ({outcome.reason}): {INSTALL}")


def check_unsafe() -> None:
    """Raise ``UserError`` for root: its programs could do anything."""
    if os.geteuid() == 0:
        raise UserError("--unsafe-code: refused as root; install bubblewrap, or be another user")


def _run(program: str, limits: Limits, unsafe: bool) -> Outcome:
    nonce = secrets.token_hex(16)
    root = os.geteuid() == 0
    job = {
        "program": program,
        "nonce": nonce,
        "limits": limits.rlimits(),
        # A user of its own, so that the limit on processes counts those of this program alone.
        "uid": _FIRST_UID + secrets.randbelow(_UIDS) if root else None,
        "alone": not unsafe,
    }
    command = _plain_command() if unsafe else _sandbox_command(limits, root)
    with tempfile.TemporaryDirectory() as folder:
        place = folder if unsafe else "/"
        return _watch(command, json.dumps(job).encode(), place, nonce, limits.wall_s)


def _plain_command() -> list[str]:
    return [sys.executable, *_PYTHON_FLAGS, _LAUNCHER]


def _sandbox_command(limits: Limits, root: bool) -> list[str]:
    """Return bubblewrap's command line, up to and with the program that starts the program."""
    words = ["bwrap", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    if root:
        # Without a user namespace, so that the launcher can become somebody else.
        words += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
        words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        words += ["--unshare-all"]
    words += ["--ro-bind", "/usr", "/usr", "--ro-bind", sys.base_prefix, "/python"]
    for name in ("/lib", "/lib64", "/bin"):
        if os.path.islink(name):
            words += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            words += ["--ro-bind", name, name]
    words += ["--proc", "/proc", "--dev", "/dev"]
    for name in ("/tmp", "/dev/shm"):
        words += ["--perms", "1777", "--size", str(limits.file_bytes), "--tmpfs", name]
    words += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
    # Python finds its own library here although it was built for another folder.
    words += ["--setenv", "LD_LIBRARY_PATH", "/python/lib"]
    binary = Path("/python") / Path(os.path.realpath(sys.executable)).relative_to(
        os.path.realpath(sys.base_prefix)
    )
    return [*words, str(binary), *_PYTHON_FLAGS, _LAUNCHER]


def _watch(command: list[str], job: bytes, folder: str, nonce: str, wall_s: float) -> Outcome:
    """Start a command, read what it reports, and kill it when it says too much or is too slow.

    The launcher says that it is ready before it is given the job: whoever is killed while the
    sandbox is still being built, when it would not die with its parent, has started no program.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env={},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + wall_s
        said, in_time = _read(process, deadline, len(_READY))
        if said == _READY:
            _hand_over(process, job)
            said = b""
        if in_time:
            more, in_time = _read(process, deadline, MOST_REPORT_BYTES - len(said))
            said += more
    finally:
        _kill(process)
    text = said.decode(errors="replace")
    if text.startswith(nonce):
        reason = text.removeprefix(nonce)
        return Outcome(reason == "passed", reason)
    if not in_time:
        return Outcome(False, f"killed after {wall_s:g} s")
    if len(said) >= MOST_REPORT_BYTES:
        return Outcome(False, "killed: it wrote where it must not")
    last = text.strip().splitlines()[-1:] or [f"ended by itself or a limit ({process.returncode})"]
    return Outcome(False, last[0])


def _hand_over(process: "subprocess.Popen[bytes]", job: bytes) -> None:
    """Write all that a launcher reads; one that has died meanwhile shows in what it reports."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(job)
        process.stdin.close()


def _read(process: "subprocess.Popen[bytes]", deadline: float, most: int) -> tuple[bytes, bool]:
    """Return the first bytes that a process writes, and whether it ended (or wrote) in time."""
    assert process.stdout is not None
    said = b""
    while len(said) < most:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            return said, False
        part = os.read(process.stdout.fileno(), most - len(said))
        if not part:
            break
        said += part
    return said, True


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End the whole session; the sandbox's own processes die with bubblewrap."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


_READY = b"\x06"
_PYTHON_FLAGS = ("-I", "-S", "-B", "-c")
# Runs inside. Reports on what was standard output, which the program no longer has.
_LAUNCHER = """
import json, os, resource, sys
os.write(1, b"\\x06")
job = json.load(sys.stdin)
if job["uid"]:
    os.setgroups([])
    os.setgid(job["uid"])
    os.setuid(job["uid"])
for name, value in job["limits"].items():
    resource.setrlimit(getattr(resource, name), (value, value))
report = os.dup(1)
null = os.open("/dev/null", os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(null, stream)

def others():
    mine = {1, os.getpid()}
    found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in found if pid not in mine and "State:\\tZ" not in status(pid)]

def status(pid):
    try:
        return open(f"/proc/{pid}/status").read()
    except OSError:
        return "State:\\tZ"

def outcome():
    try:
        exec(compile(job["program"], "<program>", "exec"), {})
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300]
    if job["alone"] and others():
        return "it left processes behind"
    return "passed"

me = os.getpid()
said = outcome()
if os.getpid() == me:
    os.write(report, (job["nonce"] + said).encode(errors="replace"))
os._exit(0)
"""
