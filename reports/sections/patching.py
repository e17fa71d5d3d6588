"""Activation patching: where the answer follows the name."""

from collections.abc import Sequence

from engram_eval.records import MetricRow
from reports.blocks import Block, Panel, View, flat_rows
from reports.draw import HOLLOW, share_axis
from reports.load import Study
from reports.query import ordered, pick
from reports.sections.category_dots import by_model, category_dots
from reports.sections.layers import SOLID, drawn_models, layer_panel
from reports.theme import looks

SITES = {
    "resid_pre": "the stream entering the block",
    "attn_out": "what attention adds",
    "mlp_out": "what feed-forward or experts add",
    "memory_out": "what the memory adds",
}
POSITIONS = {
    "name": "at the name",
    "after": "between name and end",
    "last": "at the last token",
    "all": "at all tokens",
}


def patching_block(study: Study, rows: Sequence[MetricRow]) -> Block:
    """Draw the share of answers that follow a patched site, by block and by position."""
    kept, look = pick(rows, metric="flip_rate"), looks(study)
    views = []
    for site in ordered((str(row.site) for row in kept), first=tuple(SITES)):
        here = pick(kept, site=site)
        panels = []
        for position in POSITIONS:
            part = [row for row in here if row.slice.get("position") == position]
            if part:
                drawn = layer_panel(part, look, "share of answers flipped", SOLID, 320)
                drawn.axes.set_xlabel("block")
                drawn.axes.set_ylim(-0.04, 1.04)
                panels.append(Panel(POSITIONS[position], drawn))
        views.append(View(SITES.get(site, site), panels))
    return Block(
        "patching",
        "Patching: where the answer follows the name",
        _finding(study, rows, kept),
        views,
        flat_rows(rows),
        legend=drawn_models(study, kept),
        key="A prompt about b is read while one tensor is what it was for a; only pairs that the "
        "model answers rightly on both sides. Rows of a memory follow the tokens: what patching "
        "the whole stream before it leaves undone is the memory's own share.",
    )


def _finding(study: Study, rows: Sequence[MetricRow], kept: Sequence[MetricRow]) -> str:
    models = drawn_models(study, kept)
    whole = [row for row in kept if row.slice.get("position") == "all"]
    memory = by_model(models, pick(whole, site="memory_out"))
    embedding = by_model(models, pick(whole, site="resid_pre", layer=0))
    known = by_model(models, pick(rows, metric="acc"))
    told = f"Share of pairs known on both sides: {known}. Answers that follow the embeddings alone:"
    told = f"{told} {embedding}."
    return f"{told} Answers that follow what the memory adds: {memory}." if memory else told


def surgery_block(study: Study, rows: Sequence[MetricRow]) -> Block:
    """Draw what exchanging or writing rows did to the answers, and to everything else."""
    look = looks(study)
    flips, kept = pick(rows, metric="flip_rate"), pick(rows, metric="top1_agreement")
    drawn = [
        Panel("answers that changed", category_dots(flips, _name, look, "share of prompts", 400)),
        Panel(
            "likeliest token unchanged", category_dots(kept, _name, look, "share of tokens", 400)
        ),
    ]
    share_axis([panel.canvas for panel in drawn], "x")
    models = drawn_models(study, flips)
    exchanged = by_model(models, pick(flips, condition="rows_exchanged"))
    reworded = by_model(models, [r for r in flips if r.slice.get("prompts") == "other_wording"])
    told = f"Answers exchanged with two names' rows: {exchanged}."
    return Block(
        "surgery",
        "Memory surgery: exchanging names, writing facts",
        f"{told} A fact written into rows in one wording holds in others: {reworded}."
        if reworded
        else told,
        [View("all", drawn)],
        flat_rows(rows),
        legend=models,
        key="Only rows are touched, no other weight.",
        strokes={HOLLOW: "the same exchange with a third name"},
    )


def _name(row: MetricRow) -> str:
    words = {
        "rows_exchanged": "names exchanged",
        "rows_exchanged_reaching": "and n-grams around",
        "rows_written": "fact written",
    }
    where = row.slice.get("prompts", "").replace("_", " ")
    where = "" if where == "same wording" else f", {where}"
    return f"{words.get(row.condition or '', row.condition)}{where}"
