"""What the README tells is so: its targets exist, its numbers are those that are published."""

import re
import shlex
from pathlib import Path

import pytest

from engram_eval.claims.stored import read_verdicts
from engram_eval.claims.table import markdown as verdict_table
from engram_eval.claims.table import tally
from reports.markdown import results

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL))


def commands(program: str) -> list[list[str]]:
    """Return the arguments of each line that runs a program, comments left out."""
    lines = (shlex.split(line, comments=True) for line in SHELL.splitlines())
    return [words[1:] for words in lines if words and words[0].endswith(program)]


def test_there_are_commands_to_show() -> None:
    assert len(commands("engram-eval")) >= 8
    assert ["study"] in commands("make") and ["test"] in commands("make")


@pytest.mark.parametrize("target", re.findall(r"`make ([a-z-]+)`", TEXT))
def test_every_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_the_plain_commands_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in ('-m "not slow" -n auto --dist loadfile', "engram-eval run quick"):
        assert command in makefile and command in SHELL


def test_the_results_are_the_published_ones() -> None:
    """The table is what `engram-eval report runs/quick --markdown` prints."""
    assert results(ROOT / "reports/published/quick") in TEXT


def test_intervals_that_are_told_are_those_of_verdicts() -> None:
    """Each `(0.073 to 0.176)` of the findings is the interval of a published claim."""
    section = TEXT.partition("<!-- verdicts -->")[2].partition("<!-- /verdicts -->")[0]
    section += (ROOT / "docs/findings.md").read_text()
    told = re.findall(r"(-?\d+\.\d{2,3}) to\s+(-?\d+\.\d{2,3})", section)
    entries = [
        entry
        for path in (ROOT / "reports/published").glob("*/verdicts.json")
        for entry in read_verdicts(path.parent)
        if entry["ci_low"] is not None
    ]
    known = {
        tuple(f"{bound:.{digits}f}".replace("-0.000", "0.000") for bound in bounds)
        for entry in entries
        for bounds in (
            (entry["ci_low"], entry["ci_high"]),
            # What a claim says the other way round.
            (-entry["ci_high"], -entry["ci_low"]),
        )
        for digits in (2, 3)
    }
    assert len(told) >= 40
    assert not [bounds for bounds in told if bounds not in known]


def test_the_verdicts_are_the_published_ones() -> None:
    """The table is what `engram-eval claims reports/published/* --markdown` prints."""
    folders = sorted(path.parent for path in (ROOT / "reports/published").glob("*/verdicts.json"))
    entries = [entry for folder in folders for entry in read_verdicts(folder)]
    assert entries
    assert verdict_table(entries) in (ROOT / "docs/verdicts.md").read_text()
    assert f"{len(entries)} claims from {len(folders)} studies: {tally(entries)};" in TEXT
