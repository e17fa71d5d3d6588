"""Every variant: counted, matched, trained, saved, decoded step by step, opened by the adapters."""

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from test_ledger import counted
from test_models_decoding import TOLERANCE, padded, step_by_step

from engram_eval.adapters.base import Tap
from engram_eval.adapters.load import open_model
from engram_eval.cli import main
from engram_eval.config import TrainConfig
from engram_eval.costs.footprint import training_footprint
from engram_eval.costs.ledger import ledger_of
from engram_eval.costs.solver import match
from engram_eval.errors import UserError
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.models.moe import MoE
from engram_eval.models.product_keys import ProductKeyMemory
from engram_eval.models.table import RowTable
from engram_eval.scales import SCALES, Scale
from engram_eval.training.data import Batch
from engram_eval.training.optim import build_optimizer, set_learning_rate
from engram_eval.training.step import stepper
from engram_eval.training.watch import Watch
from engram_eval.variant_table import solved_variant, variant_table
from engram_eval.variants import VARIANTS, find_variant

VOCAB, SEQ_LEN = 61, 32
TINY = dataclasses.replace(
    SCALES["smoke"],
    backbone={**SCALES["smoke"].backbone, "hidden_size": 32, "num_hidden_layers": 4},
)
RELATIVES = [name for name, found in VARIANTS.items() if found.about.startswith("relative")]
BARE = ("dense", "moe", "moe_mhc", "moe_plus1", "moe_plus2", "moe_plus4")
OF_TOKENS = [name for name in VARIANTS if name not in (*BARE, "product_key")]
WITH_MEMORY = [*OF_TOKENS, "product_key"]


def architecture(name: str, scale: Scale = TINY, vocab_size: int = VOCAB) -> dict[str, Any]:
    return {**find_variant(name).architecture(scale), "vocab_size": vocab_size}


