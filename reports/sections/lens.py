"""LogitLens: how far each block's readout is from the model's final prediction."""

from collections.abc import Sequence

from engram_eval.records import MetricRow
from reports.blocks import Block, flat_rows
from reports.draw import Canvas
from reports.load import Study
from reports.numbers import fixed, listing
from reports.query import pick, values
from reports.sections.layers import drawn_models, layer_panel, slice_views
from reports.theme import looks


def lens_block(study: Study, rows: Sequence[MetricRow]) -> Block:
    """Draw KL(final || lens) by block, over all tokens and by slice."""
    kept = [row for row in pick(rows, metric="kl_bits") if row.layer is not None]
    look = looks(study)

    def draw(part: Sequence[MetricRow], width: int) -> Canvas:
        return layer_panel(part, look, "KL(final ‖ lens), bits", {None: "-"}, width)

    return Block(
        "logit-lens",
        "LogitLens: how early the final prediction is readable",
        _finding(study, kept),
        slice_views(kept, draw),
        flat_rows(kept),
        legend=drawn_models(study, kept),
        key="One line per seed; “emb.” is the embedding. A low divergence right where the memory "
        "writes shows its write, not yet that depth was saved.",
    )


def memory_layers(study: Study) -> set[int]:
    """Return the blocks at which any model of the study reads its memory."""
    listed = [model.architecture.get("engram_layers") for model in study.models]
    return {
        layer
        for layers in listed
        if isinstance(layers, list)
        for layer in layers
        if isinstance(layer, int)
    }


def _finding(study: Study, rows: Sequence[MetricRow]) -> str:
    """Quote every seed after the first block that reads a memory, or after the first block."""
    whole = [r for r in rows if not r.slice and r.site == "resid_post" and r.condition is None]
    layers = sorted({row.layer for row in whole if row.layer is not None})
    if not layers:
        return "Lower means that a block's readout is closer to the final prediction."
    memory = memory_layers(study)
    layer = next((layer for layer in layers if layer in memory), layers[0])
    here = pick(whole, layer=layer)
    found = [
        f"{model} {listing([fixed(v, 2) for v in values(pick(here, model=model))])}"
        for model in drawn_models(study, here)
    ]
    where = ", where the memory writes" if layer in memory else ""
    return (
        f"Lower means closer to the final prediction. After block {layer}{where}, each seed, "
        f"in bits: {'; '.join(found)}."
    )
