from pathlib import Path

import pytest
import torch
from models_fixture import MEMORY, MOE, TINY, build, full, tokens
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from engram_eval.models import EngramConfig, EngramForCausalLM, EngramModel


def test_public_names_are_lazy_and_registered() -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    import engram_eval.models as package

    assert AutoConfig.for_model("engram_moe").__class__ is EngramConfig
    config = EngramConfig(**TINY)
    assert type(AutoModelForCausalLM.from_config(config)) is EngramForCausalLM
    assert type(AutoModel.from_config(config)) is EngramModel
    with pytest.raises(AttributeError, match="has no attribute 'EngramTokenizer'"):
        _ = package.EngramTokenizer


@pytest.mark.parametrize("tied", [False, True])
def test_dense_model_is_llama(tied: bool) -> None:
    ours = build(tie_word_embeddings=tied, rope_theta=700.0)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            **{k: v for k, v in TINY.items() if k != "initializer_range"},
            tie_word_embeddings=tied,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 700.0},
        )
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    ids = tokens(2, 40)
    with torch.no_grad():
        found, expected = ours(ids).logits, theirs(ids).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == tied


def test_loss_is_the_mean_next_token_cross_entropy() -> None:
    model, ids = full(), tokens(3, 11)
    labels = ids.clone()
    labels[:, :4] = -100
    found = model(ids, labels=labels)
    expected = cross_entropy(found.logits[:, 3:-1].flatten(0, 1), ids[:, 4:].flatten())
    torch.testing.assert_close(found.loss, expected)
    summed = model(ids, labels=labels, num_items_in_batch=7).loss
    torch.testing.assert_close(summed, expected * 21 / 7)


