"""Shows a traced text: as lines for the terminal, and as data; ``page`` has the page."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from engram_eval.tracing.trace import Step, Trace, Write

BAR = 10
SHADES = " ▁▂▃▄▅▆▇█"
WIDTH = 100


class Cell(NamedTuple):
    """A token's column in the overview: its text, its gates' shades, what memory saved."""

    token: str
    gates: tuple[str, ...]
    saved: str


def trace_text(trace: Trace, width: int = WIDTH) -> str:
    """Lay a trace out for the terminal: gates at a glance, then every token.

    Args:
        trace: what to show.
        width: columns of the overview.
    """
    lines = [trace.model, "", *_overview(trace, width), "", *_legend(trace), ""]
    for place, step in enumerate(trace.steps):
        lines.append(f"{place:3} {step.text!r}  id {step.id}, compressed {step.compressed}")
        for write in step.writes:
            lines += _write_lines(write)
        if trace.trained and step.next_bits is not None and step.next_bits_off is not None:
            lines.append(
                f"    next, {trace.steps[place + 1].text!r}: {step.next_bits:.1f} bits; "
                f"without memory {step.next_bits_off:.1f}"
            )
    return "\n".join(lines)


def _overview(trace: Trace, width: int) -> Iterator[str]:
    """Yield blocks of lines as wide as allowed: tokens, and under them each layer's gates."""
    layers = [write.layer for write in trace.steps[0].writes]
    labels = ["", *(f"gate {layer}" for layer in layers), "saved"]
    start = max(len(label) for label in labels) + 2
    blocks: list[list[Cell]] = [[]]
    used = start
    for cell in _cells(trace):
        size = len(cell.token) + 1
        if blocks[-1] and used + size > width:
            blocks.append([])
            used = start
        blocks[-1].append(cell)
        used += size
    gated = [number for number, write in enumerate(trace.steps[0].writes) if write.gates]
    for block in blocks:
        yield " " * start + " ".join(cell.token for cell in block)
        for number in gated:
            shades = (cell.gates[number] * len(cell.token) for cell in block)
            yield f"{labels[1 + number]:{start}}" + " ".join(shades)
        if trace.trained:
            saved = (f"{cell.saved:{len(cell.token)}}" for cell in block)
            yield f"{labels[-1]:{start}}" + " ".join(saved)


def _cells(trace: Trace) -> Iterator[Cell]:
    for step in trace.steps:
        text = step.text.strip(" ") or "␣"
        token = "".join(c if c.isprintable() else "·" for c in text)
        gates = tuple("" if write.gate is None else _shade(write.gate) for write in step.writes)
        value = saved_bits(step)
        saved = "" if value is None else f"{round(value):+d}"
        token = f"{token:{len(saved)}}" if trace.trained else token
        yield Cell(token, gates, saved)


def _shade(gate: float) -> str:
    return SHADES[min(len(SHADES) - 1, round(gate * (len(SHADES) - 1)))]


def saved_bits(step: Step) -> float | None:
    """Return by how much the memories lower the next token's surprisal; None for the last."""
    if step.next_bits is None or step.next_bits_off is None:
        return None
    return step.next_bits_off - step.next_bits


def _legend(trace: Trace) -> Iterator[str]:
    yield "gate: how far a layer's memory opens; added: length of what it adds, and of the stream"
    if trace.trained:
        yield "saved: bits of surprisal at the next token, against the same model without memory"
    else:
        yield "n-grams and rows are real; gates and what is added mean nothing before training"


def _write_lines(write: Write) -> list[str]:
    gate = ""
    if write.gate is not None:
        full = round(write.gate * BAR)
        streams = " ".join(f"{gate:.2f}" for gate in write.gates)
        each = f"({streams})  " if len(write.gates) > 1 else " "
        gate = f"gate {write.gate:.2f} {'█' * full}{'░' * (BAR - full)} {each}"
    promoted = " ".join(repr(word) for word in write.promoted)
    head = f"    layer {write.layer}  {gate}added {write.added:.3g} to {write.stream:.3g}"
    lines = [f"{head}  promotes {promoted}"]
    for ngram in write.ngrams:
        rows = " ".join(str(row) for row in ngram.rows)
        lines.append(f"      {len(ngram.texts)}-gram {'|'.join(ngram.texts)!r}  rows {rows}")
    return lines


def trace_data(trace: Trace) -> dict[str, Any]:
    """Return a trace as plain JSON data."""
    return {**trace._asdict(), "steps": [_step(step) for step in trace.steps]}


def _step(step: Step) -> dict[str, Any]:
    writes = [
        {**write._asdict(), "ngrams": [ngram._asdict() for ngram in write.ngrams]}
        for write in step.writes
    ]
    return {**step._asdict(), "writes": writes}
