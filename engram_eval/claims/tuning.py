"""Whether what tuning chose lies inside of what it tried."""

from collections.abc import Iterable

from engram_eval.records import MetricRow


def at_the_edge(rows: Iterable[MetricRow]) -> set[str]:
    """Return the arms whose best tuning run had the lowest or the highest rate that was tried.

    A better rate may then lie beyond. The table's own factor is not looked at: where two are tried,
    either is an end.

    Args:
        rows: of a study; those of its tuning stages are read.
    """
    tried: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.name != "tune" or row.metric != "loss_nats":
            continue
        if row.model is not None and row.value is not None:
            tried.setdefault(row.model, []).append((row.value, float(row.slice["lr"])))
    return {arm for arm, runs in tried.items() if _is_an_end(runs)}


def _is_an_end(runs: list[tuple[float, float]]) -> bool:
    rates = {rate for _, rate in runs}
    return len(rates) > 1 and min(runs)[1] in (min(rates), max(rates))
