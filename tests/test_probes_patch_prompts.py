"""Patching between two prompts is what TransformerLens does, and what a loop by hand does."""

from typing import Any

import pytest
import torch
from adapters_fixture import opened

from engram_eval.adapters.base import Tap
from engram_eval.errors import UserError
from probes.patch_prompts import patch_prompts

SOURCE, TARGET = torch.tensor([[3, 7, 9, 4, 11]]), torch.tensor([[3, 8, 9, 5, 11]])
ANSWERS = (6, 21)


def by_hand(family: str, site: str, layer: int, place: int) -> float:
    """Patch one token by a hook of torch's own, one prompt at a time."""
    adapter = opened(family)
    with torch.no_grad():
        with adapter.record([Tap(site, layer)]) as found:
            adapter.logits(SOURCE)
        kept = found[Tap(site, layer)].clone()

        def replaced(tensor: torch.Tensor) -> torch.Tensor:
            mask = torch.zeros(len(kept.flatten(0, -2)), 1, dtype=torch.bool)
            mask[place] = True
            return torch.where(mask.reshape(*kept.shape[:-1], 1), kept, tensor)

        with adapter.edit(site, layer, replaced):
            logits = adapter.logits(TARGET)[0, -1]
    return float(logits[ANSWERS[0]] - logits[ANSWERS[1]])


@pytest.mark.parametrize(
    ("family", "site"),
    [
        *[("engram_moe", s) for s in ("resid_pre", "attn_out", "memory_out", "router_weights")],
        ("gemma3n", "resid_post"),
        ("gpt2", "mlp_out"),
    ],
)
def test_it_is_the_loop_by_hand(family: str, site: str) -> None:
    found = patch_prompts(opened(family), SOURCE, TARGET, ANSWERS, site)
    assert found.patched.shape == (len(found.layers), 5)
    for row, layer in enumerate(found.layers):
        for place in range(5):
            expected = by_hand(family, site, layer, place)
            assert float(found.patched[row, place]) == pytest.approx(expected, abs=1e-4)


def test_it_is_transformer_lens() -> None:
    bridges = pytest.importorskip("probes.transformer_lens")
    adapter = opened("engram_moe")
    bridge: Any = bridges.engram_bridge(adapter.model)
    _, cache = bridges.run_with_cache(bridge, SOURCE)
    found = patch_prompts(adapter, SOURCE, TARGET, ANSWERS)
    for layer in found.layers:
        name = f"blocks.{layer}.hook_out"
        for place in range(5):

            def put(tensor: Any, hook: Any, place: int = place, name: str = name) -> Any:
                changed = tensor.clone()
                changed[:, place] = cache[name][:, place]
                return changed

            with torch.no_grad():
                logits = bridge.run_with_hooks(TARGET, fwd_hooks=[(name, put)])[0, -1]
            expected = float(logits[ANSWERS[0]] - logits[ANSWERS[1]])
            assert float(found.patched[layer, place]) == pytest.approx(expected, abs=1e-4)


def test_the_last_stream_at_the_last_token_is_the_source() -> None:
    found = patch_prompts(opened("llama"), SOURCE, TARGET, ANSWERS)
    assert float(found.patched[-1, -1]) == pytest.approx(found.source, abs=1e-5)
    assert found.patched[-1, :-1].tolist() == pytest.approx([found.target] * 4, abs=1e-5)


def test_what_cannot_be_patched_is_told() -> None:
    with pytest.raises(UserError, match=r"two prompts \(1, T\), not \(1, 5\) and \(1, 4\)"):
        patch_prompts(opened("llama"), SOURCE, TARGET[:, :4], ANSWERS)
    with pytest.raises(UserError, match="no memory_out at layer 0 of this model"):
        patch_prompts(opened("llama"), SOURCE, TARGET, ANSWERS, "memory_out")
    with pytest.raises(UserError, match="did you mean 'resid_post'"):
        patch_prompts(opened("llama"), SOURCE, TARGET, ANSWERS, "residpost")
