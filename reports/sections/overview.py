"""The first screen: question, answer, ledger, the one picture."""

from collections.abc import Sequence

from engram_eval.records import MetricRow
from reports.answer import Answer, answer
from reports.blocks import Block, Cell, Column, Panel, Section, Table, View, flat_rows
from reports.draw import Canvas, Dot, dots
from reports.load import Model, Study
from reports.numbers import MISSING, count, fixed
from reports.query import asked, domain_of, heldout, ordered, pick, value_of
from reports.sections.offload import told as speed_told
from reports.sections.verdicts import tally
from reports.theme import Look, looks


def section(study: Study) -> Section:
    """Build the first screen; it stands even where nothing is finished."""
    told = answer(study)
    rows = heldout(study)
    scored = asked(study, "evaluate", "heldout", True)
    missing = ["Held-out loss is not recorded yet, so there is no picture."]
    missing = missing if scored and not rows else []
    return Section(
        "answer",
        "Answer",
        blocks=[heldout_block(study, rows, told)] if rows else [],
        tables=[ledger_table(study)] if study.models else [],
        missing=missing + ([] if study.models or speed_told(study) else ["No model is recorded."]),
        template="overview.html",
        content={
            "question": study.text("question") or "Which model predicts text better?",
            "answer": told,
            "unfinished": study.unfinished,
            "stages": study.stage_count,
            "verdicts": tally(study.verdicts) if study.verdicts else "",
        },
    )


def heldout_block(study: Study, rows: Sequence[MetricRow], told: Answer) -> Block:
    """Draw every seed of every model per domain: the one picture."""
    domains = ordered((domain_of(row) for row in rows), first=("all",))
    look = looks(study)
    names = [m.name for m in study.models] + study.baselines()
    drawn = [n for n in names if pick(rows, model=n)]
    return Block(
        "heldout-by-domain",
        "Bits per byte on held-out text",
        "Each point is one trained model, one seed; further left is better.",
        [
            View(
                "bits per byte",
                [
                    Panel(
                        "",
                        _picture(domains, rows, look, 640),
                        _picture(domains, rows, look, 320),
                    )
                ],
            )
        ],
        flat_rows(rows),
        legend=drawn,
        alt=f"Dots of bits per byte by domain and model. {told.text}",
    )


def _picture(
    domains: Sequence[str], rows: Sequence[MetricRow], look: dict[str, Look], width: int
) -> Canvas:
    values = [
        Dot(
            domains.index(domain_of(row)),
            value_of(row),
            look[str(row.model)],
            f"{who(row)}: {fixed(value_of(row))} bit/byte on {domain_of(row)}",
        )
        for row in rows
        if row.model in look
    ]
    return dots(domains, values, "bits per byte (lower is better)", width)


def who(row: MetricRow) -> str:
    """Name the model and seed of a row."""
    return f"{row.model}" if row.seed is None else f"{row.model}, seed {row.seed}"


def ledger_table(study: Study) -> Table:
    """Put what each model costs side by side: that is the fairness of the comparison."""
    lines = [
        ("Parameters", [count(m.params_total) for m in study.models]),
        ("… without embedding, head", [count(m.params_total_backbone) for m in study.models]),
        ("… active per token", [count(m.params_active) for m in study.models]),
        ("… in the memory table", [_or_none(m.params_table) for m in study.models]),
        ("FLOPs per token (forward)", [count(m.flops_per_token) for m in study.models]),
        ("Training tokens", [count(m.tokens) for m in study.models]),
        ("Epochs", [_recorded(study, m, "epochs") for m in study.models]),
        ("Seeds", [", ".join(map(str, m.seeds)) or MISSING for m in study.models]),
        ("Matched in cost to", [m.matched_to or MISSING for m in study.models]),
        ("Learning rates", [_tuning(m) for m in study.models]),
    ]
    lines = [(label, cells) for label, cells in lines if set(cells) != {MISSING}]
    look = looks(study)
    return Table(
        "The ledger: what each model costs",
        [
            Column("", numeric=False),
            *(Column(m.name, chip=look[m.name].number) for m in study.models),
        ],
        [[Cell(label), *(Cell(text) for text in cells)] for label, cells in lines],
        ident="ledger",
        sortable=False,
    )


def _tuning(model: Model) -> str:
    """Say whether the rates were tuned, for models that were trained here."""
    if model.tokens is None:
        return MISSING
    return "tuned" if model.tuned else "untuned"


def _or_none(value: float | None) -> str:
    return "none" if value == 0 else count(value)


def _recorded(study: Study, model: Model, metric: str) -> str:
    rows = pick(study.rows, name="train", metric=metric, model=model.name)
    return fixed(value_of(rows[0]), 2) if rows else MISSING