def text(batch: int = 4, length: int = SEQ_LEN, seed: int = 0) -> torch.Tensor:
    """Ids of uneven frequency; half of them follow from the last two."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(length, batch, generator=generator).pow(3).mul(VOCAB - 1).long() + 1
    ruled = torch.rand(length, batch, generator=generator) < 0.5
    columns = [noise[0], noise[1]]
    for column in range(2, length):
        rule = (7 * columns[-1] + columns[-2]) % 11 + 1
        columns.append(torch.where(ruled[column], rule, noise[column]))
    return torch.stack(columns, dim=1)


def build(name: str, **changes: Any) -> EngramForCausalLM:
    """The variant, ready to read: compression and n-gram lists are set; parts are not zero."""
    model = EngramForCausalLM(EngramConfig(**{**architecture(name), **changes})).eval()
    history = model.model.token_history
    if history is not None and history.compressed:
        model.model.set_compression(torch.arange(VOCAB) // 2)
    model.set_ngrams(text(40).flatten())
    return model


def loud(name: str, seed: int = 0) -> EngramForCausalLM:
    """The variant with weights so large that every part shows in the logits."""
    torch.manual_seed(seed)
    model = build(name)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_equal_numel(name: str) -> None:
    model, found = build(name), ledger_of(architecture(name), SEQ_LEN)
    named = dict(model.named_parameters())
    tables = sum(p.numel() for n, p in named.items() if n.endswith("table.weight"))
    memory = sum(p.numel() for n, p in named.items() if ".engram." in n or ".mlp.memory." in n)
    trained = sum(p.numel() for p in named.values() if p.requires_grad)
    assert found.params_total == sum(p.numel() for p in named.values())
    assert found.params_trainable == trained
    assert (found.params_table, found.params_memory) == (tables, memory - tables)
    assert (tables > 0) == (name in WITH_MEMORY)


@pytest.mark.parametrize("name", VARIANTS)
def test_flops_equal_a_counted_pass(name: str) -> None:
    model = build(name)
    for module in model.modules():
        if isinstance(module, MoE):
            module.gate.e_score_correction_bias[: module.gate.top_k] = 9.0
    with torch.no_grad(), counted() as counter:
        model(text(32))
    found = ledger_of(architecture(name), SEQ_LEN)
    assert counter.get_total_flops() == found.flops_per_token * 32 * SEQ_LEN


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_active_rows_are_those_that_a_token_reads(name: str) -> None:
    model, read = loud(name), []
    for module in model.modules():
        if isinstance(module, RowTable):
            width = module.weight.shape[1]
            module.register_forward_pre_hook(lambda m, i, w=width: read.append(i[0].numel() * w))
    model(torch.tensor([[3]]))
    found = ledger_of(architecture(name), SEQ_LEN)
    dense_part = found.params_total - found.params_table - found.params_embedding
    idle_experts = found.params_experts - (found.params_active_backbone - _without(name))
    assert (
        found.params_active == dense_part - idle_experts + sum(read) + TINY.backbone["hidden_size"]
    )


def _without(name: str) -> int:
    """Active parameters of the backbone without its routed experts."""
    config = architecture(name)
    found = ledger_of(config, SEQ_LEN)
    if not found.params_experts:
        return found.params_active_backbone
    share = config["num_experts_per_tok"] / config["n_routed_experts"]
    return found.params_active_backbone - round(found.params_experts * share)


@pytest.mark.parametrize("scale", ["smoke", "quick", "small"])
@pytest.mark.parametrize("name", [name for name, found in VARIANTS.items() if found.matched])
def test_matched_variants_cost_what_the_moe_costs(name: str, scale: str) -> None:
    sizes = SCALES[scale]
    moe = architecture("moe", sizes, sizes.corpus.vocab_size)
    length = sizes.train.seq_len
    found = match(moe, architecture(name, sizes, sizes.corpus.vocab_size), length)
    ours, theirs = ledger_of(found, length), ledger_of(moe, length)
    assert ours.flops_per_token == pytest.approx(theirs.flops_per_token, rel=0.01)
    if name != "dense":
        assert ours.params_total == pytest.approx(theirs.params_total, rel=0.01)


@pytest.mark.parametrize("scale", ["quick", "small"])
def test_unmatched_variants_cost_more_than_their_frame(scale: str) -> None:
    sizes = SCALES[scale]

    def params(name: str) -> int:
        return ledger_of(architecture(name, sizes), 256).params_total

    assert params("dense_engram") > params("dense")
    assert params("engram_extra") > params("moe")


@pytest.mark.parametrize("name", ["dense_engram", "engram_extra"])
def test_unmatched_variants_can_be_matched_too(name: str) -> None:
    moe = architecture("moe", SCALES["quick"], 4096)
    found = match(moe, architecture(name, SCALES["quick"], 4096), 256, iso="both")
    ours, theirs = ledger_of(found, 256), ledger_of(moe, 256)
    assert ours.params_total == pytest.approx(theirs.params_total, rel=0.01)
    assert ours.flops_per_token == pytest.approx(theirs.flops_per_token, rel=0.01)
    assert found["n_routed_experts"] == (0 if name == "dense_engram" else 16)


@pytest.mark.parametrize("name", ["per_layer", "product_key"])
def test_parameters_alone(name: str) -> None:
    moe = architecture("moe", SCALES["quick"], 4096)
    found = match(moe, architecture(name, SCALES["quick"], 4096), 256, iso="params")
    ours, theirs = ledger_of(found, 256).params_total, ledger_of(moe, 256).params_total
    assert ours == pytest.approx(theirs, rel=0.01)
    assert found["shared_expert_intermediate_size"] == moe["shared_expert_intermediate_size"]
    flops = match(moe, architecture(name, SCALES["quick"], 4096), 256, iso="flops")
    assert all(flops[key] == value for key, value in architecture(name, SCALES["quick"]).items()
               if key not in ("shared_expert_intermediate_size", "vocab_size"))  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_cached_decoding_equals_one_pass(name: str) -> None:
    model, ids = loud(name), text(3, 15)
    ids[1, 6] = 0
    whole = model(ids).logits
    torch.testing.assert_close(step_by_step(model, ids), whole, **TOLERANCE)
    torch.testing.assert_close(step_by_step(model, ids, sizes=[4, 1, 10]), whole, **TOLERANCE)


@pytest.mark.parametrize("name", WITH_MEMORY)
@torch.no_grad()
def test_padding_and_cropping_change_nothing(name: str) -> None:
    model, ids = loud(name), text(2, 12)
    moved, mask = padded(ids, [0, 5])
    stepped = step_by_step(model, moved, mask, sizes=[3, 8, 1])
    alone = model(ids[1:, :7]).logits[0]
    torch.testing.assert_close(stepped[1, 5:], alone, **TOLERANCE)
    cache = model(ids, use_cache=True).past_key_values
    cache.crop(-5)
    again = model(ids[:, 7:], past_key_values=cache).logits
    torch.testing.assert_close(again, model(ids).logits[:, 7:], **TOLERANCE)


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_saved_models_are_the_same(name: str, tmp_path: Path) -> None:
    model, ids = loud(name), text(2, 12)
    model.save_pretrained(tmp_path)
    loaded = EngramForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    again = {k: v for k, v in loaded.config.to_dict().items() if k != "_name_or_path"}
    assert again == {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"}


def batch(seed: int) -> Batch:
    ids = text(8, SEQ_LEN + 1, seed)
    return Batch(ids[:, :-1], ids[:, 1:], torch.arange(8), 0)


@pytest.mark.parametrize(
    ("name", "bf16"),
    [(name, False) for name in VARIANTS] + [(name, True) for name in ("engram", *RELATIVES)],
)
def test_ten_steps_lower_the_loss(name: str, bf16: bool) -> None:
    torch.manual_seed(0)
    model = build(name)
    config = TrainConfig(lr=8e-3, autocast_bf16=bf16)
    optimizer, watch = build_optimizer(model, config), Watch(model)
    set_learning_rate(optimizer, config.lr)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    take = stepper(model, optimizer, config)
    losses = [float(take(batch(step)).loss) for step in range(10)]
    assert sum(losses[-3:]) < sum(losses[:3]) - 1
    if name in WITH_MEMORY:
        assert 0 < watch.numbers()["rows_touched"] <= 1
    watch.close()
    for parameter_name, parameter in model.named_parameters():
        frozen = name == "frozen_rows" and parameter_name.endswith("table.weight")
        assert torch.equal(parameter, before[parameter_name]) == frozen, parameter_name
        assert (parameter in optimizer.state) != frozen


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_adapters_see_and_switch_off_the_memory(name: str) -> None:
    model = loud(name)
    adapter, ids = open_model(model), text(2, 12)
    assert adapter.memory_layers == tuple(model.config.engram_layers)
    layer = adapter.memory_layers[-1]
    taps = [Tap(site, layer) for site in ("memory_out", "memory_rows", "mlp_out")]
    with torch.no_grad(), adapter.record(taps) as found:
        plain = adapter.logits(ids)
    assert found[taps[0]].shape == (2, 12, 32 * adapter.streams) and found[taps[0]].any()
    assert found[taps[1]].shape[:2] == (2, 12)
    assert found[taps[2]].any() == (name != "product_key")
    with torch.no_grad(), adapter.memory_off():
        assert not torch.equal(adapter.logits(ids), plain)


def test_only_engram_memories_have_gates() -> None:
    gates = {
        name: any(tap.site == "memory_gate" for tap in open_model(loud(name)).places)
        for name in ("engram", "capacity_one", "bigram", "per_layer", "product_key")
    }
    assert gates == {
        "engram": True,
        "capacity_one": True,
        "bigram": False,
        "per_layer": False,
        "product_key": False,
    }


def test_frozen_rows_take_no_memory_for_training() -> None:
    train = TrainConfig(seq_len=SEQ_LEN)
    frozen, trained = (
        training_footprint(architecture(name), train) for name in ("frozen_rows", "engram")
    )
    rows = ledger_of(architecture("engram"), SEQ_LEN).params_table
    assert trained.gradients - frozen.gradients == 4 * rows
    assert trained.optimizer - frozen.optimizer == 8 * rows
    assert trained.weights == frozen.weights


def test_product_keys_choose_by_the_stream_and_others_by_the_ids() -> None:
    model = loud("product_key")
    assert isinstance(model.model.memory(model.config.engram_layers[0]), ProductKeyMemory)
    assert model.model.ngram_rows(text(1, 5)) == {}
    for name in OF_TOKENS:
        rows = loud(name).model.ngram_rows(text(1, 5))
        assert sorted(rows) == sorted(architecture(name)["engram_layers"])


def test_unknown_variants_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'random_index'"):
        find_variant("random_indx")


def test_the_table_counts_what_is_compared() -> None:
    lines = variant_table("quick").splitlines()
    assert [line.split("`")[1] for line in lines[2:]] == list(VARIANTS)
    cells = {line.split("`")[1]: line.split(" | ") for line in lines[2:]}
    # By hand: 16 experts of 3 x 128 x 64 in 7 layers, and so on, are 4.46 million.
    assert cells["moe"][3:] == ["4.46 M", "1.52 M", "–", "4.09 M |"]
    assert cells["engram"][3:] == ["4.46 M", "1.53 M", "0.68 M", "4.11 M |"]
    page = (Path(__file__).parent.parent / "docs/models.md").read_text()
    assert "\n".join(lines) in page, (
        "docs/models.md has another table; `python -m engram_eval.variant_table` prints the new one"
    )
    with pytest.raises(UserError, match="unknown scale 'quik'"):
        solved_variant("moe", "quik")
    with pytest.raises(UserError, match="did you mean 'moe'"):
        solved_variant("mo", "quick")


def test_the_command_line_lists_them() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["list", "variants"]) == 0
    assert [line.split()[0] for line in out.getvalue().splitlines()] == list(VARIANTS)
