"""The same analyses at equal validation loss: what is left once neither model is the better one."""

from collections.abc import Sequence

from engram_eval.records import MEMORY_SUBTRACTED, MetricRow
from reports.blocks import Block, flat_rows
from reports.draw import Canvas
from reports.load import Study
from reports.numbers import each, fixed
from reports.query import ordered, pick, value_of, values
from reports.sections.layers import SOLID, drawn_models, layer_panel, slice_views
from reports.sections.lens import focus
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
    pairs: dict[tuple[str, str, int | None], list[MetricRow]] = {}
    for row in met:
        if (row.model, row.seed) in read and _later(row, early):
            pairs.setdefault((str(row.model), _partner(row), row.step), []).append(row)
    told = [_match(model, partner, rows) for (model, partner, _), rows in pairs.items()]
    return f"{'; '.join(told)}." if told else ""


def _match(model: str, partner: str, rows: Sequence[MetricRow]) -> str:
    losses, goals = _span(values(rows)), _span([row.baseline or 0.0 for row in rows])
    first = f"{model}{_seeds(rows)} at step {rows[0].step} ({losses} nats per token)"
    return f"{first} beside {partner}{_seeds(rows)} at its end ({goals})"


def _seeds(rows: Sequence[MetricRow]) -> str:
    """Name the one seed, or say how many there are."""
    seeds = ordered(row.seed for row in rows)
    return f", seed {seeds[0]}" if len(seeds) == 1 else f" ({len(seeds)} seeds)"


def _span(found: Sequence[float]) -> str:
    low, high = _short(min(found)), _short(max(found))
    return low if low == high else f"{low} to {high}"


def _short(value: float) -> str:
    return fixed(value, 2)


def _later(row: MetricRow, early: Sequence[MetricRow]) -> bool:
    return any((e.model, e.seed, e.step) == (row.model, row.seed, row.step) for e in early)


def _partner(row: MetricRow) -> str:
    return str((row.other or {}).get("model"))


def _numbers(rows: Sequence[MetricRow]) -> str:
    """Quote early KL and the shift of layers, at equal loss."""
    lens: dict[str, list[float]] = {}
    for row in pick(rows, name="logit_lens", metric="early_kl_bits"):
        if row.step is not None and not row.slice:
            lens.setdefault(f"{row.model}{_without(row)}", []).append(value_of(row))
    told = each(lens, _short, "; ")
    found = f"Mean over the first third of the depth, in bits: {told}." if told else ""
    shifts: dict[str, list[float]] = {}
    for row in pick(rows, name="cka", metric="aligned_shift_layers"):
        if row.step is not None and not row.slice:
            asked = [str(row.model), _partner(row)]
            # Of the two, the one whose blocks are asked where in the other they have their like.
            one, other = reversed(asked) if row.condition == "of_other" else asked
            shifts.setdefault(f"{one} in {other}", []).append(value_of(row))
    if shifts:
        found += f" Mean shift of a block’s counterpart, in blocks: {each(shifts, _short, '; ')}."
    return found


def _without(row: MetricRow) -> str:
    return " without the memory’s write" if row.condition == MEMORY_SUBTRACTED else ""
