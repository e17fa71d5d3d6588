"""Verdicts for people, and the short form for machines."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

BRIEF = ("id", "study", "verdict", "effect", "ci_low", "ci_high", "seeds", "scale")
LEAST_WEIGHT = 0.01
NOTHING = "–"
"""Stands for the numbers of what was not tested."""
MORE = ("unit", "smallest_effect", "power", "tuned", "claim", "source", "published")


def brief(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``engram-eval claims --json`` prints of a verdict."""
    told = {key: entry[key] for key in (*BRIEF, *MORE)}
    return told | {"lookup_rates": entry.get("lookup_rates")}


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Lay verdicts out as text: the numbers in one line, the claim in the next."""
    if not entries:
        return "no claims: these studies decide none"
    lines = [line for entry in entries for line in _lines(entry)]
    told = f"{len(entries)} claims, each at its scale only: {tally(entries)}"
    return "\n".join([*lines, "", told])


def tally(entries: Sequence[Mapping[str, Any]]) -> str:
    """Count verdicts by their word, the commonest first: ``3 supported, 1 not tested``."""
    counts = Counter(map(word, entries))
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def word(entry: Mapping[str, Any]) -> str:
    """Return the verdict as it is read; what had no numbers to test is no verdict."""
    return "not tested" if entry["effect"] is None else str(entry["verdict"]).replace("_", " ")


def markdown(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return verdicts as a Markdown table, one claim a row, in the order given.

    Rates are those of token embeddings and of the memory's rows, over the backbone's.
    """
    heads = (
        "claim",
        "published",
        "verdict",
        "effect [95 %]",
        "seeds",
        "scale; rates over the backbone's",
    )
    rows = [
        (
            f"{entry['claim']} (`{entry['id']}`)",
            f"{entry['published']} ({entry['source']})",
            _told(entry),
            _effect(entry),
            str(entry["seeds"]),
            f"{entry['scale']}{_rates(entry)}",
        )
        for entry in entries
    ]
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in r)} |" for r in lines)


def _told(entry: Mapping[str, Any]) -> str:
    """Return the verdict, with the power of an inconclusive one and how rates were tuned."""
    if entry["effect"] is None:
        return word(entry)
    power = f" (power {entry['power']:.0%})" if entry["verdict"] == "inconclusive" else ""
    return f"{word(entry)}{power}{_caution(entry)}"


def _caution(entry: Mapping[str, Any]) -> str:
    """Return how far the rates were tuned, where that says less than it could."""
    if not entry["tuned"]:
        return ", untuned"
    # Verdicts that were written before this was looked at do not say it.
    return ", tuned to the edge of what was tried" if entry.get("at_edge") else ""


def _rates(entry: Mapping[str, Any]) -> str:
    """Return the rates of token embeddings and rows, where all arms had them in common."""
    # Verdicts that were written before this was looked at do not say it.
    rates = entry.get("lookup_rates")
    if rates is None:
        return ""
    return f"; embeddings {rates['embedding']:g}x, rows {rates['rows']:g}x"


def _lines(entry: Mapping[str, Any]) -> list[str]:
    scale = f"at this scale ({entry['scale']}), {entry['seeds']} seeds"
    scale += f"{_caution(entry)}{_rates(entry)}"
    return [
        f"{word(entry):13} {entry['id']:34} {_effect(entry):44} {scale}",
        f"{'':13} {entry['claim']} [{entry['source']}: {entry['published']}]",
        *([f"{'':13} {entry['reason']}"] if entry["verdict"] == "inconclusive" else []),
        *([f"{'':13} {_curve(entry['shape'])}"] if entry.get("shape") else []),
    ]


def _curve(shape: Mapping[str, Any]) -> str:
    """Say which curves fit the arms along their axis, and where it is lowest."""
    ranked = sorted(shape["weights"].items(), key=lambda curve: -curve[1])
    told = ", ".join(f"{name} {weight:.0%}" for name, weight in ranked if weight >= LEAST_WEIGHT)
    if shape["lowest"] is None:
        return f"weights of evidence: {told}"
    place = f"{shape['lowest']:.2f} ({shape['low']:.2f} to {shape['high']:.2f})"
    return f"weights of evidence: {told}; a parabola is lowest at {place} on the axis"


def _effect(entry: Mapping[str, Any]) -> str:
    if entry["effect"] is None:
        return NOTHING
    if entry["ci_low"] is None:
        return f"{entry['effect']:+.4f} in every seed, {entry['unit']}"
    bounds = f"[{entry['ci_low']:+.4f}, {entry['ci_high']:+.4f}]"
    return f"{entry['effect']:+.4f} {bounds} {entry['unit']}"
