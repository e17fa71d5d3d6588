"""Forest plot: paired differences of the headline pair with their intervals."""

from collections.abc import Sequence
from functools import partial

from reports.blocks import Block, View, panel
from reports.draw import Canvas, Dot, dots, zero_line
from reports.load import Comparison, Study
from reports.numbers import fixed, listing, percent
from reports.query import by_domain, domain_of, headline_pair, ordered, pooled_comparisons
from reports.sections.columns import comparison_row
from reports.theme import looks


def heldout_differences(study: Study) -> list[Block]:
    """Draw the recorded differences on held-out text, by domain; empty without any."""
    return _block(
        study, "heldout", "on held-out text", [("held-out text", "bits_per_byte", _texts(study))]
    )


def task_differences(study: Study) -> list[Block]:
    """Draw the recorded differences on informative tasks and on domains of tasks."""
    return _block(
        study,
        "task",
        "task by task",
        [
            ("accuracy", "acc", _tasks(study, "acc")),
            ("bits per byte of the answer", "bits_per_byte", _tasks(study, "bits_per_byte")),
        ],
    )


def told_tasks(study: Study) -> list[Comparison]:
    """Return the differences in accuracy on the tasks that tell the headline pair apart."""
    return [c for c in _tasks(study, "acc") if c.name != "tasks"]


def task_sentence(found: Sequence[Comparison], a: str, b: str) -> str:
    """Say how ``b`` does beside ``a`` on tasks; of a single one with its interval; "" of none."""
    if not found:
        return ""
    if len(found) == 1:
        return _one_task(found[0], a, b)
    ahead, behind = sides(found)
    return (
        f"Of {len(found)} informative tasks, {b} answers more items rightly than {a} in {ahead} "
        f"and fewer in {behind}; in {len(found) - ahead - behind} the interval over "
        f"{_units(found)} spans no difference."
    )


def _one_task(found: Comparison, a: str, b: str) -> str:
    interval = ""
    if found.ci_low is not None and found.ci_high is not None:
        low, high = (percent(bound, sign=True) for bound in (found.ci_low, found.ci_high))
        interval = f" (95 % interval over {_units([found])}: {low} to {high})"
    points = percent(found.effect, sign=True)
    return (
        f"On {found.name}, the accuracy of {b} differs from that of {a} by {points} percentage "
        f"points{interval}."
    )


def sides(found: Sequence[Comparison]) -> tuple[int, int]:
    """Count the differences whose interval lies wholly above, and wholly below, none."""
    ahead = sum(c.ci_low is not None and c.ci_low > 0 for c in found)
    behind = sum(c.ci_high is not None and c.ci_high < 0 for c in found)
    return ahead, behind


def _units(found: Sequence[Comparison]) -> str:
    return listing(ordered(c.units or "items" for c in found))


def _block(
    study: Study, ident: str, told: str, kinds: list[tuple[str, str, list[Comparison]]]
) -> list[Block]:
    pair = headline_pair(study)
    drawn = [kind for kind in kinds if kind[2]]
    if pair is None or not drawn:
        return []
    shown = [c for _, _, found in drawn for c in found]
    units = _units(shown)
    caution = "" if units == "seeds" else ", not over seeds"
    block = Block(
        f"{ident}-differences",
        f"{pair[1].name} against {pair[0].name}, {told}",
        _finding(drawn[0][2], drawn[0][0], pair[1].name),
        [
            View(label, [panel(partial(_forest, study, metric, found))])
            for label, metric, found in drawn
        ],
        [comparison_row(c) for c in shown],
        key=f"Right of the line {pair[1].name} is better. Bars: 95 % intervals over "
        f"{units}{caution}.",
    )
    return [block]


def _whole(study: Study, metric: str) -> list[Comparison]:
    return [
        c
        for c in pooled_comparisons(study, metric)
        if set(c.slice) <= {"domain"} and c.effect is not None
    ]


def _texts(study: Study) -> list[Comparison]:
    """Return the differences on held-out text by domain."""
    found = [c for c in _whole(study, "bits_per_byte") if c.name == "heldout"]
    order = by_domain(map(_label, found))
    return sorted(found, key=lambda c: order.index(_label(c)))


def _tasks(study: Study, metric: str) -> list[Comparison]:
    """Return informative tasks, and the means over the tasks of a domain."""
    whole = [c for c in _whole(study, metric) if c.name != "heldout"]
    found = [c for c in whole if c.informative is not False]
    return sorted(found, key=lambda c: (c.slice.get("domain", ""), c.name != "tasks", c.name))


def _label(found: Comparison) -> str:
    domain = domain_of(found)
    if found.name == "heldout":
        return domain
    return f"all of {domain}" if found.name == "tasks" else found.name


def _forest(study: Study, metric: str, found: Sequence[Comparison], width: int) -> Canvas:
    scale = 100 if metric == "acc" else 1
    values = [
        Dot(
            position,
            scale * (c.effect or 0),
            looks(study)[c.model_b],
            f"{_label(c)}: {_write(metric, c.effect)}",
            low=None if c.ci_low is None else scale * c.ci_low,
            high=None if c.ci_high is None else scale * c.ci_high,
        )
        for position, c in enumerate(found)
    ]
    unit = "percentage points" if metric == "acc" else "bits per byte"
    result = dots([_label(c) for c in found], values, f"better by, {unit}", width)
    zero_line(result)
    return result


def _write(metric: str, value: float | None) -> str:
    return percent(value, sign=True) if metric == "acc" else fixed(value, sign=True)


def _finding(found: Sequence[Comparison], label: str, name: str) -> str:
    """Count the intervals that exclude no difference; they are over items, which the key says."""
    better, worse = sides(found)
    return (
        f"On {label}, the interval lies wholly on the side of {name} in {better} of {len(found)} "
        f"rows and wholly on the other side in {worse}."
    )
