"""Numbers as people read them."""

from collections.abc import Callable, Mapping, Sequence

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))

MISSING = "–"
MINUS = "\N{MINUS SIGN}"
# Of more models than this, a sentence names the ends, and a picture of curves the middle alone.
MANY = 6
# Seeds that a table names one by one.
SINGLE_SEEDS = 5


def fixed(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """Write a number with fixed decimals and a real minus sign; None becomes a dash."""
    if value is None:
        return MISSING
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if not float(text):
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def percent(value: float | None, sign: bool = False) -> str:
    """Write a share as a percentage without the sign (the header carries it)."""
    return fixed(None if value is None else 100 * value, 1, sign)


def count(value: float | None) -> str:
    """Write a large number with three digits and a prefix: ``4.78 M``."""
    if value is None:
        return MISSING
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Write a time span: ``3 min 12 s``."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def p_value(p: float | None) -> str:
    """Write a p-value: ``0.032``, or ``< 0.001``."""
    if p is None:
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def quoted(found: Sequence[float], write: Callable[[float], str] = fixed) -> str:
    """Write the seeds of one model in a sentence: each, or the middle one with the range."""
    if len(found) < 3:
        return listing([write(value) for value in found])
    low, high = write(min(found)), write(max(found))
    return low if low == high else f"{write(middle(found))} ({low} to {high})"


def each(
    models: Mapping[str, Sequence[float]],
    write: Callable[[float], str] = fixed,
    between: str = ", ",
) -> str:
    """Write every model's seeds in a sentence; of many models those of the lowest and highest."""
    known = {name: found for name, found in models.items() if found}
    told = [f"{name} {quoted(found, write)}" for name, found in known.items()]
    if len(told) <= MANY:
        return between.join(told)
    ranked = sorted(known, key=lambda name: middle(known[name]))
    ends = [quoted(known[name], write) for name in (ranked[0], ranked[-1])]
    if ends[0] == ends[1]:
        return f"{len(told)} models, each {ends[0]}"
    low, high = (f"{name} {end}" for name, end in zip((ranked[0], ranked[-1]), ends, strict=True))
    return f"{len(told)} models, from {low} to {high}"


def seed_numbers(seeds: Sequence[int]) -> str:
    """Write the seeds of a model: ``0, 1, 2``, or ``10 to 24`` where more follow each other."""
    if not seeds:
        return MISSING
    row = list(range(seeds[0], seeds[0] + len(seeds)))
    if len(seeds) > SINGLE_SEEDS and list(seeds) == row:
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def middle(found: Sequence[float]) -> float:
    """Return the middle one of recorded values, the lower one of two."""
    return sorted(found)[(len(found) - 1) // 2]


def listing(items: list[str], last: str = "and") -> str:
    """Join items as in a sentence: ``a, b and c``."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"
