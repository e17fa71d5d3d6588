"""Lenses: how far each block's readout is from the model's final prediction."""

from collections.abc import Sequence
from functools import partial

from engram_eval.records import MEMORY_SUBTRACTED, MetricRow
from reports.blocks import Block, flat_rows
from reports.draw import Canvas
from reports.load import Study
from reports.numbers import each, fixed
from reports.query import pick, value_of, values
from reports.sections.layers import Draw, drawn_models, layer_panel, slice_views
from reports.seeds import drawn_seeds
from reports.theme import looks

DASHES: dict[str | None, str] = {None: "-", MEMORY_SUBTRACTED: "--"}
STROKES = {"-": "the stream as it is", "--": "without what the memory wrote"}
KEY = (
    "“emb.” is the embedding, which may lie above the picture. Dashed: with everything "
    "that the memory itself wrote up to there taken away again. A low divergence right where the "
    "memory writes shows its write; only what stays low without it can mean that depth was saved."
)


short = partial(fixed, digits=2)


def lens_block(study: Study, rows: Sequence[MetricRow]) -> Block:
    """Draw KL(final || lens) by block, over all tokens and by slice, with and without the write."""
    kept = _over_depth(rows)
    models = drawn_models(study, kept)
    return Block(
        "logit-lens",
        "LogitLens: how early the final prediction is readable",
        f"{_finding(study, kept)} {_early(study, rows)}".strip(),
        slice_views(kept, _drawer(study)),
        flat_rows(kept),
        legend=models,
        key=f"{drawn_seeds(len(models))} {KEY}",
        strokes=STROKES,
    )


def tuned_lens_block(study: Study, rows: Sequence[MetricRow]) -> Block:
    """Draw the same with a translation trained per block: the logit lens's control."""
    kept = _over_depth(rows)
    models = drawn_models(study, kept)
    return Block(
        "tuned-lens",
        "Tuned lens: the same, once each block's language is learnt",
        "A block may hold the prediction in directions that the last block does not use; each has "
        "a linear translation of its own here, trained on other documents. A lead that is gone "
        f"here was a lead in language, not in depth. {_early(study, rows)}".strip(),
        slice_views(kept, _drawer(study)),
        flat_rows(kept),
        legend=models,
        key=f"{drawn_seeds(len(models))} {KEY}",
        strokes=STROKES,
    )


def _over_depth(rows: Sequence[MetricRow]) -> list[MetricRow]:
    """Return the divergences of the embedding and after each block."""
    found = [row for row in pick(rows, metric="kl_bits") if row.layer is not None]
    return [row for row in found if row.site in ("resid_pre", "resid_post")]


def _drawer(study: Study) -> Draw:
    look = looks(study)

    def draw(part: Sequence[MetricRow], width: int) -> Canvas:
        result = layer_panel(part, look, "KL(final ‖ lens), bits", DASHES, width)
        focus(result, part)
        return result

    return draw


def focus(target: Canvas, rows: Sequence[MetricRow]) -> None:
    """Let the embedding, far from any prediction, leave the picture: it would flatten the rest."""
    top = max((value_of(row) for row in rows if row.site == "resid_post"), default=0.0)
    if top > 0:
        target.axes.set_ylim(-0.05 * top, 1.12 * top)


def _early(study: Study, rows: Sequence[MetricRow]) -> str:
    """Quote the area under the first third of the curve, with and without the write."""
    whole = [row for row in pick(rows, metric="early_kl_bits") if not row.slice]
    told = []
    for condition, words in ((None, ""), (MEMORY_SUBTRACTED, " (without the memory’s write)")):
        here = pick(whole, condition=condition)
        models = drawn_models(study, here)
        found = {f"{model}{words}": values(pick(here, model=model)) for model in models}
        told += [each(found, short, "; ")] if found else []
    return f"Mean over the first third of the depth, in bits: {'; '.join(told)}." if told else ""


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
    found = {model: values(pick(here, model=model)) for model in drawn_models(study, here)}
    where = ", where the memory writes" if layer in memory else ""
    return (
        f"Lower means closer to the final prediction. After block {layer}{where}, each seed, "
        f"in bits: {each(found, short, '; ')}."
    )
