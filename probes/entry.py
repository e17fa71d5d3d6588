"""What is known of a probe before it runs."""

from typing import Literal, NamedTuple


class Probe(NamedTuple):
    """Where a probe is and what it looks at.

    Attributes:
        function: ``module:function``; a single one takes (adapter, material, report), a pair one
            (adapter, adapter, material, report); both return ``Findings``.
        reads: what makes the material, as (corpus, sample) -> material; by default the sample
            itself.
        items: whether it asks the tasks' items; ``reads`` then also takes their folder (None for
            the committed ones) and the most of each task.
        version: bumped when what it reports changes its meaning; it alone then runs again.
    """

    function: str
    kind: Literal["single", "pair"]
    about: str
    reads: str = ""
    items: bool = False
    version: int = 1
