"""How a mixture of experts uses its experts: entropy, load, and who works for which domain.

Works for every router that returns (logits, weights, chosen experts), as transformers' and our own
do. Domain specialisation is the mutual information of expert and domain, in bits per choice; it is
never quite 0 on finitely many documents, so the same number with the documents' domains shuffled
stands beside it as ``baseline``.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engram_eval.adapters.base import Adapter
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.capture import batches
from probes.findings import Findings, mean_rows
from probes.sample import Floats, Ints, Sample

NAME = "router"
SITE = "router"
SHUFFLES = 20
ROUTERS = ("gate", "router")

Choices = dict[int, tuple[list[Tensor], list[Tensor]]]


def routers(adapter: Adapter) -> dict[int, nn.Module]:
    """Return layer -> the module that chooses experts."""
    found = {}
    for layer in range(adapter.n_layers):
        mlp = getattr(adapter.place("resid_pre", layer).module, "mlp", None)
        for name in ROUTERS:
            module = getattr(mlp, name, None)
            if isinstance(module, nn.Module) and hasattr(mlp, "experts"):
                found[layer] = module
    return found


@contextmanager
def _listen(adapter: Adapter, found: Choices) -> Iterator[None]:
    """Collect each router's probabilities (n, E) and choices (n, K) while the block runs."""
    with ExitStack() as stack:
        for layer, module in routers(adapter).items():
            handle = module.register_forward_hook(_hook(found, layer, module))
            stack.callback(handle.remove)
        yield


def _hook(found: Choices, layer: int, module: nn.Module) -> Any:
    sigmoid = getattr(module, "scoring", "softmax") == "sigmoid"

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        logits, chosen = output[0].detach(), output[2]
        scores = logits.sigmoid() if sigmoid else logits.softmax(-1)
        shares = scores / scores.sum(-1, keepdim=True)
        probabilities, choices = found.setdefault(layer, ([], []))
        probabilities.append(shares.flatten(0, -2).double().cpu())
        choices.append(chosen.flatten(0, -2).cpu())

    return keep


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
    found: Choices = {}
    with _listen(adapter, found):
        for _ in batches(adapter, sample, report=report, title=NAME):
            pass
    rows, arrays = [], {}
    for layer, (probabilities, choices) in sorted(found.items()):
        chosen = torch.cat(choices).numpy()
        entropy = entropy_bits(torch.cat(probabilities).numpy())
        rows += mean_rows(
            entropy,
            sample.inputs.document,
            sample.slices("static_in"),
            name=NAME,
            metric="entropy_bits",
            layer=layer,
            site=SITE,
            baseline=float(np.log2(probabilities[0].shape[1])),
        )
        load = _load(chosen, sample, probabilities[0].shape[1])
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
