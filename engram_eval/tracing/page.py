"""A traced text as one HTML page that needs nothing else: no network, no library.

The gates lie over the text; a card follows each token through the memory. Without JavaScript all
cards are shown, one below the other.
"""

from typing import Any

from jinja2 import Environment

from engram_eval.tracing.trace import Ngram, Step, Trace, Write
from engram_eval.tracing.view import saved_bits

STRONG_BITS = 6.0
"""Bits saved or lost at which a colour is full."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1d21; --muted: #5c6168; --line: #dcdcd6;
  --paper: #fff; --soft: #f5f5f1; --gate: 11, 98, 176; --good: 0, 118, 90; --bad: 189, 74, 11; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e4; --muted: #a3a8b0; --line: #363b43;
  --paper: #171a1f; --soft: #20242b; --gate: 107, 181, 245; --good: 69, 207, 162;
  --bad: 255, 157, 92; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; margin: 0; }
header p { margin: .3rem 0 .8rem; color: var(--muted); max-width: 56rem; }
h2, h4, h5 { margin: 0; font-size: .8rem; font-weight: 600; color: var(--muted); }
small { font-weight: 400; color: var(--muted); }
code, .text { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
.strip { display: grid; grid-template-columns: 7rem 1fr; border-top: 1px solid var(--line);
  padding: .5rem 0; } .strip h2 small { display: block; }
.text { margin: 0; font-size: 1.05rem; line-height: 2; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.token { --tint: var(--gate); color: inherit; text-decoration: none; padding: .22em 0;
  background: rgba(var(--tint), calc(var(--open) * .62)); }
.token.good { --tint: var(--good); } .token.bad { --tint: var(--bad); }
.text .token { border-right: 1px solid var(--paper); border-radius: 3px; }
.text .token:hover { outline: 1px solid var(--muted); }
.text .token.chosen, .token:focus-visible { outline: 2px solid var(--ink); }
.key { margin: .2rem 0 1.6rem; padding-left: 7rem; font-size: .85rem; color: var(--muted); }
.key .token { padding: .15em .5em; border-radius: 3px; color: var(--ink); }
.card { border: 1px solid var(--line); border-radius: 10px; margin: 1rem 0; overflow: hidden; }
.card h3 { margin: 0; padding: .7rem 1rem; background: var(--soft); font-size: 1.15rem;
  display: flex; gap: .9rem; align-items: baseline; flex-wrap: wrap; }
.js .card { display: none; } .js .card.chosen { display: block; }
.write { border-top: 1px solid var(--line); padding: .8rem 1rem .8rem 2.4rem; }
.write h4 { margin-left: -1.4rem; }
.flow { list-style: none; margin: .5rem 0 0; padding: 0; display: flex; gap: 1rem 2rem;
  flex-wrap: wrap; align-items: flex-start; }
.flow li { position: relative; } .flow li + li::before { content: "→"; position: absolute;
  left: -1.5rem; top: 1.35rem; color: var(--muted); }
.flow p { margin: .3rem 0 0; } .flow p small { display: block; }
table { border-collapse: collapse; margin-top: .3rem; } th, td { padding: .2rem 0; }
th { text-align: left; font-weight: 400; padding-right: 1rem; white-space: nowrap; }
.part { background: var(--soft); border: 1px solid var(--line); border-radius: 4px;
  padding: .08em .35em; margin-right: .2rem; white-space: pre; }
.head { display: inline-block; width: 3.5rem; margin-right: .5rem; vertical-align: middle; }
.bar { display: block; height: 6px; border-radius: 3px; background: var(--line);
  position: relative; } .bar i { position: absolute; top: -2px; bottom: -2px; width: 3px;
  margin-left: -1.5px; background: rgb(var(--gate)); border-radius: 2px; }
.head b, .meter b { display: block; font: .8rem ui-monospace, monospace; color: var(--muted); }
.meter { display: inline-block; width: 5rem; margin: .55rem .5rem 0 0; }
.meter .bar { height: 10px; overflow: hidden; } .meter .bar i { top: 0; bottom: 0; left: 0;
  margin: 0; width: calc(var(--open) * 100%); }
.next { margin: 0; border-top: 1px solid var(--line); padding: .7rem 1rem;
  background: var(--soft); }
@media (max-width: 40rem) { .strip { grid-template-columns: 1fr; } .key { padding: 0; } }
@media print { .js .card { display: block; } }
"""

