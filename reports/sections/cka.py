"""CKA: which blocks of two models resemble each other."""

from collections.abc import Sequence

from engram_eval.records import MetricRow
from reports.blocks import Block, Panel, View, flat_rows
from reports.draw import Canvas, heat_map
from reports.load import Study
from reports.query import ordered, pick, value_of
from reports.sections.overview import who


def cka_block(study: Study, rows: Sequence[MetricRow]) -> Block:
    """Draw one map per pair of trained models; two seeds of one model are the yardstick."""
    kept = [row for row in pick(rows, metric="cka") if partner_layer(row) is not None]
    pairs = sorted(ordered(pair_title(row) for row in kept), key=lambda p: not same_model(p))
    panels = [
        Panel(
            f"{pair} (yardstick)" if same_model(pair) else pair,
            _map([row for row in kept if pair_title(row) == pair]),
        )
        for pair in pairs
    ]
    return Block(
        "cka",
        "CKA: which blocks resemble each other",
        "Bright cells are blocks with similar representations; 1 is equal up to rotation and "
        "scale. Two seeds of one model are the yardstick: only what differs from them counts. "
        "A bright band above the diagonal means that the model on the left needs more blocks "
        "for the same.",
        [View("linear CKA", panels)],
        flat_rows(kept),
    )


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
    cells = {(row.layer, partner_layer(row)): value_of(row) for row in rows if not row.slice}
    own = sorted({a for a, _ in cells if a is not None})
    other = sorted({b for _, b in cells if b is not None})
    left, _, right = pair_title(rows[0]).partition(" × ")
    matrix = [[cells.get((a, b)) for b in other] for a in own]
    return heat_map(matrix, f"block of {right}", f"block of {left}")
