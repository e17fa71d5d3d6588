"""Claims of ``mechanism`` on the memory's gate: does it open where a static pattern is complete?

Declared before the probe ran in this study. What was known by then comes from the study ``quick``,
which trains the same pair in seeds 0 and 1: there seed 0's gate told the ends of names from other
tokens worse than chance would (AUROC 0.31), and was wider open after frequent trigrams than after
rare ones. That speaks against ``gate_opens_at_names``. The published report of ``quick`` also shows
both seeds' gates at the ends of names and by predictability; whoever declared these claims had not
read them. Seeds 2 to 4 had been seen nowhere, and no probe had told the first tokens of names from
others. All five seeds decide, as in the study's other claims.

The figure shows picked tokens, their gates read off its colours.
"""

from engram_eval.claims.claim import Claim, Declare, Rows, Score

SOURCE = "arXiv:2601.07372 Fig. 7"
MEMORY_BLOCK = 1
SMALLEST = 0.05
GATE = Rows("gates", "gate_mean", site="memory_gate", layer=MEMORY_BLOCK)
LAST = GATE._replace(slice={"name": "last"})

_claim = Declare("mechanism.", SMALLEST, "paired")


def _opens(name: str, sentence: str, published: str, there: Rows, elsewhere: Rows) -> Claim:
    """Claim that Engram's mean gate is wider open in one place than elsewhere."""
    (label,), (other,) = there.slice.values(), elsewhere.slice.values()
    return _claim(
        name,
        sentence,
        SOURCE,
        published,
        {f"{label} - {other}": {"engram": 1.0}},
        Score(((1.0, there), (-1.0, elsewhere)), unit="of the gate, 0 to 1"),
    )


GATES = (
    _opens(
        "gate_opens_along_names",
        "The memory's gate is wider open at a name's last token than at its first",
        "picked: Alexander 0.18, Great 0.82; Milky 0.07, Way 0.81; Diana 0.11, Wales 0.89",
        LAST,
        GATE._replace(slice={"name": "first"}),
    ),
    _opens(
        "gate_opens_at_names",
        "The memory's gate is wider open at a name's last token than outside of names",
        "no mean given; picked: Way 0.81, Great 0.82, but also This 0.94, of no name",
        LAST,
        GATE._replace(slice={"name": "outside"}),
    ),
    _opens(
        "gate_opens_at_static",
        "The gate is wider open at a token that the two before it foretold, at equal frequency",
        "no mean given; picked: 0.82 at the end of By the way",
        GATE._replace(slice={"static_in": "high"}),
        GATE._replace(slice={"static_in": "low"}),
    ),
)