SCRIPT = """
const cards = [...document.querySelectorAll(".card")];
let place = cards.findIndex((card) => card.classList.contains("first"));
function choose(number) {
  place = Math.max(0, Math.min(cards.length - 1, number));
  cards.forEach((card, n) => card.classList.toggle("chosen", n === place));
  document.querySelectorAll("[data-token]").forEach((token) =>
    token.classList.toggle("chosen", Number(token.dataset.token) === place));
}
document.querySelectorAll("[data-token]").forEach((token) =>
  token.addEventListener("click", (event) => {
    event.preventDefault();
    choose(Number(token.dataset.token));
  }));
document.addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") choose(place + 1);
  if (event.key === "ArrowLeft") choose(place - 1);
});
document.body.classList.add("js");
choose(place);
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Trace: {{ trace.text | truncate(60) }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<header>
<h1>One text’s way through the memory</h1>
<p>{{ trace.model }}
{%- if not trace.trained %}: n-grams and rows are what a trained model of this tokenizer would have;
gates, and what is added, mean nothing before training{% endif %}</p>
<p>Each token and those before it, with case and accents folded where the model does so, are hashed
to one row per head. The rows together make a value; a gate, which compares them with the residual
stream, says how much of it is added there.</p>
</header>
<main>
<section>
{% for strip in strips %}
<div class="strip"><h2>{{ strip.name }}<small>{{ strip.about }}</small></h2><p class="text">
{%- for token in strip.tokens -%}
<a class="token {{ token.kind }}" href="#t{{ loop.index0 }}" data-token="{{ loop.index0 }}"
 style="--open: {{ token.open }}" title="{{ token.title }}">{{ token.text }}</a>
{%- endfor -%}
</p></div>
{% endfor %}
<p class="key">gate <span class="token" style="--open: 0">0</span>
<span class="token" style="--open: .5">½</span> <span class="token" style="--open: 1">1</span>
{% if trace.trained %} · memory <span class="token good" style="--open: .6">helps</span>
<span class="token bad" style="--open: .6">hurts</span> the next token, against the same model with
its memory zeroed{% endif %} · choose a token by mouse, or with ← and →</p>
</section>
<section>
{% for step in trace.steps %}{% set number = loop.index0 %}
<article id="t{{ number }}" class="card{{ ' first' if number == first }}">
<h3><code class="part">{{ step.text | visible }}</code><small>token {{ number }} · id {{ step.id }}
 → compressed id {{ step.compressed }}</small></h3>
{% for write in step.writes %}
<div class="write">
<h4>layer {{ write.layer }}</h4>
<ol class="flow">
<li><h5>n-gram → one row per head</h5>
<table>{% for ngram in write.ngrams %}<tr>
<th>{% for text in ngram.texts %}<code class="part">{{ text | visible }}</code>{% endfor %}</th>
<td>{% for head in ngram | heads %}<span class="head" title="row {{ head.row }} of {{ head.size }}">
<span class="bar"><i style="left: {{ head.percent }}%"></i></span><b>{{ head.row }}</b></span>
{% endfor %}</td></tr>{% endfor %}</table></li>
{% if write.gates %}<li><h5>gate</h5>{% for gate in write.gates %}
<span class="meter" style="--open: {{ '%.3f' | format(gate) }}">
<span class="bar"><i></i></span><b>{{ '%.2f' | format(gate) }}</b></span>{% endfor %}</li>
{%- endif %}
<li><h5>added</h5><p><b>{{ '%.3g' | format(write.added) }}</b> to a stream of
{{ '%.3g' | format(write.stream) }}<small>{{ write | share }} of its length</small></p></li>
<li><h5>what was added promotes</h5><p>{% for word in write.promoted %}
<code class="part">{{ word | visible }}</code>{% endfor %}</p></li>
</ol>
</div>
{% endfor %}
{% if trace.trained and step.next_bits is not none %}
<p class="next">The next token, <code class="part">{{ trace.steps[number + 1].text | visible }}
{#- -#}</code>, takes <b>{{ '%.1f' | format(step.next_bits) }} bits</b>; without
memory <b>{{ '%.1f' | format(step.next_bits_off) }} bits</b>.</p>
{% endif %}
</article>
{% endfor %}
</section>
</main>
<script>{{ script | safe }}</script>
</body>
</html>
"""


def trace_html(trace: Trace) -> str:
    """Lay a trace out as a page: gates over the text, and a card for each token."""
    environment = Environment(autoescape=True, trim_blocks=False)
    environment.filters |= {"visible": _visible, "heads": _heads, "share": _share}
    return environment.from_string(PAGE).render(
        trace=trace,
        strips=_strips(trace),
        first=_most_telling(trace),
        style=STYLE,
        script=SCRIPT,
    )


def _strips(trace: Trace) -> list[dict[str, Any]]:
    """Return the text once per layer, coloured by gate, and once by what memory saved."""
    strips = [
        {
            "name": f"layer {write.layer}",
            "about": "gate" if write.gates else "no gate",
            "tokens": [_gated(step.text, step.writes[place]) for step in trace.steps],
        }
        for place, write in enumerate(trace.steps[0].writes)
    ]
    if trace.trained:
        tokens = [_saved(step) for step in trace.steps]
        strips.append({"name": "saved", "about": "bits, next token", "tokens": tokens})
    return strips


def _gated(text: str, write: Write) -> dict[str, Any]:
    if write.gate is None:
        return {"text": text, "kind": "", "open": 0, "title": ""}
    number = f"{write.gate:.2f}"
    return {"text": text, "kind": "", "open": number, "title": f"gate {number}"}


def _saved(step: Step) -> dict[str, Any]:
    bits = saved_bits(step)
    if bits is None:
        return {"text": step.text, "kind": "", "open": 0, "title": ""}
    return {
        "text": step.text,
        "kind": "good" if bits >= 0 else "bad",
        "open": f"{min(1.0, abs(bits) / STRONG_BITS):.2f}",
        "title": f"{bits:+.1f} bits",
    }


def _most_telling(trace: Trace) -> int:
    """Return the token at which memory saves most, or opens its gate widest before training."""

    def telling(place: int) -> float:
        step = trace.steps[place]
        if trace.trained:
            return saved_bits(step) or 0.0
        return max(write.gate or 0.0 for write in step.writes)

    return max(range(len(trace.steps)), key=telling)


def _heads(ngram: Ngram) -> list[dict[str, Any]]:
    """Return each head's row, with its place in the head's table in percent."""
    return [
        {"row": row, "size": size, "percent": f"{100 * (row + 0.5) / size:.1f}"}
        for row, size in zip(ngram.rows, ngram.sizes, strict=True)
    ]


def _share(write: Write) -> str:
    return f"{write.added / write.stream:.1%}" if write.stream else "–"


def _visible(text: str) -> str:
    """Return a token with its white space shown."""
    return text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
