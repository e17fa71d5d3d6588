"""Training curves against tokens, FLOPs, seconds and parameters; experts, rows and gates."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from reports.blocks import Block, Cell, Column, Section, Table, View, flat_rows, panel
from reports.draw import Canvas, Line, lines
from reports.load import Stage, Study
from reports.numbers import MANY, count, duration, each, fixed, percent
from reports.query import ordered, pick, values
from reports.runs import Run, read_run
from reports.sections.columns import seeds_cell, seeds_note
from reports.sections.tuning import tuning_tables
from reports.seeds import bundled, drawn_seeds
from reports.theme import Look, looks

T = TypeVar("T")

# The backward pass costs twice the forward pass (arXiv:2001.08361, section 2.1).
_TRAIN_FLOPS = 3
# Of a training's many steps, so many are drawn: one every four units of a wide picture.
DRAWN = 160
WIDE = 720


def section(study: Study) -> Section:
    """Build the curves and the table of what training cost."""
    if study.abridged:
        return Section("training", "Training", lead=study.abridged, items=tuning_tables(study))
    stages = [s for s in study.stages if s.stage == "train"]
    if study.stages and not stages:
        loaded = any(s.stage == "load" for s in study.stages)
        lead = "These models were loaded, not" if loaded else "Nothing was"
        return Section("training", "Training", lead=f"{lead} trained here.")
    missing = [f"{s.label}: {s.status}{_why(s)}" for s in stages if not s.finished]
    runs = [run for s in stages if (run := read_run(study, s)) is not None]
    if not runs:
        return Section("training", "Training", missing=missing or ["No training is recorded yet."])
    return Section(
        "training",
        "Training",
        lead=_lead(study),
        items=[
            curves_block(study, runs),
            *sparse_block(study, runs),
            *tuning_tables(study),
            cost_table(study, runs),
        ],
        missing=missing,
    )


def _lead(study: Study) -> str:
    if len({model.tokens for model in study.models}) > 1:
        return "Models are trained on different numbers of tokens, which the ledger lists."
    return "All models see the same tokens; of one seed, in the same order."


def _why(stage: Stage) -> str:
    return f" ({stage.error})" if stage.error else ""


class Axis(NamedTuple):
    """What a curve stands against: the position of a step, or None where unknown."""

    label: str
    where: Callable[[Run, int], float | None]


def _tokens(run: Run, step: int) -> float | None:
    per_step = run.steps[0].tokens / run.steps[0].step if run.steps else None
    return None if per_step is None else step * per_step


def _flops(run: Run, step: int) -> float | None:
    tokens = _tokens(run, step)
    if tokens is None or run.model.flops_per_token is None:
        return None
    return tokens * run.model.flops_per_token * _TRAIN_FLOPS


AXES = (
    Axis("tokens", _tokens),
    Axis("training FLOPs", _flops),
    Axis("seconds", lambda run, step: run.seconds.get(step)),
)
STEPS = Axis("steps", lambda run, step: float(step))
"""Where tokens are not known; elsewhere it is the same picture with other numbers below."""


def curves_block(study: Study, runs: Sequence[Run]) -> Block:
    """Draw validation loss with points and training loss as a faint line behind it."""
    look = looks(study)
    views = []
    for axis in AXES if any(run.steps for run in runs) else (STEPS,):
        drawn = _lines(runs, axis, look)
        if drawn:
            views.append(View(axis.label, [panel(partial(_draw, drawn, axis), WIDE)]))
    views += _by_parameters(runs, look)
    return Block(
        "training-curves",
        "Loss during training",
        _finding(runs),
        views,
        [row for run in runs for row in _csv(run)],
        legend=ordered(run.model.name for run in runs),
        key=f"Points: validation loss at the checkpoints. {drawn_seeds(len(_by_model(runs)))} "
        f"{_faint(runs)}Against parameters: the last validation loss of each seed.",
    )


def _faint(runs: Sequence[Run]) -> str:
    if len(_by_model(runs)) > MANY:
        return ""
    return (
        "Faint: the training loss (where there is a band, of the first seed), at most "
        f"{DRAWN} steps of it. "
    )


def _by_parameters(runs: Sequence[Run], look: Mapping[str, Look]) -> list[View]:
    """Place each trained model by its size and its last validation loss."""
    points = [
        Line(
            [run.model.params_total],
            [run.validation[max(run.validation)]],
            look[run.model.name],
            f"{_who(run)}: {count(run.model.params_total)} parameters",
        )
        for run in runs
        if run.validation and run.model.params_total
    ]
    if not points:
        return []
    draw = partial(lines, points, "total parameters", "loss, nats per token")
    return [View("parameters", [panel(draw, WIDE)])]


class Sparse(NamedTuple):
    """What the sparse parts do while a model trains: a field of ``Step``, and its words."""

    name: str
    label: str
    ylabel: str


SPARSE = (
    Sparse("router_load_max", "fullest expert", "tokens on the fullest expert over the mean"),
    Sparse("rows_touched", "rows touched", "share of the table's rows read so far"),
    Sparse("collision_rate", "collisions", "share of reads whose row last served another n-gram"),
    Sparse("gate_mean", "gates", "mean gate of the memory"),
    Sparse("grad_norm", "gradient", "gradient norm"),
)


def sparse_block(study: Study, runs: Sequence[Run]) -> list[Block]:
    """Draw router load, rows touched and gates by step; empty where nothing of it is recorded."""
    look, views = looks(study), []
    for kind in SPARSE:
        drawn = _courses(runs, kind.name, look)
        if drawn:
            draw = partial(lines, drawn, "tokens", kind.ylabel)
            views.append(View(kind.label, [panel(draw, WIDE)]))
    if not views:
        return []
    known = [run for run in runs if run.steps]
    block = Block(
        "training-sparse",
        "Experts, table and gates during training",
        _sparse_finding(known),
        views,
        [row for run in known for row in _sparse_csv(run)],
        legend=ordered(run.model.name for run in known),
        key=f"{drawn_seeds(len(_by_model(known)))} At most {DRAWN} steps of each. A fullest expert "
        "at 1 is perfect balance.",
    )
    return [block]


def _courses(runs: Sequence[Run], name: str, look: Mapping[str, Look]) -> list[Line]:
    drawn: list[Line] = []
    models = _by_model(runs)
    for model, seeds in models.items():
        courses = [_course(run, name, look) for run in seeds]
        drawn += bundled([c for c in courses if c.x], model, banded=len(models) <= MANY)
    return drawn


def _course(run: Run, name: str, look: Mapping[str, Look]) -> Line:
    points = [(s.tokens, getattr(s, name)) for s in thinned(run.steps)]
    known = [(x, y) for x, y in points if y is not None]
    x, y = [x for x, _ in known], [y for _, y in known]
    return Line(x, y, look[run.model.name], _who(run), marked=False)


def _sparse_finding(runs: Sequence[Run]) -> str:
    """Quote the last step of every seed."""
    parts = []
    for kind in SPARSE[:-1]:
        ends = _quoted(runs, partial(_last, kind.name), 2)
        parts += [f"{kind.label}: {ends}"] if ends else []
    return f"At the last step, {'; '.join(parts)}." if parts else "Only gradients are recorded."


def _last(name: str, run: Run) -> float | None:
    value: float | None = getattr(run.steps[-1], name)
    return value


def _quoted(
    runs: Sequence[Run], value: Callable[[Run], float | None], digits: int, between: str = ", "
) -> str:
    """Write every seed of every model: ``moe 1.52 and 1.72, engram 1.63``."""
    found = {
        name: [x for run in seeds if (x := value(run)) is not None]
        for name, seeds in _by_model(runs).items()
    }
    return each(found, partial(fixed, digits=digits), between)


def _sparse_csv(run: Run) -> list[dict[str, Any]]:
    who = {"model": run.model.name, "seed": run.seed}
    names = ["step", "tokens", *(kind.name for kind in SPARSE)]
    return [
        {**who, **{name: _four(getattr(s, name)) for name in names}} for s in thinned(run.steps)
    ]


def _four(value: float | None) -> float | None:
    """Keep four digits, all that a picture shows; of every step they are many."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def thinned(steps: Sequence[T], most: int = DRAWN) -> Sequence[T]:
    """Return at most ``most`` of the steps, evenly spaced, the last one among them."""
    stride = -(-len(steps) // most) or 1
    return steps[::-1][::stride][::-1]


def _draw(drawn: Sequence[Line], axis: Axis, width: int) -> Canvas:
    result = lines(drawn, axis.label, "loss, nats per token", width)
    _focus(result, drawn)
    return result


def _focus(target: Canvas, drawn: Sequence[Line]) -> None:
    """Cut off the first steps' very high loss, which would flatten all that follows."""
    shown = [y for line in drawn if not line.faint for y in (*line.y, *line.low, *line.high)]
    if shown:
        margin = 0.08 * (max(shown) - min(shown))
        target.axes.set_ylim(min(shown) - 2 * margin, max(shown) + margin)


def _lines(runs: Sequence[Run], axis: Axis, look: Mapping[str, Look]) -> list[Line]:
    """Return the validation loss of all seeds, and the training loss behind it."""
    drawn: list[Line] = []
    models = _by_model(runs)
    few = len(models) <= MANY
    for name, seeds in models.items():
        courses = [
            _line(r, axis, r.validation, Line([], [], look[name], f"{_who(r)}, validation"))
            for r in seeds
        ]
        shown = bundled([course for course in courses if course.x], name, banded=few)
        behind = [] if not few else seeds[:1] if any(line.low for line in shown) else seeds
        drawn += [c for r in behind if (c := _training(r, axis, look[name])).x] + shown
    return drawn


def _training(run: Run, axis: Axis, look: Look) -> Line:
    losses = {s.step: s.loss_nats for s in thinned(run.steps)}
    form = Line([], [], look, f"{_who(run)}, training", marked=False, faint=True)
    return _line(run, axis, losses, form)


def _by_model(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.model.name, []).append(run)
    return found


def _who(run: Run) -> str:
    return f"{run.model.name}, seed {run.seed}"


def _line(run: Run, axis: Axis, losses: Mapping[int, float], form: Line) -> Line:
    points = [(axis.where(run, step), loss) for step, loss in sorted(losses.items())]
    known = [(x, y) for x, y in points if x is not None]
    return form._replace(x=[x for x, _ in known], y=[y for _, y in known])


def _csv(run: Run) -> list[dict[str, Any]]:
    who = {"model": run.model.name, "seed": run.seed}
    steps = sorted({s.step for s in run.steps} | set(run.validation))
    train = {s.step: s for s in run.steps}
    return [
        {
            **who,
            "step": step,
            "tokens": train[step].tokens if step in train else None,
            "seconds": run.seconds.get(step),
            "train_loss_nats": train[step].loss_nats if step in train else None,
            "val_loss_nats": run.validation.get(step),
        }
        for step in steps
    ]


def _finding(runs: Sequence[Run]) -> str:
    ends = _quoted(runs, _end, 3, "; ")
    if not ends:
        return "No validation loss is recorded yet; the lines are training loss."
    return f"Lower is better. At the end, every seed, in nats per token: {ends}."


def _end(run: Run) -> float | None:
    return run.validation[max(run.validation)] if run.validation else None


COSTS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("Time", "seconds", duration),
    ("Tokens per second", "tokens_per_s", count),
    ("Peak memory, MB", "peak_memory_mb", lambda value: fixed(value, 0)),
    ("Peak on the GPU, MB", "peak_gpu_memory_mb", lambda value: fixed(value, 0)),
    ("Fullest expert", "router_load_max", lambda value: fixed(value, 2)),
    ("Table rows touched, %", "rows_touched", percent),
    ("Mean gate", "gate_mean", lambda value: fixed(value, 3)),
)


def cost_table(study: Study, runs: Sequence[Run]) -> Table:
    """List what each training cost and how much of the sparse parts it used."""
    rows = [row for row in pick(study.rows, name="train") if row.split is None]
    shown = [cost for cost in COSTS if pick(rows, metric=cost[1])]
    body = []
    for name in _by_model(runs):
        here = pick(rows, model=name)
        cells = [seeds_cell(values(pick(here, metric=metric)), write) for _, metric, write in shown]
        body.append([Cell(name), *cells])
    return Table(
        "What training cost here, and what it used",
        [
            Column("Model", numeric=False),
            *(Column(label) for label, _, _ in shown),
        ],
        body,
        ident="training-cost",
        chips={name: look.number for name, look in looks(study).items()},
        data=flat_rows([row for _, metric, _ in shown for row in pick(rows, metric=metric)]),
        note=f"{seeds_note(rows, bold=False)}Times and memory depend on the machine. Fullest "
        "expert: its share of the tokens at the end, times the number of experts; 1 is perfect "
        "balance.",
    )
