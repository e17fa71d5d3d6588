"""Every adapter: its taps are where it says, edits act, and bad folders are told in one line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_fixture import (
    FAMILIES,
    GEMMA3N,
    LAYERS,
    LLAMA_LIKE,
    MEMORY_LAYERS,
    STREAMS,
    make_engram,
    make_llama,
    opened,
    seeded,
)
from torch import nn
from transformers import (
    Gemma3nConfig,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    GraniteConfig,
    GraniteForCausalLM,
)

from engram_eval.adapters.base import SITES, Tap
from engram_eval.adapters.check import self_check
from engram_eval.adapters.hooks import Place
from engram_eval.adapters.load import open_model
from engram_eval.adapters.registry import ADAPTERS
from engram_eval.errors import UserError

WRITERS = [(family, layer) for family, layers in MEMORY_LAYERS.items() for layer in layers]


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_and_names(family: str, tokens: torch.Tensor) -> None:
    adapter = opened(family)
    assert (adapter.n_layers, adapter.d_model, adapter.vocab_size) == (LAYERS, 16, 40)
    assert adapter.max_positions == 32
    assert adapter.memory_layers == MEMORY_LAYERS.get(family, ())
    assert adapter.streams == STREAMS.get(family, 1)
    assert adapter.device.type == "cpu"
    taps = [Tap(site, 1) for site in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
    with torch.no_grad(), adapter.record(taps) as found:
        adapter.run(tokens)
    assert set(found) == set(taps)
    for tap, tensor in found.items():
        wide = 16 * adapter.streams if tap.site.startswith("resid") else 16
        assert tensor.shape == (2, 9, wide), tap


@pytest.mark.parametrize("family", FAMILIES)
def test_final_logits_are_the_lens_of_the_last_layer(family: str, tokens: torch.Tensor) -> None:
    adapter = opened(family)
    last = Tap("resid_post", LAYERS - 1)
    with torch.no_grad(), adapter.record([last]) as found:
        logits = adapter.logits(tokens)
        torch.testing.assert_close(adapter.unembed(found[last]), logits)
        # Of any number of vectors, too: lenses pick some.
        some = found[last].flatten(0, 1)[3:7]
        torch.testing.assert_close(adapter.unembed(some), logits.flatten(0, 1)[3:7])


def test_hidden_states_agree_with_the_library(tokens: torch.Tensor) -> None:
    adapter = open_model(seeded(make_llama))
    taps = [Tap("resid_pre", layer) for layer in range(LAYERS)]
    with torch.no_grad(), adapter.record(taps) as found:
        states = adapter.model(input_ids=tokens, output_hidden_states=True).hidden_states
    for tap in taps:
        torch.testing.assert_close(found[tap], states[tap.layer])
    torch.testing.assert_close(states[0], adapter.embedding(tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_stopping_changes_nothing_before(family: str, tokens: torch.Tensor) -> None:
    adapter, last = opened(family), Tap("attn_out", LAYERS - 1)
    taps = [tap for tap in adapter.places if tap.layer == 0]
    with torch.no_grad():
        with adapter.record(taps) as whole:
            plain = adapter.logits(tokens)
        with adapter.record([*taps, last]) as found, adapter.stop_after(0):
            adapter.run(tokens)
        assert set(found) == set(whole) == set(taps), "the last block's attention does not run"
        assert all(torch.equal(found[tap], whole[tap]) for tap in taps)
        assert torch.equal(adapter.logits(tokens), plain)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["attn_out", "mlp_out", "resid_pre", "resid_post"])
def test_edits_act_and_identity_does_not(family: str, site: str, tokens: torch.Tensor) -> None:
    adapter = opened(family)
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


@pytest.mark.parametrize(("family", "layer"), WRITERS)
def test_where_a_memory_writes_and_what_it_reads(
    family: str, layer: int, tokens: torch.Tensor
) -> None:
    adapter = opened(family)
    sites = ("memory_index", "memory_rows", "memory_gate", "memory_out", "resid_pre")
    with torch.no_grad(), adapter.record([Tap(site, layer) for site in sites]) as found:
        plain = adapter.logits(tokens)
    index, rows, gate, added, before = (found[Tap(site, layer)] for site in sites)
    assert index.dtype == torch.int64 and index.shape[:2] == (2, 9)
    table = adapter.tables[layer]
    if family != "gemma3n":
        assert torch.equal(table[index].flatten(2), rows)
        assert gate.shape == (2, 9, adapter.streams) and 0 < gate.min() < gate.max() < 1
        assert added.shape == before.shape
    else:
        assert table[index].flatten(2).shape == rows.shape == gate.shape
        assert added.shape == (2, 9, 16)
    with torch.no_grad():
        with adapter.ablate("memory_out", layer):
            off = adapter.logits(tokens)
        with adapter.ablate("memory_gate", layer):
            closed = adapter.logits(tokens)
        with adapter.memory_off():
            all_off = adapter.logits(tokens)
        assert torch.equal(adapter.logits(tokens), plain)
    assert not torch.allclose(off, plain)
    torch.testing.assert_close(closed, off)
    assert torch.allclose(all_off, off) == (len(adapter.memory_layers) == 1)


@pytest.mark.parametrize(
    ("family", "name"), [("qwen4_exp", "attn_hyper_connection"), ("engram_streams", "attn_hc")]
)
def test_a_memory_of_streams_adds_what_it_says(
    family: str, name: str, tokens: torch.Tensor
) -> None:
    """What enters the attention's hyper-connection is the stream plus the memory's write."""
    adapter = opened(family)
    seen: list[torch.Tensor] = []
    block = adapter.place("resid_pre", 1).module
    handle = getattr(block, name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad(), adapter.record([Tap("resid_pre", 1), Tap("memory_out", 1)]) as found:
        adapter.run(tokens)
    handle.remove()
    torch.testing.assert_close(seen[0], found[Tap("resid_pre", 1)] + found[Tap("memory_out", 1)])


def test_gemma3ns_rows_write_to_all_streams_but_the_first(tokens: torch.Tensor) -> None:
    adapter = opened("gemma3n")
    taps = [Tap("memory_out", 1), Tap("resid_post", 1)]
    with torch.no_grad(), adapter.record(taps) as found:
        adapter.run(tokens)
        added, after = (found[tap].clone() for tap in taps)
        with adapter.ablate("memory_out", 1):
            adapter.run(tokens)
    difference = (after - found[taps[1]]).unflatten(-1, (3, 16))
    assert not difference[..., 0, :].any()
    for stream in (1, 2):
        torch.testing.assert_close(difference[..., stream, :], added)


def test_tokens_outside_of_gemma3ns_table_read_row_0() -> None:
    adapter = opened("gemma3n")
    with torch.no_grad(), adapter.record([Tap("memory_index", 0)]) as found:
        adapter.run(torch.tensor([[36, 37, 39]]))
    assert found[Tap("memory_index", 0)].tolist() == [[[36], [0], [0]]]


def test_models_whose_blocks_share_keys_say_so(tokens: torch.Tensor) -> None:
    config = Gemma3nTextConfig(**{**GEMMA3N, "num_kv_shared_layers": 1})
    adapter = open_model(seeded(lambda: Gemma3nForCausalLM(config)))
    with (
        pytest.raises(UserError, match="the last 1 reuse keys and values of others"),
        adapter.start_at(1, torch.zeros(2, 9, 48)),
    ):
        adapter.logits(tokens)
    with adapter.start_at(0, torch.zeros(2, 9, 48)):
        adapter.logits(tokens)


def test_gemma3n_as_it_is_published(tmp_path: Path, tokens: torch.Tensor) -> None:
    """With eyes and ears beside the text model, whose names then begin otherwise."""
    from safetensors.torch import load_file, save_file

    model = seeded(FAMILIES["gemma3n"])
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = {
        name.replace("model.", "model.language_model.", 1): weight
        for name, weight in load_file(path).items()
    }
    weights["model.vision_tower.weight"] = torch.ones(2)
    save_file(weights, path, metadata={"format": "pt"})
    Gemma3nConfig(text_config=model.config.to_dict()).save_pretrained(tmp_path)
    adapter = open_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(adapter.logits(tokens), model(input_ids=tokens).logits)
    assert adapter.memory_layers == (0, 1, 2)


def test_qwen4_computes_as_before_it_was_opened(tokens: torch.Tensor) -> None:
    """The gate's tap changes no bit, neither with padding nor while decoding."""
    model, tapped = (seeded(FAMILIES["qwen4_exp"]) for _ in range(2))
    open_model(tapped)
    open_model(tapped)
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    with torch.no_grad():
        for kwargs in ({}, {"attention_mask": mask}):
            ours, theirs = (m(input_ids=tokens, **kwargs).logits for m in (tapped, model))
            assert torch.equal(ours, theirs)
        written = [
            m.generate(tokens[:, :4], max_new_tokens=6, do_sample=False) for m in (tapped, model)
        ]
    assert torch.equal(*written)
    assert tapped.state_dict().keys() == model.state_dict().keys()


