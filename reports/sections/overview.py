"""The first screen: question, answer, ledger, the one picture."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from engram_eval.records import MetricRow
from reports.answer import Answer, answer
from reports.blocks import Block, Cell, Column, Section, Table, View, flat_rows, panel
from reports.draw import Canvas, Dot, dots
from reports.load import Model, Study, Verdict
from reports.numbers import MANY, MISSING, count, each, fixed, middle, seed_numbers
from reports.query import asked, by_domain, domain_of, heldout, pick, value_of, values, who
from reports.sections.columns import uncounted
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
        items=[
            *([heldout_block(study, rows, told)] if rows else []),
            *([ledger_table(study)] if any(map(_counted, study.models)) else []),
        ],
        missing=missing + ([] if study.models or speed_told(study) else ["No model is recorded."]),
        template="overview.html",
        content={
            "question": study.text("question") or "Which model predicts text better?",
            "answer": told,
            "decided": [_decided(v) for v in told.decided],
            "unfinished": study.unfinished,
            "stages": study.stage_count,
            "verdicts": _verdicts(study, told),
        },
    )


def _verdicts(study: Study, told: Answer) -> str:
    """Return the words that lead to the verdicts; they are not counted twice."""
    if not study.verdicts:
        return ""
    return f"All {len(study.verdicts)} claims" if told.lead else tally(study.verdicts)


def _decided(v: Verdict) -> dict[str, str]:
    """Return a claim of the first screen: what it came to, its sentence and its effect."""
    return {
        "tag": v.tag,
        "word": v.word,
        "text": f"{v.claim}:",
        "effect": f"{fixed(v.effect, sign=True)} {v.unit}",
    }


def heldout_block(study: Study, rows: Sequence[MetricRow], told: Answer) -> Block:
    """Draw every seed of every model per domain: the one picture.

    Of many models each has a row of its own, and each domain a choice: in one row for all they
    would cover each other.
    """
    domains = by_domain(domain_of(row) for row in rows)
    look = looks(study)
    names = [m.name for m in study.models] + study.baselines()
    drawn = [n for n in names if pick(rows, model=n)]
    views = [View("bits per byte", [panel(partial(_picture, domains, rows, look))])]
    finding = f"Each point is one trained model, one seed{_over(rows)}; further left is better."
    if len(study.models) > MANY:
        shown = [name for name in drawn if name not in _far_off(study, rows)]
        views = [View(domain, [panel(_by_model(domain, shown, rows, look))]) for domain in domains]
        finding += _left_out(study, rows)
    return Block(
        "heldout-by-domain",
        "Bits per byte on held-out text",
        finding,
        views,
        flat_rows(rows),
        legend=drawn if len(study.models) <= MANY else (),
        alt=f"Dots of bits per byte by domain and model. {told.text}",
    )


def _over(rows: Sequence[MetricRow]) -> str:
    """Say over how many documents, where that is the same for all: studies score a part."""
    counts = {row.n for row in rows if not row.slice}
    return f", over {counts.pop()} documents" if len(counts) == 1 and None not in counts else ""


def _by_model(
    domain: str, names: Sequence[str], rows: Sequence[MetricRow], look: Mapping[str, Look]
) -> Callable[[int], Canvas]:
    """Return what draws one domain, a row for each model, lowest first."""
    found = {n: [r for r in pick(rows, model=n) if domain_of(r) == domain] for n in names}
    ranked = sorted((n for n in names if found[n]), key=lambda n: middle(values(found[n])))

    def draw(width: int) -> Canvas:
        points = [
            Dot(place, value_of(row), look[name], f"{who(row)}: {fixed(value_of(row))} bit/byte")
            for place, name in enumerate(ranked)
            for row in found[name]
        ]
        return dots(
            ranked,
            points,
            "bits per byte (lower is better)",
            width,
            apart=False,
            row=24,
            spread=True,
        )

    return draw


def _far_off(study: Study, rows: Sequence[MetricRow]) -> dict[str, list[float]]:
    """Return a reference or two, too far from all models for a picture that tells these apart.

    Where there are more of them, they are what the study is about.
    """
    whole = [row for row in rows if domain_of(row) == "all"]
    models = [value_of(row) for m in study.models for row in pick(whole, model=m.name)]
    if not models:
        return {}
    low, high = min(models), max(models)
    found = {name: values(pick(whole, model=name)) for name in study.baselines()}
    span = high - low
    far = {n: v for n, v in found.items() if v and (max(v) < low - span or min(v) > high + span)}
    return far if len(far) < 3 else {}


def _left_out(study: Study, rows: Sequence[MetricRow]) -> str:
    far = _far_off(study, rows)
    return f" Too far off to be drawn, on all text: {each(far)}." if far else ""


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
    return dots(domains, values, "bits per byte (lower is better)", width, spread=True)


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
        ("Seeds", [seed_numbers(m.seeds) for m in study.models]),
        ("Matched in cost to", [m.matched_to or MISSING for m in study.models]),
        ("Learning rates", [_tuning(m) for m in study.models]),
    ]
    lines = [(label, cells) for label, cells in lines if set(cells) != {MISSING}]
    look = looks(study)
    if len(study.models) > MANY:
        chips = {m.name: look[m.name].number for m in study.models}
        return Table(
            "The ledger: what each model costs",
            [Column("Model", numeric=False), *(Column(label.lstrip("… ")) for label, _ in lines)],
            [
                [Cell(model.name), *(Cell(cells[place]) for _, cells in lines)]
                for place, model in enumerate(study.models)
            ],
            ident="ledger",
            note=uncounted({m.name: m.uncounted for m in study.models}),
            sortable=False,
            chips=chips,
        )
    return Table(
        "The ledger: what each model costs",
        [
            Column("", numeric=False),
            *(Column(m.name, chip=look[m.name].number) for m in study.models),
        ],
        [[Cell(label), *(Cell(text) for text in cells)] for label, cells in lines],
        ident="ledger",
        note=uncounted({m.name: m.uncounted for m in study.models}),
        sortable=False,
    )


def _counted(model: Model) -> bool:
    """Tell whether anything is known of a model's cost, or why nothing is."""
    return model.params_total is not None or model.tokens is not None or bool(model.uncounted)


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
