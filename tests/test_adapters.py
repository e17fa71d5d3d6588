"""Every adapter: its taps are where it says, edits act, and bad folders are told in one line."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
)

from engram_eval.adapters.base import SITES, Place, Tap
from engram_eval.adapters.check import self_check
from engram_eval.adapters.load import open_model
from engram_eval.adapters.registry import ADAPTERS
from engram_eval.errors import UserError

LAYERS = 3
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
LLAMA_LIKE = {**SIZES, "num_key_value_heads": 1, "intermediate_size": 24}


def make_llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE))


def make_gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=16, n_layer=LAYERS, n_head=2, n_positions=32)
    )


def make_neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, intermediate_size=24))


def make_olmoe() -> PreTrainedModel:
    return OlmoeForCausalLM(OlmoeConfig(**LLAMA_LIKE, num_experts=4, num_experts_per_tok=2))


def make_olmo2() -> PreTrainedModel:
    return Olmo2ForCausalLM(Olmo2Config(**LLAMA_LIKE))


def make_engram() -> PreTrainedModel:
    from engram_eval.models import EngramConfig, EngramForCausalLM

    config = EngramConfig(
        **LLAMA_LIKE,
        engram_layers=[1],
        engram_ngram_orders=[2, 3],
        engram_heads=2,
        engram_rows=[31, 31],
        engram_row_dim=4,
        engram_compression=False,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
    )
    return EngramForCausalLM(config)


FAMILIES = {
    "llama": make_llama,
    "gpt2": make_gpt2,
    "gpt_neox": make_neox,
    "olmoe": make_olmoe,
    "olmo2": make_olmo2,
    "engram_moe": make_engram,
}


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(1))


def seeded(make) -> PreTrainedModel:
    torch.manual_seed(0)
    model = make()
    for name, parameter in model.named_parameters():
        # A gain of one would hide a final norm that is skipped or applied twice.
        if "norm" in name or "ln_" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_and_names(family: str, tokens: torch.Tensor) -> None:
    adapter = open_model(seeded(FAMILIES[family]))
    assert (adapter.n_layers, adapter.d_model, adapter.vocab_size) == (LAYERS, 16, 40)
    assert adapter.max_positions == 32
    assert adapter.memory_layers == ((1,) if family == "engram_moe" else ())
    assert adapter.device.type == "cpu"
    taps = [Tap(site, 1) for site in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
    with torch.no_grad(), adapter.record(taps) as found:
        adapter.run(tokens)
    assert set(found) == set(taps)
    assert all(tensor.shape == (2, 9, 16) for tensor in found.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_final_logits_are_the_lens_of_the_last_layer(family: str, tokens: torch.Tensor) -> None:
    adapter = open_model(seeded(FAMILIES[family]))
    last = Tap("resid_post", LAYERS - 1)
    with torch.no_grad(), adapter.record([last]) as found:
        logits = adapter.logits(tokens)
        torch.testing.assert_close(adapter.unembed(found[last]), logits)


def test_hidden_states_agree_with_the_library(tokens: torch.Tensor) -> None:
    adapter = open_model(seeded(make_llama))
    taps = [Tap("resid_pre", layer) for layer in range(LAYERS)]
    with torch.no_grad(), adapter.record(taps) as found:
        states = adapter.model(input_ids=tokens, output_hidden_states=True).hidden_states
    for tap in taps:
        torch.testing.assert_close(found[tap], states[tap.layer])
    torch.testing.assert_close(states[0], adapter.embedding(tokens))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["attn_out", "mlp_out", "resid_pre", "resid_post"])
def test_edits_act_and_identity_does_not(family: str, site: str, tokens: torch.Tensor) -> None:
    adapter = open_model(seeded(FAMILIES[family]))
    with torch.no_grad():
        plain = adapter.logits(tokens)
        with adapter.edit(site, 1, lambda x: x):
            assert torch.equal(adapter.logits(tokens), plain)
        with adapter.ablate(site, 1):
            assert not torch.allclose(adapter.logits(tokens), plain)
        assert torch.equal(adapter.logits(tokens), plain)


@pytest.mark.parametrize("site", ["memory_rows", "memory_gate", "memory_out"])
def test_the_memorys_taps_act(site: str, tokens: torch.Tensor) -> None:
    adapter = open_model(seeded(make_engram))
    with torch.no_grad(), adapter.record([Tap(site, 1)]) as found:
        plain = adapter.logits(tokens)
        width = {"memory_rows": 16, "memory_gate": 1, "memory_out": 16}[site]
        assert found[Tap(site, 1)].shape == (2, 9, width)
        if site == "memory_gate":
            assert 0 < found[Tap(site, 1)].min() < found[Tap(site, 1)].max() < 1
        with adapter.ablate(site, 1):
            zeroed = adapter.logits(tokens)
        with adapter.memory_off():
            torch.testing.assert_close(adapter.logits(tokens), zeroed)
    assert not torch.allclose(zeroed, plain)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", range(LAYERS))
def test_starting_later_gives_the_same_end(family: str, layer: int, tokens: torch.Tensor) -> None:
    adapter, tap = open_model(seeded(FAMILIES[family])), Tap("resid_pre", layer)
    with torch.no_grad():
        with adapter.record([tap]) as found:
            plain = adapter.logits(tokens)
        with adapter.start_at(layer, found[tap]):
            torch.testing.assert_close(adapter.logits(tokens), plain)
        with adapter.start_at(layer, torch.zeros_like(found[tap])):
            assert not torch.allclose(adapter.logits(tokens), plain)
        assert torch.equal(adapter.logits(tokens), plain)


def test_a_memory_that_is_not_where_it_is_said_to_be_is_refused() -> None:
    adapter = open_model(seeded(make_engram))
    # The rows are as wide as the stream here, but they are not what is added.
    for wrong in (nn.Identity(), adapter.place("memory_rows", 1).module):
        places = {**adapter.places, Tap("memory_out", 1): Place(wrong, "output")}
        with pytest.raises(UserError, match="block 1: the parts' outputs do not sum"):
            self_check(replace(adapter, places=places))


def test_a_memory_that_does_not_reach_the_logits_is_refused() -> None:
    """Everything behind the memory is exact, but the stream that it writes to is dropped."""
    model = seeded(make_llama)
    adapter = open_model(model)
    dead = nn.Identity()

    def silent(_module: nn.Module, args: tuple) -> None:
        dead(torch.zeros_like(args[0]))

    model.model.layers[1].register_forward_pre_hook(silent)
    places = {**adapter.places, Tap("memory_out", 1): Place(dead, "output")}
    with pytest.raises(UserError, match="editing the memory at layer 1 does not reach"):
        self_check(replace(adapter, places=places))


def test_ablation_equals_a_model_without_the_part(tokens: torch.Tensor) -> None:
    adapter, other = open_model(seeded(make_llama)), seeded(make_llama)
    with torch.no_grad():
        other.model.layers[2].mlp.down_proj.weight.zero_()
        expected = other(input_ids=tokens).logits
        with adapter.ablate("mlp_out", 2):
            torch.testing.assert_close(adapter.logits(tokens), expected)


def test_hooks_are_gone_after_an_error(tokens: torch.Tensor) -> None:
    adapter = open_model(seeded(make_llama))
    with torch.no_grad():
        plain = adapter.logits(tokens)
        with pytest.raises(KeyError), adapter.ablate("mlp_out", 0):
            raise KeyError
        assert torch.equal(adapter.logits(tokens), plain)


def test_unknown_site_and_layer() -> None:
    adapter = open_model(seeded(make_llama))
    with pytest.raises(UserError, match="did you mean 'resid_post'"):
        adapter.place("residpost", 0)
    with pytest.raises(UserError, match=r"layers with one: \[0, 1, 2\]"):
        adapter.place("mlp_out", 3)
    with pytest.raises(UserError, match=r"layers with one: \[\]"):
        adapter.place("memory_out", 0)


def test_registry_names_real_families() -> None:
    from transformers import CONFIG_MAPPING

    from engram_eval.models import EngramConfig

    assert set(ADAPTERS) <= {*CONFIG_MAPPING, EngramConfig.model_type}


def test_families_that_scale_their_residuals_are_refused() -> None:
    granite = GraniteForCausalLM(GraniteConfig(**LLAMA_LIKE, residual_multiplier=0.5))
    with pytest.raises(UserError, match="do not sum to its residual stream"):
        open_model(granite)


def test_families_with_capped_logits_are_refused() -> None:
    gemma = Gemma2ForCausalLM(Gemma2Config(**LLAMA_LIKE, head_dim=8, final_logit_softcapping=0.05))
    with pytest.raises(UserError, match=r"unembedding\(final_norm\(last residual\)\) != logits"):
        open_model(gemma)


def test_wrong_name_of_a_part() -> None:
    model = seeded(make_llama)
    del model.model.norm
    with pytest.raises(UserError, match="no part 'norm'"):
        open_model(model)


def test_open_a_folder_of_our_own(tmp_path: Path, tokens: torch.Tensor) -> None:
    model = seeded(make_engram).eval()
    model.save_pretrained(tmp_path)
    adapter = open_model(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(adapter.logits(tokens), model(input_ids=tokens).logits)
    assert adapter.memory_layers == (1,)


def test_open_a_folder(tmp_path: Path, tokens: torch.Tensor) -> None:
    model = seeded(make_llama).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
        for source in (tmp_path, str(tmp_path)):
            adapter = open_model(source, device="cpu")
            torch.testing.assert_close(adapter.logits(tokens), expected)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    model = seeded(make_llama)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is pickled"):
        open_model(tmp_path)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    seeded(make_llama).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing.*layers\.1\.mlp\.up_proj"):
        open_model(tmp_path)


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_model(tmp_path / "nothing")
    with pytest.raises(UserError, match="no such folder"):
        open_model("./nothing")
    with pytest.raises(UserError, match=r"no config\.json"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        open_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "no_such_family"}')
    with pytest.raises(UserError, match="no_such_family"):
        open_model(tmp_path)
    with pytest.raises(UserError, match="cannot open nobody/nothing"):
        open_model("nobody/nothing")


REMOTE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own_family"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_remote_code_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    folder = tmp_path / "model"
    seeded(make_llama).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "own_family"
    config["auto_map"] = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(REMOTE)
    with pytest.raises(UserError, match="trust_remote_code"):
        open_model(folder)
    assert open_model(folder, trust_remote_code=True).n_layers == LAYERS


def test_sites_are_documented() -> None:
    import engram_eval.adapters.base as base

    assert base.__doc__ is not None
    assert all(f"| {site} " in base.__doc__ for site in SITES)
