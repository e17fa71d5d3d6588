import io
import queue

from engram_eval.progress import Board, RemoteReporter, Reporter


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


def test_a_table_tells_all_of_the_work_and_each_piece_by_name() -> None:
    out, events = Terminal(), queue.Queue[tuple]()
    sender = RemoteReporter(events)
    with Board(Reporter(out=out)) as board:
        board.whole("all 57 stages", 14, 57, 3725.4)
        for label, title in (
            ("train moe seed 0", "train"),
            ("probe cka moe", "text"),
            ("corpus", "corpus: count"),
        ):
            sender.label = label
            with sender.task(title, 4) as task:
                task.advance(2, "loss 2.3")
                while not events.empty():
                    board.update(*events.get()[1:])
                assert board.bars is not None
                board.bars.refresh()
    shown = out.getvalue()
    assert all(text in shown for text in ("all 57 stages", "25 %", "1:02:05", "loss 2.3"))
    assert "train moe seed 0 " in shown and "probe cka moe: text" in shown
    assert "corpus: count" in shown and "corpus: corpus" not in shown


def test_without_a_terminal_the_whole_is_told_by_messages() -> None:
    out = io.StringIO()
    with Board(Reporter(out=out)) as board:
        board.whole("all 57 stages", 14, 57, 3725.4)
        board.say("[15/57, about 62 min left] train moe seed 0")
    assert out.getvalue() == "[15/57, about 62 min left] train moe seed 0\n"
