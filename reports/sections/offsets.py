"""Attention by offset, and the loss when early layers may not look next door."""

from collections.abc import Mapping, Sequence

from engram_eval.records import MetricRow
from reports.blocks import Block, Panel, View, flat_rows
from reports.draw import share_axis, zero_line
from reports.load import Study
from reports.query import ordered, pick
from reports.sections.category_dots import by_model, category_dots
from reports.sections.layers import drawn_models, layer_panel
from reports.theme import Look, looks

NAMES = {
    "early_offsets_1_2_masked": "early, 1 and 2 back",
    "early_offsets_3_4_masked": "early, 3 and 4 back",
    "late_offsets_1_2_masked": "late, 1 and 2 back",
    "late_offsets_3_4_masked": "late, 3 and 4 back",
}


def offsets_block(study: Study, rows: Sequence[MetricRow]) -> Block:
    """Draw the loss of masking near tokens, and where attention goes, by block."""
    look = looks(study)
    losses = [row for row in pick(rows, metric="loss_increase_nats") if _drawn(row)]
    mass = pick(rows, metric="attention_mass")
    models = drawn_models(study, rows)
    near = [row for row in pick(losses, condition="early_offsets_1_2_masked") if not row.slice]
    return Block(
        "offsets",
        "Does the memory spare early attention its neighbours?",
        "Loss added when the first third of the blocks, at least two, may not attend to the two "
        f"tokens before, in nats per token: {by_model(models, near)}. Offloading predicts less for "
        "a model with a memory.",
        [_loss_view(losses, look), _mass_view(mass, look)],
        flat_rows(rows),
        legend=models,
        key="Masking the third and fourth token back, or late blocks, are the controls of equal "
        "size. Attention: the mean over heads and tokens.",
    )


def _drawn(row: MetricRow) -> bool:
    return not row.slice or set(row.slice) == {"static_out"}


def _loss_view(rows: Sequence[MetricRow], look: Mapping[str, Look]) -> View:
    titles = {"": "all tokens", "high": "most static third", "low": "least static third"}
    panels = []
    for key, title in titles.items():
        part = [row for row in rows if row.slice.get("static_out", "") == key]
        if part:
            drawn = category_dots(part, _name, look, "loss added, nats per token")
            zero_line(drawn)
            panels.append(Panel(title, drawn))
    share_axis([panel.canvas for panel in panels], "x")
    return View("loss when masked", panels)


def _name(row: MetricRow) -> str:
    return NAMES.get(row.condition or "", str(row.condition))


def _mass_view(rows: Sequence[MetricRow], look: Mapping[str, Look]) -> View:
    panels = []
    for offset in ordered(row.slice["offset"] for row in rows):
        part = [row for row in rows if row.slice["offset"] == offset]
        panels.append(Panel(f"{offset} back", layer_panel(part, look, "attention", {}, 320)))
    return View("attention by offset", panels)
