"""Knock-outs: what each domain loses when a part of the model adds nothing."""

from collections.abc import Mapping, Sequence
from functools import partial

from engram_eval.records import MetricRow
from reports.blocks import Block, Panel, View, flat_rows, panel
from reports.draw import Canvas, Dot, dots, share_axis, zero_line
from reports.load import Study
from reports.numbers import fixed
from reports.query import by_domain, domain_of, only_domain, pick, value_of, who
from reports.sections.layers import conditions_of, drawn_models, layer_panel
from reports.sections.lens import memory_layers
from reports.theme import Look, looks

DASHES: dict[str | None, str] = {"mlp_zeroed": "-", "attn_zeroed": "--", "memory_zeroed": "-"}
STROKES = {"-": "feed-forward", "--": "attention", ":": "the whole block"}
NAMES = {
    "memory_zeroed": "without memory",
    "memory_mean": "memory replaced by its mean",
    "memory_shuffled": "memory reads other n-grams",
    "attn_zeroed": "without attention",
    "mlp_zeroed": "without feed-forward or experts",
    "layer_skipped": "block skipped",
    "experts_removed": "experts removed, memory's size",
}


def knockout_block(study: Study, rows: Sequence[MetricRow]) -> Block:
    """Draw the added loss per domain at the memory's block, and over all blocks."""
    kept = [row for row in pick(rows, metric="loss_increase_nats") if only_domain(row)]
    look = looks(study)
    views = [view for view in (_by_domain(study, kept, look), _by_layer(kept, look)) if view]
    return Block(
        "knock-out",
        "Knock-out: what the model has come to depend on",
        _finding(kept),
        views,
        flat_rows(rows),
        legend=drawn_models(study, kept),
        key="By domain: the memory beside attention and feed-forward of the same block, the "
        "control of equal place, and beside experts with as many parameters. By block: single "
        "points are the memory. Parts of single blocks are cut on half of the text (n in the "
        "data). Dependence at inference does not show where knowledge lies.",
        strokes=STROKES,
    )


def _by_domain(study: Study, rows: Sequence[MetricRow], look: Mapping[str, Look]) -> View | None:
    """Set the memory beside its neighbours in the same block, for models that have one."""
    owners = {row.model for row in pick(rows, condition="memory_zeroed")}
    layers = {None, *memory_layers(study)}
    local = [row for row in rows if row.model in owners and row.layer in layers]
    if not local:
        return None
    domains = by_domain(domain_of(row) for row in local)
    conditions = sorted(conditions_of(local), key=lambda c: c != "memory_zeroed")
    panels = [
        Panel(_name(condition), _dots(pick(local, condition=condition), domains, look))
        for condition in conditions
    ]
    share_axis([panel.canvas for panel in panels], "x")
    return View("by domain", panels, [name for name in look if name in owners])


def _name(condition: str | None) -> str:
    return NAMES.get(condition or "", (condition or "intact").replace("_", " "))


def _dots(rows: Sequence[MetricRow], domains: Sequence[str], look: Mapping[str, Look]) -> Canvas:
    values = [
        Dot(
            domains.index(domain_of(row)),
            value_of(row),
            look[str(row.model)],
            f"{who(row)}: {fixed(value_of(row), 2, sign=True)} nats on {domain_of(row)}",
        )
        for row in rows
    ]
    result = dots(domains, values, "loss added, nats per token")
    zero_line(result)
    return result


def _by_layer(rows: Sequence[MetricRow], look: Mapping[str, Look]) -> View | None:
    whole = [row for row in rows if not row.slice and row.layer is not None]
    if not whole:
        return None
    draw = partial(layer_panel, whole, look, "loss added, nats per token", DASHES)
    return View("by block", [panel(draw)])


def _finding(rows: Sequence[MetricRow]) -> str:
    """Name the domains that lose most and least without the memory."""
    memory = [row for row in pick(rows, condition="memory_zeroed") if row.slice]
    if not memory:
        return "Higher means that the model depends more on the part."
    most, least = max(memory, key=value_of), min(memory, key=value_of)
    return (
        f"Without its memory {most.model} loses most on {domain_of(most)} "
        f"({fixed(value_of(most), 2, sign=True)} nats per token, seed {most.seed}) and least on "
        f"{domain_of(least)} ({fixed(value_of(least), 2, sign=True)}, seed {least.seed})."
    )
