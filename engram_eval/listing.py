"""What there is by name."""

from typing import Any

from engram_eval.errors import look_up
from engram_eval.stages import resolve

LISTS: dict[str, str] = {
    "studies": "engram_eval.studies.registry:STUDIES",
    "scales": "engram_eval.scales:SCALES",
    "suites": "engram_eval.evaluation.suites:suite_table",
    "tasks": "engram_eval.evaluation.table:task_table",
    "probes": "probes.registry:PROBES",
    "variants": "engram_eval.variants:VARIANTS",
    "baselines": "engram_eval.baselines.registry:BASELINES",
    "updates": "engram_eval.updates.registry:WAYS",
    "claims": "engram_eval.claims.registry:CLAIMS",
}


def listing(what: str) -> dict[str, str]:
    """Return name -> one line about it for a kind of thing, a key of ``LISTS``.

    Raises:
        UserError: it is none.
    """
    registry: Any = resolve(look_up("list", what, LISTS))
    entries = registry() if callable(registry) else registry
    return {name: _about(entry) for name, entry in entries.items()}


def _about(entry: Any) -> str:
    if hasattr(entry, "train"):
        return (
            f"d_model {entry.backbone['hidden_size']}, {entry.backbone['num_hidden_layers']} "
            f"layers, {entry.train.tokens:,} training tokens"
        )
    return str(getattr(entry, "about", entry))
