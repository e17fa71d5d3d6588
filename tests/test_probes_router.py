"""Distributions over experts against the weights that each family's router gives."""

import pytest
import torch
from adapters_fixture import FAMILIES, opened

from engram_eval.adapters.base import Tap
from probes.router import expert_shares, routed_layers

ROUTED = ("moe", "mixtral", "gpt_oss", "deepseek", "qwen4", "engram")
IDS = torch.arange(2, 18)[None]


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_are_what_a_router_weighs_by(family: str) -> None:
    adapter = opened(family)
    layers = routed_layers(adapter)
    assert bool(layers) == any(name in family for name in ROUTED)
    for layer in layers:
        taps = [Tap(f"router_{part}", layer) for part in ("logits", "weights", "index")]
        with adapter.record(taps) as seen:
            adapter.logits(IDS)
        logits, weights, chosen = (seen[tap] for tap in taps)
        shares = expert_shares(adapter, layer, logits)
        torch.testing.assert_close(shares.sum(-1), torch.ones(len(shares)))
        found = shares.gather(1, chosen)
        ratio = weights / found
        assert found.shape[1] > 1, "one expert of each token would say nothing"
        # Some give the shares as they are, some divided by their sum, some times a factor.
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=1e-5)
