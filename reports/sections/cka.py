"""CKA: which blocks of two models resemble each other."""

from collections.abc import Sequence
from typing import Any

from engram_eval.records import MetricRow
from reports.blocks import Block, Cell, Column, Item, Panel, Table, View, flat_rows
from reports.draw import Canvas, heat_map
from reports.load import Study
from reports.numbers import MISSING, fixed
from reports.query import pick, value_of, who

CHOICES = {"": "all tokens", "name_end": "last tokens of names"}


def cka_items(study: Study, rows: Sequence[MetricRow]) -> list[Item]:
    """Draw one map per pair of trained models; two seeds of one model are the yardstick."""
    kept = [row for row in pick(rows, metric="cka") if partner_layer(row) is not None]
    views = [
        View(words, _panels(named(kept, part)))
        for part, words in CHOICES.items()
        if named(kept, part)
    ]
    block = Block(
        "cka",
        "CKA: which blocks resemble each other",
        "Bright cells are blocks with similar representations; 1 is equal up to rotation and "
        "scale. Two seeds of one model are the yardstick: only what differs from them counts. "
        "A bright band above the diagonal means that the model named on the left needs more blocks "
        f"for the same.{_more(kept)}",
        views,
        flat_rows([*kept, *pick(rows, metric="aligned_layer")]),
    )
    shifts = named(pick(rows, metric="aligned_shift_layers"), "")
    return [block, *([shift_table(shifts)] if shifts else [])]


def _more(rows: Sequence[MetricRow]) -> str:
    """Say which pairs are not drawn."""
    left = len({pair_title(row) for row in rows}) - len(first_seeds(rows))
    told = f" Drawn are the first seeds of each pair of models; {left} further pairs of seeds are"
    return f"{told} in the data." if left > 0 else ""


def named(rows: Sequence[MetricRow], part: str) -> list[MetricRow]:
    """Return the rows on all tokens, or those on one kind of token."""
    return [row for row in rows if row.slice.get("static_in", "") == part]


def _panels(rows: Sequence[MetricRow]) -> list[Panel]:
    """Draw one map per pair of models, seed against seed first."""
    pairs = sorted(first_seeds(rows), key=lambda pair: not same_model(pair))
    return [
        Panel(pair + _yardstick(pair), _map([row for row in rows if pair_title(row) == pair]))
        for pair in pairs
    ]


def first_seeds(rows: Sequence[MetricRow]) -> list[str]:
    """Return of each pair of models the pair of lowest seeds; all others would fill pages."""
    found: dict[tuple[str | None, Any], MetricRow] = {}
    for row in rows:
        models = row.model, (row.other or {}).get("model")
        if models not in found or _seeds(row) < _seeds(found[models]):
            found[models] = row
    return [pair_title(row) for row in found.values()]


def _seeds(row: MetricRow) -> tuple[int, int]:
    other = (row.other or {}).get("seed")
    return row.seed or 0, other if isinstance(other, int) else 0


def shift_table(rows: Sequence[MetricRow]) -> Table:
    """List how much deeper a block's counterparts lie in the other model, the yardsticks first."""
    ranked = sorted(rows, key=lambda row: not same_model(pair_title(row)))
    back = {pair_title(row): row for row in pick(ranked, condition="of_other")}
    body = [
        [
            Cell(pair_title(row) + _yardstick(pair_title(row))),
            *_shift_cells(row),
            *_shift_cells(back.get(pair_title(row))),
        ]
        for row in pick(ranked, condition=None)
    ]
    columns = [
        Column("Pair", numeric=False),
        *(Column("Blocks deeper"), Column("95 % interval")),
        *(Column("The other way round"), Column("95 % interval")),
    ]
    return Table(
        "How many blocks deeper a block of the first model has its counterpart in the second",
        columns,
        body,
        ident="cka-shifts",
        note="The mean over blocks; intervals over text, not over seeds. A shift counts where it "
        "is outside what two seeds of one model show; a shift in depth is seen from both sides.",
        data=flat_rows(ranked),
    )


def _shift_cells(row: MetricRow | None) -> list[Cell]:
    if row is None:
        return [Cell(MISSING), Cell(MISSING)]
    return [
        Cell(fixed(value_of(row), 2, sign=True), value_of(row)),
        Cell(_interval(row), row.ci_low),
    ]


def _interval(row: MetricRow) -> str:
    if row.ci_low is None or row.ci_high is None:
        return MISSING
    return f"{fixed(row.ci_low, 2, sign=True)} to {fixed(row.ci_high, 2, sign=True)}"


def _yardstick(pair: str) -> str:
    return " (yardstick)" if same_model(pair) else ""


def partner_layer(row: MetricRow) -> int | None:
    """Return the block of the second model."""
    layer = (row.other or {}).get("layer")
    return layer if isinstance(layer, int) else None


def pair_title(row: MetricRow) -> str:
    """Name both trained models of a row."""
    other = row.other or {}
    return f"{who(row)} × {other.get('model')}, seed {other.get('seed')}"


def same_model(title: str) -> bool:
    """Tell whether a pair is two seeds of one model."""
    left, _, right = title.partition(" × ")
    return left.rpartition(",")[0] == right.rpartition(",")[0]


def _map(rows: Sequence[MetricRow]) -> Canvas:
    cells = {(row.layer, partner_layer(row)): value_of(row) for row in rows}
    own = sorted({a for a, _ in cells if a is not None})
    other = sorted({b for _, b in cells if b is not None})
    left, _, right = pair_title(rows[0]).partition(" × ")
    matrix = [[cells.get((a, b)) for b in other] for a in own]
    return heat_map(matrix, f"block of {right}", f"block of {left}")
