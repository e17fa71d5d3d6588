"""How verdicts are read."""

from reports.load import Verdict

WORDS = {
    "supported": "supported",
    "no_difference": "no difference",
    "reversed": "reversed",
    "inconclusive": "inconclusive",
}


def word(verdict: Verdict) -> str:
    """Return the verdict as it is read."""
    return WORDS.get(verdict.verdict, verdict.verdict)
