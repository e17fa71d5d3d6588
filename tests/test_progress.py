import io

from engram_eval.progress import Reporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_is_a_line_per_interval() -> None:
    out = io.StringIO()
    with Reporter(out=out, interval_s=0.0).task("train", 4) as task:
        task.advance(1, "loss 2.31")
        task.advance(3)
    first, second = out.getvalue().splitlines()
    assert first.startswith("train:  25%") and first.endswith("loss 2.31")
    assert second.startswith("train: 100%, 0 s left")


def test_between_two_intervals_there_is_silence() -> None:
    out = io.StringIO()
    with Reporter(out=out, interval_s=60.0).task("train", 4) as task:
        task.advance()
    assert out.getvalue() == ""


def test_quiet_is_quiet_and_still_counts() -> None:
    out = io.StringIO()
    report = Reporter(quiet=True, out=out)
    report.say("hello")
    with report.task("train", 4) as task:
        task.advance(2)
    assert task.done == 2
    assert out.getvalue() == ""


def test_a_terminal_gets_a_bar() -> None:
    out = Terminal()
    report = Reporter(out=out)
    report.say("hello")
    with report.task("train", 4) as task:
        task.advance(4, "loss 1.0")
    assert "hello" in out.getvalue() and "train" in out.getvalue()
