"""TransformerLens sees the same model, its memory included, and its parts sum to the whole."""

import copy

import peft
import pytest
import torch
from probes_fixture import engram, llama

from engram_eval.errors import UserError

lens = pytest.importorskip(
    "transformer_lens", reason="the extra 'interp' is not installed: pip install '.[interp]'"
)

from probes.transformer_lens import (  # noqa: E402
    direct_logit_attribution,
    engram_bridge,
    run_with_cache,
)

TOKENS = torch.randint(1, 48, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def plain():
    return engram()


@pytest.fixture(scope="module")
def bridge():
    return engram_bridge(engram())


@torch.no_grad()
def test_logits_are_equal(plain, bridge) -> None:
    expected = plain(input_ids=TOKENS).logits
    torch.testing.assert_close(bridge(TOKENS), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_memory_hooks_are_where_a_memory_is(plain, bridge) -> None:
    _, cache = run_with_cache(bridge, TOKENS)
    shapes = {
        "hook_memory_out": (2, 12, 32),
        "memory.hook_gate": (2, 12, 1),
        "memory.hook_rows": (2, 12, 32),
        "memory.hook_index": (2, 12, 4),
        "memory.hook_key": (2, 12, 32),
        "memory.hook_value": (2, 12, 32),
    }
    for name, shape in shapes.items():
        assert tuple(cache[f"blocks.1.{name}"].shape) == shape
        assert f"blocks.0.{name}" not in cache
    gate = cache["blocks.1.memory.hook_gate"]
    assert gate.min() > 0 and gate.max() < 1
    rows = plain.model.ngram_rows(TOKENS)[1]
    assert torch.equal(cache["blocks.1.memory.hook_index"], rows)


@torch.no_grad()
def test_decomposition_sums_to_the_stream(bridge) -> None:
    _, cache = run_with_cache(bridge, TOKENS)
    stack, labels = cache.decompose_resid(return_labels=True)
    assert labels[:4] == ["embed", "0_attn_out", "0_mlp_out", "1_memory_out"]
    final = cache["blocks.2.hook_resid_post"]
    torch.testing.assert_close(stack.sum(0), final, rtol=1e-4, atol=1e-4)
    for layer in (1, 2):
        before = cache.decompose_resid(layer).sum(0)
        torch.testing.assert_close(before, cache[f"blocks.{layer}.hook_resid_pre"])
        middle = cache.decompose_resid(layer, mlp_input=True).sum(0)
        torch.testing.assert_close(middle, cache[f"blocks.{layer}.hook_resid_mid"])
    memory, named = cache.decompose_resid(mode="memory", incl_embeds=False, return_labels=True)
    assert named == ["1_memory_out"]
    assert torch.equal(memory[0], cache["blocks.1.hook_memory_out"])
    ends = cache.decompose_resid(pos_slice=-1), cache.decompose_resid(pos_slice=(2, 5))
    assert ends[0].shape[2:] == (0, 32) or ends[0].shape[2:] == (1, 32)
    assert ends[1].shape[2] == 3
    normed = cache.decompose_resid(apply_ln=True)
    assert normed.shape == stack.shape


@torch.no_grad()
def test_direct_logit_attribution_sums_to_the_logit(bridge) -> None:
    logits, cache = run_with_cache(bridge, TOKENS)
    targets = TOKENS.roll(-1, 1)
    parts, labels = direct_logit_attribution(bridge, cache, targets)
    assert len(parts) == len(labels)
    expected = logits.gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(parts.sum(0), expected, rtol=1e-3, atol=1e-3)
    assert parts[labels.index("1_memory_out")].abs().max() > 1e-3


@torch.no_grad()
def test_silencing_the_memory_is_a_model_without_one(bridge, plain) -> None:
    without = engram(engram_layers=[])
    without.load_state_dict(plain.state_dict(), strict=False)
    silenced = bridge.run_with_hooks(
        TOKENS, fwd_hooks=[("blocks.1.hook_memory_out", lambda x, hook: x * 0)]
    )
    expected = without(input_ids=TOKENS).logits
    torch.testing.assert_close(silenced, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_patching_the_memory_moves_the_answer(bridge) -> None:
    other = TOKENS.flip(0)
    _, clean = run_with_cache(bridge, TOKENS)
    source = clean["blocks.1.hook_memory_out"]
    patched = bridge.run_with_hooks(
        other, fwd_hooks=[("blocks.1.hook_memory_out", lambda x, hook: source)]
    )
    assert (patched - bridge(other)).abs().max() > 1e-3
    stream = clean["blocks.2.hook_resid_pre"]
    whole = bridge.run_with_hooks(
        other, fwd_hooks=[("blocks.2.hook_resid_pre", lambda x, hook: stream)]
    )
    torch.testing.assert_close(whole, bridge(TOKENS), rtol=1e-4, atol=1e-4)


def test_generation_equals_the_model(plain, bridge) -> None:
    options = {"max_new_tokens": 5, "do_sample": False}
    ours = bridge.generate(TOKENS[:1], verbose=False, stop_at_eos=False, **options)
    theirs = plain.generate(TOKENS[:1], min_new_tokens=5, **options)
    assert ours[0].tolist() == theirs[0].tolist()


@torch.no_grad()
@pytest.mark.parametrize("options", [{"engram_layers": []}, {"n_routed_experts": 0}])
def test_models_without_memory_or_experts(options) -> None:
    made = engram_bridge(engram(**options))
    torch.testing.assert_close(
        made(TOKENS), engram(**options)(input_ids=TOKENS).logits, rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"engram_layers": []}, {"n_routed_experts": 0}])
def test_compatibility_mode_leaves_predictions_and_says_what_it_does_not_fold(options) -> None:
    model, made = engram(**options), engram_bridge(engram(**options))
    with pytest.warns(UserWarning, match="does not support fold_ln; norm weights stay unfolded"):
        made.enable_compatibility_mode()
    expected = model(input_ids=TOKENS).logits.log_softmax(-1)
    torch.testing.assert_close(made(TOKENS).log_softmax(-1), expected, rtol=1e-4, atol=1e-4)
    logits, cache = run_with_cache(made, TOKENS)
    assert ("blocks.1.hook_memory_out" in cache) == (options != {"engram_layers": []})
    parts, _ = direct_logit_attribution(made, cache, TOKENS)
    chosen = logits.gather(-1, TOKENS[..., None])[..., 0]
    torch.testing.assert_close(parts.sum(0), chosen, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_compatibility_mode_without_processing_changes_no_logit() -> None:
    made = engram_bridge(engram())
    made.enable_compatibility_mode(no_processing=True)
    expected = engram()(input_ids=TOKENS).logits
    torch.testing.assert_close(made(TOKENS), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_wrapped_models_are_bridged_with_what_the_wrapper_does() -> None:
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(engram(), config)
    expected = copy.deepcopy(model).merge_and_unload()(input_ids=TOKENS).logits
    made = engram_bridge(torch.compile(model, backend="eager"))
    torch.testing.assert_close(made(TOKENS), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, engram()(input_ids=TOKENS).logits, rtol=0.01, atol=0.01)


def test_what_it_does_not_take() -> None:
    with pytest.raises(UserError, match="boot_transformers"):
        engram_bridge(llama())
    streams = engram()
    streams.config.residual_streams = 4
    with pytest.raises(UserError, match="residual_streams=4"):
        engram_bridge(streams)
    latent = engram()
    latent.config.attention_kind = "mla"
    with pytest.raises(UserError, match="'gqa'"):
        engram_bridge(latent)
