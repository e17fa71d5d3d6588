"""The probes. A new one is a file, and a line here."""

from engram_eval.errors import look_up
from probes.entry import Probe
from probes.own import own_probe, own_source

PROBES: dict[str, Probe] = {
    "logit_lens": Probe(
        "probes.lens:logit_lens", "single", "what each layer would predict if the model ended there"
    ),
    "tuned_lens": Probe(
        "probes.tuned_lens:tuned_lens",
        "single",
        "the logit lens with a trained map per layer",
        version=2,
    ),
    "linear": Probe(
        "probes.linear:linear",
        "single",
        "what can be read out linearly, beside a control task",
        version=3,
    ),
    "knockout": Probe(
        "probes.knockout:knockout", "single", "loss when memory, attention or experts add nothing"
    ),
    "task_knockout": Probe(
        "probes.task_knockout:task_knockout",
        "single",
        "what is left of each task's score above chance without memory, attention or experts",
        "probes.task_knockout:ask_tasks",
        items=True,
    ),
    "gates": Probe(
        "probes.gates:gates",
        "single",
        "when the memory's gate opens, beside its n-grams' frequency",
        "probes.patterns:count_patterns",
        version=2,
    ),
    "router": Probe(
        "probes.router:router", "single", "how evenly experts are used, and by which domains"
    ),
    "memory_usage": Probe(
        "probes.memory_usage:memory_usage",
        "single",
        "rows in use, collisions, norms, rank, and what a cache of hot rows would hold",
        "probes.patterns:training_text",
        version=2,
    ),
    "offsets": Probe(
        "probes.offsets:offsets",
        "single",
        "where attention looks, and the loss when early layers may not look next door",
        version=2,
    ),
    "depth": Probe(
        "probes.depth:depth",
        "single",
        "what layers add, how far early changes travel, when predictions settle",
        version=2,
    ),
    "patching": Probe(
        "probes.patching:patching",
        "single",
        "at which layer and site an answer changes with the name it is about",
        "probes.people:make_prompts",
        version=2,
    ),
    "surgery": Probe(
        "probes.surgery:surgery",
        "single",
        "what exchanging two names' rows, or writing rows alone, does to answers",
        "probes.people:make_prompts",
        version=4,
    ),
    "capacity": Probe(
        "probes.capacity:capacity",
        "single",
        "bits of facts about generated people that are stored, in all and per parameter",
        "probes.told_facts:tell_facts",
        version=2,
    ),
    "cka": Probe("probes.cka:cka", "pair", "which layers of two models are alike"),
}


def find_probe(name: str) -> Probe:
    """Return a probe by its name here, or one of your own by ``module:function``.

    Raises:
        UserError: there is none of this name, with the nearest match.
    """
    return own_probe(name) if is_own(name) else look_up("probe", name, PROBES)


def is_own(name: str) -> bool:
    """Tell whether a probe lies outside of this package."""
    return ":" in name


def probe_source(name: str) -> str:
    """Return by what a study knows an own probe again; "" for those here, which have versions."""
    return own_source(name) if is_own(name) else ""
