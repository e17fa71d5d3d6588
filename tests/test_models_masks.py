"""When a mask is made, and when the attention is causal by itself."""

from typing import Any

import pytest
import torch
from models_fixture import TINY

from engram_eval.models import masks
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.masks import MAKERS, attention_masks

WIDTHS = {"full_attention": None, "sliding_attention": 6}


def config_for(kind: str, implementation: str) -> EngramConfig:
    window = {} if WIDTHS[kind] is None else {"sliding_window": WIDTHS[kind]}
    config = EngramConfig(**{**TINY, **window})
    config._attn_implementation = implementation
    return config


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("length", [1, 5, 6, 9])
@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_left_out_transformers_leaves_out_too(
    kind: str, length: int, implementation: str
) -> None:
    config, embeds = config_for(kind, implementation), torch.zeros(2, length, 8)
    (ours,) = attention_masks(config, embeds, None, None, None).values()
    theirs = MAKERS[kind](
        config=config,
        inputs_embeds=embeds,
        attention_mask=None,
        past_key_values=None,
        position_ids=None,
    )
    assert (ours is None) == (theirs is None)
    assert ours is None or torch.equal(ours, theirs)


@pytest.mark.parametrize(("given", "made"), [({}, False), ({"mask": 1}, True), ({"ids": 1}, True)])
def test_a_recording_gpu_gets_no_mask_unless_it_is_needed(
    given: dict[str, Any], made: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(masks, "MAKERS", dict.fromkeys(MAKERS, lambda **_: asked.append(1)))
    mask = torch.ones(2, 5) if "mask" in given else None
    ids = torch.arange(5)[None] if "ids" in given else None
    config = config_for("full_attention", "sdpa")
    attention_masks(config, torch.zeros(2, 5, 8), mask, None, ids)
    assert bool(asked) == made
