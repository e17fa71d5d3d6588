"""Progress for people: a bar with time left on a terminal, one line per interval elsewhere."""

import itertools
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Task as Row
from rich.text import Text


class Task:
    """One piece of long work; ``advance`` reports how much of ``total`` is done."""

    def __init__(self, title: str, total: float) -> None:
        self.title, self.total, self.done = title, total, 0.0
        self.started = time.monotonic()

    def advance(self, amount: float = 1.0, info: str = "") -> None:
        """Count ``amount`` more as done; ``info`` is a short text such as ``loss 2.31``."""
        self.done += amount
        self.show(info)

    def show(self, info: str) -> None:
        """Draw the present state; overridden by the kinds that show something."""


class _Line(Task):
    """Prints one line per interval, for logs."""

    def __init__(self, title: str, total: float, out: TextIO, interval_s: float) -> None:
        super().__init__(title, total)
        self.out, self.interval_s, self.last = out, interval_s, self.started

    def show(self, info: str) -> None:
        now = time.monotonic()
        if now - self.last < self.interval_s:
            return
        self.last = now
        share = min(1.0, self.done / self.total) if self.total else 1.0
        left = (now - self.started) * (1 - share) / share if share > 0 else float("nan")
        print(
            f"{self.title}: {share:4.0%}, {left:.0f} s left {info}".rstrip(),
            file=self.out,
            flush=True,
        )


class _Bar(Task):
    """Moves a bar of rich."""

    def __init__(self, title: str, total: float, bar: Progress) -> None:
        super().__init__(title, total)
        self.bar = bar
        self.id = bar.add_task(title, total=total, info="")

    def show(self, info: str) -> None:
        self.bar.update(self.id, completed=self.done, info=info)


class Reporter:
    """Where progress and messages go; passed down as an argument, never global.

    Args:
        quiet: show nothing but errors.
        out: the stream; a terminal gets bars.
        interval_s: seconds between two lines where there is no terminal.
    """

    def __init__(
        self, quiet: bool = False, out: TextIO | None = None, interval_s: float = 10.0
    ) -> None:
        self.quiet, self.out, self.interval_s = quiet, out or sys.stderr, interval_s

    def say(self, message: str) -> None:
        """Print one line, unless quiet."""
        if not self.quiet:
            print(message, file=self.out, flush=True)

    @contextmanager
    def task(self, title: str, total: float) -> Iterator[Task]:
        """Show progress of a piece of work while the block runs."""
        if self.quiet:
            yield Task(title, total)
        elif self.out.isatty():
            with _bars(self.out) as bar:
                yield _Bar(title, total, bar)
        else:
            yield _Line(title, total, self.out, self.interval_s)


class _Left(TimeRemainingColumn):
    """The time left: as it goes, or what a row has been told."""

    def render(self, task: Row) -> Text:
        """Return the cell of a row."""
        told = task.fields.get("seconds_left")
        if told is None:
            return super().render(task)
        minutes, seconds = divmod(round(told), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours}:{minutes:02}:{seconds:02}", style="progress.remaining")


def _bars(out: TextIO) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        _Left(),
        TextColumn("{task.fields[info]}"),
        console=Console(file=out),
        transient=True,
    )


class _Sent(Task):
    """Puts its state on a queue for the process that draws."""

    def __init__(self, title: str, total: float, events: Any, number: tuple[int, int]) -> None:
        super().__init__(title, total)
        self.events, self.number, self.last = events, number, 0.0

    def show(self, info: str) -> None:
        now = time.monotonic()
        if now - self.last >= 0.5 or self.done >= self.total:
            self.last = now
            self.events.put(("progress", self.number, self.title, self.done, self.total, info))


class RemoteReporter(Reporter):
    """The reporter of a worker process: another process draws what it sends (``Board``).

    Attributes:
        label: of the stage that is at work, which tells its rows from those of the others.
    """

    def __init__(self, events: Any) -> None:
        super().__init__(quiet=False)
        self.events, self.counter, self.label = events, itertools.count(), ""

    def say(self, message: str) -> None:
        """Send one line."""
        self.events.put(("progress", (os.getpid(), -1), message, 0.0, 0.0, ""))

    @contextmanager
    def task(self, title: str, total: float) -> Iterator[Task]:
        """Send the progress of a piece of work while the block runs."""
        number = (os.getpid(), next(self.counter))
        yield _Sent(self._named(title), total, self.events, number)
        self.events.put(("progress", number, title, total, 0.0, ""))

    def _named(self, title: str) -> str:
        """Return a title with the stage's label, none of both twice."""
        if title.startswith(self.label):
            return title
        return self.label if self.label.startswith(title) else f"{self.label}: {title}"


class Board:
    """Draws the progress of several processes at once; a total of 0 ends a piece of work.

    On a terminal a table: a row for all of the work, then one for each piece that is going on.
    """

    def __init__(self, report: Reporter) -> None:
        self.report, self.tasks, self.stack = report, dict[Any, Task](), ExitStack()
        self.bars: Progress | None = None
        self.all: Any = None

    def __enter__(self) -> "Board":
        if not self.report.quiet and self.report.out.isatty():
            self.bars = self.stack.enter_context(_bars(self.report.out))
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def say(self, message: str) -> None:
        """Print one line above the bars."""
        if self.bars is not None:
            self.bars.console.print(message, markup=False, highlight=False)
        else:
            self.report.say(message)

    def whole(self, title: str, done: float, total: float, seconds_left: float | None) -> None:
        """Show how far all of the work is; only in a table, messages tell it elsewhere."""
        if self.bars is None:
            return
        if self.all is None:
            self.all = self.bars.add_task(title, total=total, info="")
        self.bars.update(self.all, completed=done, seconds_left=seconds_left)

    def update(self, number: Any, title: str, done: float, total: float, info: str) -> None:
        """Show one event of a ``RemoteReporter``."""
        if number[1] < 0:
            self.say(title)
        elif total == 0:
            ended = self.tasks.pop(number, None)
            if isinstance(ended, _Bar):
                ended.bar.remove_task(ended.id)
        else:
            task = self.tasks.get(number) or self.tasks.setdefault(number, self._new(title, total))
            task.advance(done - task.done, info)

    def _new(self, title: str, total: float) -> Task:
        if self.report.quiet:
            return Task(title, total)
        if self.bars is not None:
            return _Bar(title, total, self.bars)
        return _Line(title, total, self.report.out, self.report.interval_s)