def test_qwen4_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.qwen4_exp.modeling_qwen4_exp import Qwen4ExpTextPLELayer

    theirs = Qwen4ExpTextPLELayer.forward
    monkeypatch.setattr(Qwen4ExpTextPLELayer, "forward", lambda *args: 2 * theirs(*args))
    with pytest.raises(UserError, match="computes otherwise in this version"):
        open_model(seeded(FAMILIES["qwen4_exp"]))


def test_capped_logits_are_the_models_own(tokens: torch.Tensor) -> None:
    adapter = opened("gemma2")
    with torch.no_grad(), adapter.record([Tap("resid_post", LAYERS - 1)]) as found:
        logits = adapter.logits(tokens)
        plain = adapter.model.lm_head(adapter.final_norm(*found.values()))
    assert (plain - logits).abs().max() > 0.1, "the cap shows"
    assert adapter.unembedding.weight is adapter.model.lm_head.weight


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", range(LAYERS))
def test_starting_later_gives_the_same_end(family: str, layer: int, tokens: torch.Tensor) -> None:
    adapter, tap = opened(family), Tap("resid_pre", layer)
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
    rows = adapter.place("memory_rows", 1).module
    for wrong, message in (
        (nn.Identity(), "memory_out at layer 1: nothing passes there"),
        (rows, "block 1: the parts' outputs do not sum"),
    ):
        places = {**adapter.places, Tap("memory_out", 1): Place(wrong, "output")}
        with pytest.raises(UserError, match=message):
            self_check(replace(adapter, places=places))


