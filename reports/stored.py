"""What is recorded of the facts that models have stored."""

from collections.abc import Sequence

from engram_eval.records import MetricRow
from reports.load import Study
from reports.numbers import listing, percent
from reports.query import pick, values

NAME = "capacity"
TRAINED, HELD_OUT = "trained", "held_out"


def stored_shares(rows: Sequence[MetricRow], model: str, wording: str = TRAINED) -> list[float]:
    """Return the share of its facts' bits that a model has stored, by seed."""
    found = pick(rows, name=NAME, metric="stored_share", model=model, condition=None)
    return values(row for row in found if dict(row.slice) == {"wording": wording})


def told(study: Study, a: str, b: str) -> tuple[str, str] | None:
    """Say which of two models stores more of its facts; None where that is not recorded.

    Returns:
        A verdict, as ``reports.answer.Answer`` has it, and the sentence.
    """
    less, more = (stored_shares(study.rows, name) for name in (a, b))
    if not less or not more:
        return None
    ahead, behind = min(more) > max(less), max(more) < min(less)
    verdict = "lower" if ahead else "higher" if behind else "mixed"
    lead = {"lower": f"{b} stores more facts than {a}", "higher": f"{b} stores fewer than {a}"}
    sentence = lead.get(verdict, f"No clear difference between {b} and {a}")
    text = f"{sentence}: {_against(more, less)} of the facts' bits"
    asked = [stored_shares(study.rows, name, HELD_OUT) for name in (b, a)]
    if all(asked):
        text += f"; asked for in a wording that was never told, {_against(*asked)}"
    return verdict, f"{text}."


def _against(b: Sequence[float], a: Sequence[float]) -> str:
    both = (listing([percent(share) for share in shares]) for shares in (b, a))
    return " % against ".join(both) + " %"
