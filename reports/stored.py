"""What is recorded of the facts that models have stored."""

from collections.abc import Sequence

from engram_eval.records import MetricRow
from reports.load import Study
from reports.numbers import listing, percent
from reports.query import pick, values

NAME = "capacity"
TRAINED = {"wording": "trained"}


def stored_shares(rows: Sequence[MetricRow], model: str) -> list[float]:
    """Return the share of its facts' bits that a model has stored in told wordings, by seed."""
    return values(
        pick(rows, name=NAME, metric="stored_share", model=model, condition=None, slice=TRAINED)
    )


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
    both = " against ".join(
        f"{listing([percent(share) for share in shares])} %" for shares in (more, less)
    )
    sentence = lead.get(verdict, f"No clear difference between {b} and {a}")
    return verdict, f"{sentence}: {both} of the facts' bits."