def test_other_tensors_under_a_sites_name_are_refused() -> None:
    adapter = open_model(seeded(make_engram))
    memory = adapter.place("memory_out", 1).module
    block = adapter.place("resid_pre", 1).module
    router = adapter.place("router_index", 1)
    for tap, place, message in (
        (Tap("memory_gate", 1), Place(block.mlp, "output"), "not from 0 to 1"),
        (Tap("memory_gate", 1), Place(memory.table, "input"), "int64, where numbers with a fract"),
        (Tap("memory_index", 1), Place(memory.value_proj, "input"), "where whole numbers belong"),
        (Tap("router_index", 1), router._replace(item=1), "where whole numbers belong"),
        (Tap("mlp_out", 1), router, r"shape \(24, 2\) for tokens \(2, 12\)"),
    ):
        places = {**adapter.places, tap: place}
        with pytest.raises(UserError, match=f"{tap.site} at layer 1: .*{message}"):
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


def test_families_that_scale_their_logits_are_refused() -> None:
    granite = GraniteForCausalLM(GraniteConfig(**LLAMA_LIKE, logits_scaling=0.01))
    with pytest.raises(UserError, match=r"unembedding\(final_norm\(last residual\)\) != logits"):
        open_model(granite)


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


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of ``lab/model`` as the hub's client keeps it on disk; the hub is out of reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commit = "0" * 40
    place = tmp_path / "models--lab--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    return place / "snapshots" / commit


def test_open_by_hub_name(hub: Path, tokens: torch.Tensor) -> None:
    model = seeded(make_llama)
    model.save_pretrained(hub)
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
        torch.testing.assert_close(open_model("lab/model").logits(tokens), expected)


def test_pickled_weights_of_the_hub_are_refused(hub: Path) -> None:
    model = seeded(make_llama)
    model.config.save_pretrained(hub)
    torch.save(model.state_dict(), hub / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot open lab/model"):
        open_model("lab/model")


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


ROUTED = ("olmoe", "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "qwen4_exp", "engram_moe")


@pytest.mark.parametrize("family", ROUTED)
def test_routers_logits_are_read_alone_and_say_so(family: str, tokens: torch.Tensor) -> None:
    adapter, tap = opened(family), Tap("router_logits", 1)
    message = r"^router_logits can be read, not edited: [^\n]*edit router_index, router_weights$"
    for changed in (adapter.edit(*tap, torch.neg), adapter.ablate(*tap)):
        with pytest.raises(UserError, match=message), changed:
            pass
    with torch.no_grad(), adapter.record([tap]) as found:
        adapter.run(tokens)
    assert found[tap].shape == (18, 4)


@pytest.mark.parametrize("family", ["olmoe", "mixtral", "qwen3_moe"])
def test_tokens_sent_to_one_expert_get_what_it_computes(family: str, tokens: torch.Tensor) -> None:
    adapter = opened(family)
    mlp: Any = adapter.place("mlp_out", 1).module
    seen: list[torch.Tensor] = []
    handle = mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    weights = torch.tensor([1.0, 0.0])
    with (
        torch.no_grad(),
        adapter.edit("router_index", 1, lambda x: torch.tensor([3, 2]).expand_as(x)),
        adapter.edit("router_weights", 1, lambda x: weights.to(x.dtype).expand_as(x)),
        adapter.record([Tap("mlp_out", 1)]) as found,
    ):
        adapter.run(tokens)
        both, down = mlp.experts.gate_up_proj[3], mlp.experts.down_proj[3]
        gate, up = (seen[0] @ both.T).chunk(2, dim=-1)
        expected = (nn.functional.silu(gate) * up) @ down.T
    handle.remove()
    torch.testing.assert_close(found[Tap("mlp_out", 1)], expected)
