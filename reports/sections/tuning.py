"""What the short runs found that chose each arm's rates."""

from collections.abc import Mapping, Sequence

from engram_eval.records import MetricRow, at_the_edge
from reports.blocks import Cell, Column, Table
from reports.load import Study
from reports.numbers import fixed
from reports.query import ordered, value_of
from reports.theme import looks

TABLE, EXPERTS = "table_lr_multiplier", "expert_lr_multiplier"


def tuning_tables(study: Study) -> list[Table]:
    """Return one table of an arm and a second rate a row, a rate a column; none if untuned."""
    # Rates at which no loss was finite have rows without a value.
    rows = [r for r in study.rows if (r.name, r.metric) == ("tune", "loss_nats") and r.slice]
    if not rows:
        return []
    arms = ordered((str(row.model) for row in rows), [model.name for model in study.models])
    rates = sorted({row.slice["lr"] for row in rows}, key=float)
    lines = [
        line for arm in arms for line in _lines(arm, [r for r in rows if r.model == arm], rates)
    ]
    return [
        Table(
            "Tuning: what short runs reached, in nats per token on validation text",
            [
                Column("Model", numeric=False),
                Column("Rate of the table (or experts), times the backbone's"),
                *(Column(rate, band="Learning rate of the backbone") for rate in rates),
            ],
            lines,
            ident="tuning",
            note=_note(study),
            chips={name: look.number for name, look in looks(study).items()},
            sortable=False,
        )
    ]


def _lines(arm: str, rows: Sequence[MetricRow], rates: Sequence[str]) -> list[list[Cell]]:
    best = min((row for row in rows if row.value is not None), key=value_of)
    dial = EXPERTS if EXPERTS in rows[0].slice else TABLE
    factors = sorted({row.slice[dial] for row in rows}, key=float)
    lines = []
    for factor in factors:
        found = {row.slice["lr"]: row for row in rows if row.slice[dial] == factor}
        # An arm with neither has one factor, which means nothing.
        word = f"{factor} (experts)" if dial == EXPERTS else factor
        told = Cell(word, float(factor)) if len(factors) > 1 else Cell("–")
        lines.append([Cell(arm), told, *(_cell(found, rate, best) for rate in rates)])
    return lines


def _cell(found: Mapping[str, MetricRow], rate: str, best: MetricRow) -> Cell:
    if rate not in found:
        return Cell("")
    row = found[rate]
    if row.value is None:
        return Cell("not finite")
    return Cell(fixed(value_of(row)), value_of(row), strong=row is best)


def _note(study: Study) -> str:
    note = "Bold: the lowest, whose rates the training took."
    found = at_the_edge(study.rows)
    edges = [model.name for model in study.models if model.name in found]
    if not edges:
        return note
    which = f"was best for {', '.join(edges)}: a better one may lie beyond."
    return f"{note} The lowest or highest rate that was tried {which}"
