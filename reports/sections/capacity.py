"""Capacity: bits of facts that are stored, against what there is to store."""

from collections.abc import Mapping, Sequence

from engram_eval.records import MetricRow
from reports.blocks import Block, Panel, View, flat_rows
from reports.draw import Canvas, Dot, dots
from reports.load import Study
from reports.numbers import fixed, listing, percent
from reports.query import pick, value_of, values, who
from reports.sections.layers import drawn_models
from reports.theme import Look, looks

NAME = "capacity"
TRAINED, HELD_OUT = "trained", "held_out"
WORDINGS = {TRAINED: "wordings that were told", HELD_OUT: "a wording that was never told"}
STRANGERS = "strangers"


def capacity_block(study: Study, rows: Sequence[MetricRow]) -> Block:
    """Draw every seed's share of the facts, its bits per parameter, and the control."""
    look, models = looks(study), drawn_models(study, rows)
    shares = [
        row
        for row in pick(rows, metric="stored_share", condition=None)
        if set(row.slice) == {"wording"}
    ]
    control = pick(rows, metric="stored_share", condition=STRANGERS)
    dense = pick(rows, metric="bits_per_parameter")
    views = [
        View("share stored", _panels(shares, models, look, "share of the facts' bits")),
        View("bits per parameter", _panels(dense, models, look, "bits per parameter")),
    ]
    if control:
        drawn = _picture(control, models, look, "share of made-up facts' bits")
        views.append(View("people who do not exist", [Panel("", drawn)]))
    return Block(
        NAME,
        "Capacity: bits of facts that are stored",
        finding(rows, models),
        views,
        flat_rows(rows),
        legend=models,
        key="A fact's bits are those of its value for who does not know the person; stored is what "
        "the value costs the model less. Each point is one seed. Control: about people who do not "
        "exist nothing can have been stored, so that all lies at 0 or below.",
    )


def _panels(
    rows: Sequence[MetricRow], models: Sequence[str], look: Mapping[str, Look], label: str
) -> list[Panel]:
    return [
        Panel(told, _picture(part, models, look, label))
        for wording, told in WORDINGS.items()
        if (part := [row for row in rows if row.slice.get("wording") == wording])
    ]


def _picture(
    rows: Sequence[MetricRow], models: Sequence[str], look: Mapping[str, Look], label: str
) -> Canvas:
    drawn = [
        Dot(
            models.index(str(row.model)),
            value_of(row),
            look[str(row.model)],
            f"{who(row)}: {fixed(value_of(row), 4)} {label}",
        )
        for row in rows
    ]
    return dots(models, drawn, label, apart=False)


def finding(rows: Sequence[MetricRow], models: Sequence[str]) -> str:
    """Quote every seed's share of told wordings, of the models with most facts to store."""
    bits = {
        model: found[0]
        for model in models
        if (found := values(pick(rows, model=model, metric="facts_bits")))
    }
    most = max(bits.values(), default=0.0)
    told = [
        f"{model} {listing([percent(share) for share in stored_shares(rows, model)])} %"
        for model in models
        if bits.get(model) == most
    ]
    return f"Stored of {fixed(most, 0)} bits of facts, every seed: {'; '.join(told)}."


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
