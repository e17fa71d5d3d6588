"""The same analyses at equal validation loss: what is left once neither model is the better one."""

from collections.abc import Sequence

from engram_eval.records import MetricRow
from reports.blocks import Block, flat_rows
from reports.draw import Canvas
from reports.load import Study
from reports.numbers import fixed
from reports.query import pick, value_of
from reports.sections.cka import pair_title, with_interval
from reports.sections.layers import SOLID, drawn_models, layer_panel, slice_views
from reports.sections.lens import focus
from reports.sections.overview import who
from reports.theme import looks


def equal_loss_block(study: Study, rows: Sequence[MetricRow]) -> Block | None:
    """Draw the lens of each early checkpoint beside that of the model whose loss it meets.

    Args:
        study: gives the losses that were wanted and met.
        rows: of the lens and of CKA, at all steps.
    """
    met = pick(study.rows, name="equal_loss", metric="loss_nats")
    kl = pick(rows, name="logit_lens", metric="kl_bits", condition=None)
    kl = [row for row in kl if row.site in ("resid_pre", "resid_post")]
    early = [row for row in kl if row.step is not None]
    partners = {((row.other or {}).get("model"), (row.other or {}).get("seed")) for row in early}
    ends = [row for row in kl if row.step is None and (row.model, row.seed) in partners]
    if not early:
        return None
    look = looks(study)

    def draw(part: Sequence[MetricRow], width: int) -> Canvas:
        result = layer_panel(part, look, "KL(final ‖ lens), bits", SOLID, width)
        focus(result, part)
        return result

    return Block(
        "equal-loss",
        "At equal loss: the lens once neither model is the better one",
        f"{_matches(met, early)} {_numbers(rows)}".strip(),
        slice_views([*early, *ends], draw),
        flat_rows([*early, *ends]),
        legend=drawn_models(study, [*early, *ends]),
        key="The better model is read at the saved checkpoint whose validation loss is nearest to "
        "the other’s last one; the other is at its end. The embedding may lie above the picture.",
    )


def _matches(met: Sequence[MetricRow], early: Sequence[MetricRow]) -> str:
    """Say which checkpoints were read and how near their losses are."""
    read = {(row.model, row.seed) for row in early}
    told = [
        f"{who(row)} at step {row.step} ({fixed(value_of(row), 2)} nats per token) beside "
        f"{_partner(row)} at its end ({fixed(row.baseline or 0.0, 2)})"
        for row in met
        if (row.model, row.seed) in read and _later(row, early)
    ]
    return f"{'; '.join(told)}." if told else ""


def _later(row: MetricRow, early: Sequence[MetricRow]) -> bool:
    return any((e.model, e.seed, e.step) == (row.model, row.seed, row.step) for e in early)


def _partner(row: MetricRow) -> str:
    other = row.other or {}
    return f"{other.get('model')}, seed {other.get('seed')}"


def _numbers(rows: Sequence[MetricRow]) -> str:
    """Quote early KL and the shift of layers, at equal loss."""
    lens = [r for r in pick(rows, name="logit_lens", metric="early_kl_bits") if not r.slice]
    told = [
        f"{who(row)}{_without(row)} {fixed(value_of(row), 2)}"
        for row in lens
        if row.step is not None
    ]
    found = f"Mean over the first third of the depth, in bits: {'; '.join(told)}." if told else ""
    shifts = [r for r in pick(rows, name="cka", metric="aligned_shift_layers") if not r.slice]
    moved = [
        f"{pair_title(row)} {with_interval(row)}"
        for row in shifts
        if row.step is not None and row.condition is None
    ]
    if moved:
        found += f" Mean shift of a block’s counterpart, in blocks: {'; '.join(moved)}."
    return found


def _without(row: MetricRow) -> str:
    return " without the memory’s write" if row.condition == "memory_subtracted" else ""
