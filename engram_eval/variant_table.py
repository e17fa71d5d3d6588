"""The table of variants with what each costs at a scale, as Markdown.

``python -m engram_eval.variant_table`` prints that of ``docs/models.md``.
"""

import sys
from typing import NamedTuple

from engram_eval.costs.ledger import Ledger, ledger_of
from engram_eval.costs.solver import match
from engram_eval.errors import look_up
from engram_eval.scales import SCALES
from engram_eval.variants import VARIANTS, Architecture, find_variant

HEADER = (
    "| variant | what it is | source | parameters | active | in the table | FLOPs/token |\n"
    "|---|---|---|--:|--:|--:|--:|"
)


class Solved(NamedTuple):
    """A variant as it is compared: matched to ``moe`` where it is meant to be."""

    architecture: Architecture
    ledger: Ledger


def solved_variant(name: str, scale: str) -> Solved:
    """Return a variant at a scale, with its cost.

    Raises:
        UserError: an unknown variant or scale.
    """
    variant = find_variant(name)
    sizes = look_up("scale", scale, SCALES)
    length = sizes.train.seq_len
    moe, found = (
        {**each.architecture(sizes), "vocab_size": sizes.corpus.vocab_size}
        for each in (VARIANTS["moe"], variant)
    )
    architecture = match(moe, found, length) if variant.matched else found
    return Solved(architecture, ledger_of(architecture, length))


def variant_table(scale: str) -> str:
    """Return all variants with parameters in millions and forward FLOPs per token in millions."""
    lines = [HEADER]
    for name, variant in VARIANTS.items():
        cost = solved_variant(name, scale).ledger
        counts = (cost.params_total, cost.params_active, cost.params_table, cost.flops_per_token)
        numbers = " | ".join(f"{count / 1e6:.2f} M" if count else "–" for count in counts)
        about = variant.about + ("" if variant.matched else " (costs more than its frame)")
        lines.append(f"| `{name}` | {about} | {variant.source} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{variant_table('quick')}\n")
