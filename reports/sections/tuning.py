"""What the short runs found that chose each arm's rates."""

from collections.abc import Mapping, Sequence

from engram_eval.analysis.arms import at_the_edge
from engram_eval.records import MetricRow
from reports.blocks import Cell, Column, Table
from reports.load import Study
from reports.numbers import fixed
from reports.query import ordered, value_of
from reports.theme import looks

EMBEDDING = "embedding_lr_multiplier"
TABLE, EXPERTS = "table_lr_multiplier", "expert_lr_multiplier"
TITLE = "Tuning: what short runs reached, in nats per token on validation text"
SECOND = "Rate of the table (or experts), times the backbone's"
THIRD = "Rate of the token embedding, times the backbone's"
MOST_COLUMNS = 8
"""Rates that have a column each; of more, an arm's best run and its range are told."""


def tuning_tables(study: Study) -> list[Table]:
    """Return one table of what was tried and found best; none if nothing was tuned."""
    # Rates at which no loss was finite have rows without a value.
    rows = [r for r in study.rows if (r.name, r.metric) == ("tune", "loss_nats") and r.slice]
    if not rows:
        return []
    arms = ordered((str(row.model) for row in rows), [model.name for model in study.models])
    runs = {arm: [row for row in rows if row.model == arm] for arm in arms}
    rates = sorted({row.slice["lr"] for row in rows}, key=float)
    whole = len(rates) <= MOST_COLUMNS and not _of_embeddings(rows)
    columns, lines = _grid(runs, rates) if whole else _bests(runs)
    return [
        Table(
            TITLE,
            [Column("Model", numeric=False), *columns],
            lines,
            ident="tuning",
            note=_note(study, whole),
            chips={name: look.number for name, look in looks(study).items()},
            sortable=False,
        )
    ]


def _grid(
    runs: Mapping[str, Sequence[MetricRow]], rates: Sequence[str]
) -> tuple[list[Column], list[list[Cell]]]:
    """Lay out an arm and a second rate a row, a rate a column."""
    columns = [Column(rate, band="Learning rate of the backbone") for rate in rates]
    lines = [line for arm, rows in runs.items() for line in _lines(arm, rows, rates)]
    return [Column(SECOND), *columns], lines


def _lines(arm: str, rows: Sequence[MetricRow], rates: Sequence[str]) -> list[list[Cell]]:
    best, dial = _best(rows), _dial(rows)
    lines = []
    for factor in _tried(rows, dial):
        found = {row.slice["lr"]: row for row in rows if row.slice[dial] == factor}
        told = _second(rows, factor)
        lines.append([Cell(arm), told, *(_cell(found, rate, best) for rate in rates)])
    return lines


def _bests(
    runs: Mapping[str, Sequence[MetricRow]],
) -> tuple[list[Column], list[list[Cell]]]:
    """Lay out an arm a row: what its best run had and reached, and between what it was found."""
    band, other = "Learning rate of the backbone", SECOND
    columns = [
        *(Column("Loss"), Column("Next best"), Column("Runs")),
        *(Column("best", band=band), Column("lowest", band=band), Column("highest", band=band)),
        *(Column("best", band=other), Column("lowest", band=other), Column("highest", band=other)),
    ]
    if not any(map(_of_embeddings, runs.values())):
        return columns, [_best_line(arm, rows) for arm, rows in runs.items()]
    columns += [Column(name, band=THIRD) for name in ("best", "lowest", "highest")]
    return columns, [_best_line(arm, rows) + _embedding_cells(rows) for arm, rows in runs.items()]


def _of_embeddings(rows: Sequence[MetricRow]) -> bool:
    """Tell whether several rates of the token embedding were tried."""
    return len({row.slice.get(EMBEDDING) for row in rows}) > 1


def _embedding_cells(rows: Sequence[MetricRow]) -> list[Cell]:
    if not _of_embeddings(rows):
        return [Cell("–")] * 3
    tried = _tried(rows, EMBEDDING)
    told = (_best(rows).slice[EMBEDDING], tried[0], tried[-1])
    return [Cell(factor, float(factor)) for factor in told]


def _best_line(arm: str, rows: Sequence[MetricRow]) -> list[Cell]:
    best, dial = _best(rows), _dial(rows)
    losses = sorted(row.value for row in rows if row.value is not None)
    rates, factors = _tried(rows, "lr"), _tried(rows, dial)
    first, last = (_second(rows, factor) for factor in (factors[0], factors[-1]))
    return [
        Cell(arm),
        Cell(fixed(losses[0]), losses[0], strong=True),
        *([Cell(fixed(losses[1]), losses[1])] if len(losses) > 1 else [Cell("")]),
        Cell(str(len(rows)), float(len(rows))),
        *(Cell(rate, float(rate)) for rate in (best.slice["lr"], rates[0], rates[-1])),
        *(_second(rows, best.slice[dial]), first, last),
    ]


def _best(rows: Sequence[MetricRow]) -> MetricRow:
    return min((row for row in rows if row.value is not None), key=value_of)


def _dial(rows: Sequence[MetricRow]) -> str:
    return EXPERTS if EXPERTS in rows[0].slice else TABLE


def _tried(rows: Sequence[MetricRow], dial: str) -> list[str]:
    return sorted({row.slice[dial] for row in rows}, key=float)


def _second(rows: Sequence[MetricRow], factor: str) -> Cell:
    """Return the cell of a second rate; where there is none, one factor means nothing."""
    dial = _dial(rows)
    if len(_tried(rows, dial)) == 1:
        return Cell("–")
    return Cell(f"{factor} (experts)" if dial == EXPERTS else factor, float(factor))


def _cell(found: Mapping[str, MetricRow], rate: str, best: MetricRow) -> Cell:
    if rate not in found:
        return Cell("")
    row = found[rate]
    if row.value is None:
        return Cell("not finite")
    return Cell(fixed(value_of(row)), value_of(row), strong=row is best)


def _note(study: Study, whole: bool) -> str:
    note = "Bold: the lowest, whose rates the training took."
    if not whole:
        note += " Every run is in the rows named tune of metrics.jsonl."
    found = at_the_edge(study.rows)
    edges = [model.name for model in study.models if model.name in found]
    if not edges:
        return note
    which = f"was best for {', '.join(edges)}: a better one may lie beyond."
    return f"{note} The lowest or highest rate that was tried {which}"
