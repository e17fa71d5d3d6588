"""The probes. A new one is a file, and a line here."""

from typing import Literal, NamedTuple

from engram_eval.errors import unknown


class Probe(NamedTuple):
    """Where a probe is and what it looks at.

    Attributes:
        function: ``module:function``; a single one takes (adapter, sample, report), a pair one
            (adapter, adapter, sample, report); both return ``Findings``.
    """

    function: str
    kind: Literal["single", "pair"]
    about: str


PROBES: dict[str, Probe] = {
    "logit_lens": Probe(
        "probes.lens:logit_lens", "single", "what each layer would predict if the model ended there"
    ),
    "tuned_lens": Probe(
        "probes.tuned_lens:tuned_lens", "single", "the logit lens with a trained map per layer"
    ),
    "linear": Probe(
        "probes.linear:linear", "single", "what can be read out linearly, beside a control task"
    ),
    "knockout": Probe(
        "probes.knockout:knockout", "single", "loss when memory, attention or experts add nothing"
    ),
    "cka": Probe("probes.cka:cka", "pair", "which layers of two models are alike"),
}


def find_probe(name: str) -> Probe:
    """Look a probe up; an unknown name raises ``UserError`` with the nearest match."""
    if name not in PROBES:
        raise unknown("probe", name, PROBES)
    return PROBES[name]
