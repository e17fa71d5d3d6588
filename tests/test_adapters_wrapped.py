"""Models in ``torch.compile`` or PEFT open, and compute what they do uncompiled or merged."""

import copy

import peft
import pytest
import torch
from adapters_fixture import FAMILIES, seeded
from torch import nn

from engram_eval.adapters.base import Tap
from engram_eval.adapters.load import open_model
from engram_eval.errors import UserError

TOKENS = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", ["llama", "olmoe", "engram_moe"])
def test_a_compiled_model_opens(family: str) -> None:
    plain = open_model(seeded(FAMILIES[family]))
    compiled = torch.compile(seeded(FAMILIES[family]), backend="eager")
    with torch.no_grad():
        compiled(input_ids=TOKENS)
        adapter = open_model(compiled)
        assert torch.equal(adapter.logits(TOKENS), plain.logits(TOKENS))
        with adapter.ablate("mlp_out", 1), plain.ablate("mlp_out", 1):
            assert torch.equal(adapter.logits(TOKENS), plain.logits(TOKENS))


def test_parts_compiled_in_place_are_named() -> None:
    whole, block, swapped, replaced = (seeded(FAMILIES["llama"]) for _ in range(4))
    whole.compile(backend="eager")
    block.model.layers[1].compile(backend="eager")
    swapped.model.layers[2] = torch.compile(swapped.model.layers[2], backend="eager")
    layer = replaced.model.layers[0]
    layer.forward = torch.compile(layer.forward, backend="eager")
    cases = {"LlamaForCausalLM": whole, "model.layers.1": block, "model.layers.2": swapped}
    for name, model in {**cases, "model.layers.0": replaced}.items():
        with pytest.raises(UserError, match=rf"^{name} is compiled in place[^\n]*$"):
            open_model(model)


@pytest.mark.parametrize("given", [nn.Linear(2, 2), None, {"model": 1}])
def test_other_things_are_refused(given: object) -> None:
    name = type(given).__name__
    with pytest.raises(UserError, match=rf"^{name} cannot be opened; allowed: [^\n]*$"):
        open_model(given)


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmoe", "gemma2", "qwen4_exp", "engram_moe"])
def test_a_model_with_lora_is_the_merged_one(family: str) -> None:
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(seeded(FAMILIES[family]), config)
    merged = open_model(copy.deepcopy(model).merge_and_unload())
    adapter, plain = open_model(model), open_model(seeded(FAMILIES[family]))
    taps = [tap for tap in merged.places if "index" not in tap.site]
    with torch.no_grad(), adapter.record(taps) as found, merged.record(taps) as expected:
        logits = adapter.logits(TOKENS)
        torch.testing.assert_close(logits, merged.logits(TOKENS), rtol=1e-4, atol=1e-4)
        for tap in taps:
            torch.testing.assert_close(found[tap], expected[tap], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(logits, plain.logits(TOKENS), rtol=0.01, atol=0.01)


def test_wrappers_may_be_around_each_other_and_cover_the_head() -> None:
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "lm_head", "embed_tokens"], init_lora_weights=False
    )
    model = peft.get_peft_model(seeded(FAMILIES["llama"]), config)
    merged = open_model(copy.deepcopy(model).merge_and_unload())
    adapter = open_model(torch.compile(model, backend="eager"))
    last = Tap("resid_post", 2)
    with torch.no_grad(), adapter.record([last]) as found:
        logits = adapter.logits(TOKENS)
        torch.testing.assert_close(logits, merged.logits(TOKENS), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(adapter.unembed(found[last]), logits)
    assert (adapter.d_model, adapter.vocab_size) == (16, 40)


def test_prompts_of_peft_are_refused() -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(seeded(FAMILIES["llama"]), config)
    with pytest.raises(UserError, match=r"^PEFT adapter 'default' of type PROMPT_TUNING [^\n]*$"):
        open_model(model)
