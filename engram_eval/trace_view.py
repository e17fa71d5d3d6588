"""Shows a traced text: as lines for the terminal, as data, as one HTML page."""

from typing import Any

from jinja2 import Environment

from engram_eval.trace import Step, Trace, Write

BAR = 10

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Trace: {{ trace.text | truncate(60) }}</title>
<style>
:root { color-scheme: light dark; --mark: 11, 98, 176; }
@media (prefers-color-scheme: dark) { :root { --mark: 107, 181, 245; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
.text { font: 17px/2.2 ui-monospace, monospace; white-space: pre-wrap; }
.text a { color: inherit; text-decoration: none; padding: .2em 0; border-bottom: 2px solid; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem; }
tr + tr { border-top: 1px solid #8886; }
code { white-space: pre; } .n { text-align: right; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } tr:target { outline: 2px solid; }
</style>
<h1>One text's way through the memory</h1>
<p>{{ trace.model }}. The darker a token, the wider its gate; choose one for its n-grams.</p>
{% for layer in layers %}
<h2>Layer {{ layer.number }}</h2>
<p class="text">
{%- for step, write in layer.tokens -%}
<a href="#l{{ layer.number }}t{{ loop.index0 }}"
{%- if write.gate is not none %} style="background: rgba(var(--mark), {{ shade(write.gate) }})"
 title="gate {{ '%.2f' | format(write.gate) }}"{% endif %}>{{ step.text }}</a>
{%- endfor -%}
</p>
<div class="wide"><table>
<tr><th>token<th class="n">id<th class="n">compressed<th>n-grams<th>rows, one per head
<th class="n">gate<th class="n">added<th class="n">stream<th>what was added promotes</tr>
{% for step, write in layer.tokens -%}
<tr id="l{{ layer.number }}t{{ loop.index0 }}">
<td><code>{{ step.text }}</code><td class="n">{{ step.id }}<td class="n">{{ step.compressed }}
<td>{% for ngram in write.ngrams %}<code>{{ ngram.texts | join("|") }}</code><br>{% endfor %}
<td>{% for ngram in write.ngrams %}<code>{{ ngram.rows | join(" ") }}</code><br>{% endfor %}
<td class="n">{{ "–" if write.gate is none else "%.2f" | format(write.gate) }}
<td class="n">{{ "%.3g" | format(write.added) }}<td class="n">{{ "%.3g" | format(write.stream) }}
<td>{% for word in write.promoted %}<code>{{ word }}</code> {% endfor %}</tr>
{% endfor -%}
</table></div>
{% endfor %}
</html>
"""


def trace_text(trace: Trace) -> str:
    """Lay a trace out for the terminal."""
    lines = [f"{trace.model}; added: length of what the memory adds, and of the stream before"]
    for place, step in enumerate(trace.steps):
        lines.append(f"{place:3} {step.text!r}  id {step.id}, compressed {step.compressed}")
        for write in step.writes:
            lines += _write_lines(write)
    return "\n".join(lines)


def _write_lines(write: Write) -> list[str]:
    gate = ""
    if write.gate is not None:
        full = round(write.gate * BAR)
        gate = f"gate {write.gate:.2f} {'█' * full}{'░' * (BAR - full)}  "
    promoted = " ".join(repr(word) for word in write.promoted)
    head = f"    layer {write.layer}  {gate}added {write.added:.3g} to {write.stream:.3g}"
    lines = [f"{head}  promotes {promoted}"]
    for ngram in write.ngrams:
        rows = " ".join(str(row) for row in ngram.rows)
        lines.append(f"      {len(ngram.texts)}-gram {'|'.join(ngram.texts)!r}  rows {rows}")
    return lines


def trace_data(trace: Trace) -> dict[str, Any]:
    """Return a trace as plain JSON data."""
    return {"text": trace.text, "model": trace.model, "steps": [_step(s) for s in trace.steps]}


def _step(step: Step) -> dict[str, Any]:
    writes = [
        {**write._asdict(), "ngrams": [ngram._asdict() for ngram in write.ngrams]}
        for write in step.writes
    ]
    return {**step._asdict(), "writes": writes}


def trace_html(trace: Trace) -> str:
    """Lay a trace out as one page that needs nothing else."""
    layers = [
        {
            "number": write.layer,
            "tokens": [(step, step.writes[number]) for step in trace.steps],
        }
        for number, write in enumerate(trace.steps[0].writes)
    ]
    page = Environment(autoescape=True, trim_blocks=False).from_string(PAGE)
    return page.render(trace=trace, layers=layers, shade=_shade)


def _shade(gate: float) -> str:
    """Return the opacity of a gate's colour; even an open one leaves the text readable."""
    return f"{0.55 * gate:.2f}"
