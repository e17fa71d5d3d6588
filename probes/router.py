"""How a mixture of experts uses its experts: entropy, load, and who works for which domain.

Domain specialisation is the mutual information of expert and domain, in bits per choice; it is
never quite 0 on finitely many documents, so the same number with the documents' domains shuffled
stands beside it as ``baseline``.

In three lines::

    adapter = open_model("runs/quick/models/engram/seed0")
    sample = draw_sample(load_corpus("runs/quick/corpus"))
    rows = router(adapter, sample).rows
"""

from typing import Any

import numpy as np
from torch import Tensor, nn

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.arrays import Floats, Ints
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.capture import batches, check_kinds
from probes.findings import Findings, mean_rows
from probes.sample import Sample

NAME = "router"
SITE = "router"
SHUFFLES = 20


def routed_layers(adapter: Adapter) -> list[int]:
    """Return the layers whose tokens choose experts."""
    return sorted(tap.layer for tap in adapter.places if tap.site == "router_index")


def expert_shares(adapter: Adapter, layer: int, logits: Tensor) -> Tensor:
    """Return each token's distribution over experts, (n, E), from the router's logits."""
    scores = _scores(adapter.place("router_logits", layer).module, logits)
    return scores / scores.sum(-1, keepdim=True)


def _scores(module: nn.Module, logits: Tensor) -> Tensor:
    """Score experts as the router does: by its own function, sigmoids or a softmax."""
    own = getattr(module, "score_fn", None)
    if own is not None:
        scores: Tensor = own(logits)
        return scores
    # A bias for the choice alone belongs to sigmoids (arXiv:2412.19437 eq. 15 and 16).
    usual = "sigmoid" if hasattr(module, "e_score_correction_bias") else "softmax"
    sigmoid = getattr(module, "scoring", usual) == "sigmoid"
    return logits.sigmoid() if sigmoid else logits.softmax(-1)


def entropy_bits(p: Floats) -> Floats:
    """Return the entropy of distributions along the last axis, in bits."""
    return -(p * np.log2(np.where(p > 0, p, 1))).sum(-1)


def mutual_information_bits(expert: Ints, domain: Ints) -> float:
    """Return I(expert; domain) of paired labels (n,), in bits, from their joint frequencies."""
    joint = np.zeros((int(expert.max()) + 1, int(domain.max()) + 1))
    np.add.at(joint, (expert, domain), 1)
    joint /= joint.sum()
    whole = entropy_bits(joint.reshape(-1))
    return float(entropy_bits(joint.sum(0)) + entropy_bits(joint.sum(1)) - whole)


def router(adapter: Adapter, sample: Sample, report: Reporter | None = None) -> Findings:
    """Watch every router over the sample; no rows for a model without experts.

    Rows per layer, site ``router``: ``entropy_bits`` of a token's distribution over experts, per
    domain and static third; ``router_load_max``, the fullest expert's load over the mean;
    ``mutual_information_bits`` of expert and domain; the array ``load`` (experts, domains).
    """
    check_kinds(adapter, sample)
    layers = routed_layers(adapter)
    if not layers:
        return Findings([], {})
    taps = [Tap(site, layer) for site in ("router_logits", "router_index") for layer in layers]
    entropies: dict[int, list[Floats]] = {layer: [] for layer in layers}
    choices: dict[int, list[Ints]] = {layer: [] for layer in layers}
    experts = {}
    for batch in batches(adapter, sample, taps, report=report, title=NAME):
        for layer in layers:
            shares = expert_shares(adapter, layer, batch.taps[Tap("router_logits", layer)])
            entropies[layer].append(entropy_bits(shares.double().cpu().numpy()))
            choices[layer].append(batch.taps[Tap("router_index", layer)].cpu().numpy())
            experts[layer] = shares.shape[1]
    rows, arrays = [], {}
    for layer in layers:
        chosen, entropy = np.concatenate(choices[layer]), np.concatenate(entropies[layer])
        rows += mean_rows(
            entropy,
            sample.inputs.document,
            sample.slices("static_in"),
            name=NAME,
            metric="entropy_bits",
            layer=layer,
            site=SITE,
            baseline=float(np.log2(experts[layer])),
        )
        load = _load(chosen, sample, experts[layer])
        rows += _load_rows(load, chosen, sample, layer)
        arrays[f"load{layer}"] = load
    return Findings(rows, arrays)


def _load(chosen: Ints, sample: Sample, experts: int) -> Ints:
    """Count choices, (experts, domains)."""
    load = np.zeros((experts, len(sample.domains)), dtype=np.int64)
    np.add.at(load, (chosen, sample.inputs.domain[:, None]), 1)
    return load


def _load_rows(load: Ints, chosen: Ints, sample: Sample, layer: int) -> list[MetricRow]:
    fields: dict[str, Any] = {
        "layer": layer,
        "site": SITE,
        "split": "val",
        "n": chosen.size,
        "artifact": {"key": f"load{layer}"},
    }
    total = load.sum(1)
    fullest = float(total.max() / total.mean())
    expert, inputs = chosen.reshape(-1), sample.inputs
    domain = np.repeat(inputs.domain, chosen.shape[1])
    shared = mutual_information_bits(expert, domain)
    chance = _shuffled_information(expert, inputs.document, inputs.domain, chosen.shape[1], sample)
    return [
        MetricRow(NAME, "router_load_max", fullest, baseline=1.0, **fields),
        MetricRow(NAME, "mutual_information_bits", shared, baseline=chance, **fields),
    ]


def _shuffled_information(
    expert: Ints, document: Ints, domain: Ints, top_k: int, sample: Sample
) -> float:
    """Return the mean information where whole documents have each other's domains."""
    rng = np.random.default_rng(sample.seed)
    names, first, inverse = np.unique(document, return_index=True, return_inverse=True)
    own = domain[first]
    draws = [
        mutual_information_bits(expert, np.repeat(own[rng.permutation(len(names))][inverse], top_k))
        for _ in range(SHUFFLES)
    ]
    return float(np.mean(draws))