class Halved(nn.Module):
    """A head that an adapter has been put around."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head, self.weight = head, head.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden) / 2


@pytest.mark.parametrize("how", ["adapter", "hook"])
def test_the_loss_is_that_of_the_logits_whatever_makes_them(how: str) -> None:
    model, ids = full().train(), tokens(2, 6)
    plain = model(ids, labels=ids).loss
    if how == "adapter":
        model.lm_head = Halved(model.lm_head)
    else:
        model.lm_head.register_forward_hook(lambda _module, _given, made: made / 2)
    found = model(ids, labels=ids, loss_only=False)
    wanted = cross_entropy(found.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(found.loss, wanted)
    assert (found.loss - plain).detach().abs() > 1e-3


def test_logits_are_left_out_while_training_only() -> None:
    model, ids = full(), tokens(2, 6)
    evaluated = model(ids, labels=ids)
    assert evaluated.logits.shape == (2, 6, 97)
    assert model(ids, labels=ids, loss_only=True).logits is None
    model.train()
    trained = model(ids, labels=ids)
    assert trained.logits is None
    torch.testing.assert_close(trained.loss, evaluated.loss)
    assert model(ids, labels=ids, loss_only=False).logits is not None
    assert model(ids).logits is not None


def test_logits_to_keep() -> None:
    model, ids = full(), tokens(2, 9)
    every = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, every[:, -2:])
    kept = model(ids, logits_to_keep=torch.tensor([1, 5])).logits
    torch.testing.assert_close(kept, every[:, [1, 5]])


def test_recorded_outputs() -> None:
    model, ids = full(attn_implementation="eager"), tokens(2, 9)
    out = model(ids, output_hidden_states=True, output_attentions=True, output_router_logits=True)
    assert [tuple(h.shape) for h in out.hidden_states] == [(2, 9, 32)] * 4
    torch.testing.assert_close(out.hidden_states[0], model.model.embed_tokens(ids))
    torch.testing.assert_close(model.lm_head(out.hidden_states[-1]), out.logits)
    assert [tuple(a.shape) for a in out.attentions] == [(2, 4, 9, 9)] * 3
    torch.testing.assert_close(out.attentions[0].sum(-1), torch.ones(2, 4, 9))
    assert [tuple(r.shape) for r in out.router_logits] == [(18, 6)] * 2
    assert model(ids, return_dict=False)[0].shape == (2, 9, 97)


def test_implementations_of_attention_agree() -> None:
    ids = tokens(2, 80)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    eager, sdpa = full(attn_implementation="eager"), full(attn_implementation="sdpa")
    for attention_mask in (None, mask):
        one = eager(ids, attention_mask=attention_mask).logits
        two = sdpa(ids, attention_mask=attention_mask).logits
        with torch.no_grad():
            three = sdpa(ids, attention_mask=attention_mask).logits
        for other in (two, three):
            torch.testing.assert_close(one[:, 7:], other[:, 7:], rtol=1e-4, atol=1e-4)


def test_block_adds_memory_attention_and_feed_forward() -> None:
    model, ids = full(), tokens(1, 8)
    layer, parts = model.model.layers[2], {}
    for name in ("engram", "self_attn", "mlp"):
        getattr(layer, name).register_forward_hook(
            lambda m, i, o, name=name: parts.update({name: o[0] if isinstance(o, tuple) else o})
        )
    ends = {}
    layer.register_forward_hook(lambda m, i, o: ends.update(before=i[0], after=o))
    model(ids)
    total = ends["before"] + parts["engram"] + parts["self_attn"] + parts["mlp"]
    torch.testing.assert_close(ends["after"], total)


def test_given_rows_replace_hashing() -> None:
    model, ids, other = full(), tokens(2, 9), tokens(2, 9, seed=3)
    rows = model.model.ngram_rows(ids)
    torch.testing.assert_close(model(ids, engram_rows=rows).logits, model(ids).logits)
    swapped = model(ids, engram_rows=model.model.ngram_rows(other)).logits
    assert not torch.allclose(swapped, model(ids).logits)
    cached = model(ids, engram_rows=rows, use_cache=True).logits
    torch.testing.assert_close(cached, model(ids).logits)


def test_embeddings_may_replace_ids_where_nothing_hashes() -> None:
    model, ids = full(), tokens(2, 9)
    embeds, rows = model.model.embed_tokens(ids), model.model.ngram_rows(ids)
    expected = model(ids).logits
    torch.testing.assert_close(model(ids, inputs_embeds=embeds).logits, expected)
    given = model(inputs_embeds=embeds, engram_rows=rows, use_cache=False).logits
    torch.testing.assert_close(given, expected)
    with pytest.raises(ValueError, match="give input_ids beside inputs_embeds"):
        model(inputs_embeds=embeds)
    with pytest.raises(ValueError, match="give input_ids or inputs_embeds"):
        model()
    dense = build()
    embeds = dense.model.embed_tokens(ids)
    torch.testing.assert_close(dense(inputs_embeds=embeds).logits, dense(ids).logits)


def test_arguments_without_effect_are_refused() -> None:
    with pytest.raises(TypeError, match="got colour; beside its own arguments it takes"):
        full()(tokens(1, 4), colour=1)


def test_half_precision_autocast_is_close_and_trains() -> None:
    model, ids = full(initializer_range=0.1).train(), tokens(2, 70)
    exact = model(ids, labels=ids).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None]
    assert silent == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_gradients_are_equal_with_checkpointing() -> None:
    ids, found = tokens(2, 20), []
    for checkpointing in (False, True):
        model = full().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert all(layer.gradient_checkpointing for layer in model.model.layers)
        model(ids, labels=ids).loss.backward()
        found.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_saved_model_is_bit_exact_and_keeps_its_hash(tmp_path: Path) -> None:
    model, ids = full(engram_compression=True), tokens(2, 9)
    generator = torch.Generator().manual_seed(1)
    model.model.set_compression(torch.randint(0, 60, (97,), generator=generator))
    hasher = model.model.memory(2).hash
    hasher.multipliers += 2  # a checkpoint whose constants were drawn by other rules
    model.model.layers[1].mlp.gate.e_score_correction_bias += 0.25
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["model.layers.2.engram.hash.multipliers"].tolist() == hasher.multipliers.tolist()
    assert stored["model.token_history.compressed_ids"].dtype == torch.int64
    again = EngramForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert {k: v.tolist() for k, v in again.state_dict().items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }


def test_headless_model_loads_from_the_same_folder(tmp_path: Path) -> None:
    model, ids = full(), tokens(2, 9)
    model.save_pretrained(tmp_path)
    headless = EngramModel.from_pretrained(tmp_path)
    expected = model.model(ids).last_hidden_state
    assert torch.equal(headless(ids).last_hidden_state, expected)


def test_loading_in_half_precision_keeps_router_bias_wide(tmp_path: Path) -> None:
    full().save_pretrained(tmp_path)
    half = EngramForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.model.memory(0).table.weight.dtype == torch.bfloat16
    assert half.model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32
    assert half(tokens(1, 6)).logits.isfinite().all()


def test_same_seed_same_weights() -> None:
    one, two, other = full(), full(), full(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_first_layers_stay_dense() -> None:
    model = build(**{**MOE, "first_k_dense_replace": 2})
    kinds = [type(layer.mlp).__name__ for layer in model.model.layers]
    assert kinds == ["SwiGLU", "SwiGLU", "MoE"]
    assert model.model.token_history is None
    assert [layer.engram is None for layer in full().model.layers] == [False, True, False]
    assert set(MEMORY["engram_layers"]) == {0, 2}
