"""Parameters of loaded models: published sizes, sums by hand, silence where nothing is known."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from adapters_fixture import make_engram, opened, seeded
from torch import nn
from transformers import PreTrainedConfig

from engram_eval.adapters.counts import count_folder, count_parameters
from engram_eval.adapters.load import open_model
from engram_eval.adapters.plain import Parts, PlainModel
from engram_eval.adapters.registry import adapt
from engram_eval.config import ModelSpec, StudyConfig
from engram_eval.costs.ledger import ledger
from engram_eval.running.study_folder import loaded_ledger


def folder(config: PreTrainedConfig, path: Path) -> Path:
    """Write what a folder with this model begins with; no weights, for none are read."""
    config.save_pretrained(path)
    (path / "model.safetensors").touch()
    return path


@pytest.mark.parametrize(
    ("config", "total", "active", "digits", "whole"),
    [
        # In billions, from arXiv:2401.04088 and arXiv:2412.19437 and the card of gpt-oss-120b.
        (hf.MixtralConfig(), 46.7, 12.9, 1, True),
        (hf.DeepseekV3Config(), 671, 37, 0, False),
        (hf.GptOssConfig(), 116.83, 5.13, 2, False),
    ],
    ids=["mixtral", "deepseek_v3", "gpt_oss"],
)
def test_published_sizes(
    config: Any, total: float, active: float, digits: int, whole: bool, tmp_path: Path
) -> None:
    """Mixtral's authors count the ``whole`` embedding, of which a token reads one row."""
    found = count_folder(folder(config, tmp_path))
    assert found.params_total is not None and found.params_active is not None
    unread = (config.vocab_size - 1) * config.hidden_size if whole else 0
    assert round(found.params_total / 1e9, digits) == total
    assert round((found.params_active + unread) / 1e9, digits) == active
    assert found.params_table == 0 and not found.uncounted


def test_published_sizes_to_the_last_parameter(tmp_path: Path) -> None:
    """GPT-2's head is its embedding: all of it is touched, of positions one row."""
    gpt2 = count_folder(folder(hf.GPT2Config(), tmp_path / "gpt2"))
    assert (gpt2.params_total, gpt2.params_active) == (124_439_808, 124_439_808 - 1023 * 768)
    llama = count_folder(folder(hf.LlamaConfig(), tmp_path / "llama"))
    assert llama.params_total == 6_738_415_616
    assert llama.params_active == 6_738_415_616 - 31_999 * 4096


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"engram_layers": []}])
def test_our_models_count_as_the_ledger_counts_their_architecture(changes: dict[str, Any]) -> None:
    model = make_engram(**changes)
    found, known = count_parameters(open_model(model)), ledger(model.config, 8)
    assert found.params_total == known.params_total
    assert found.params_table == known.params_table
    assert found.params_active == known.params_active


def test_a_quantised_table_counts_too(tmp_path: Path) -> None:
    """Rows of fewer bits are buffers of the module, not parameters."""
    config = make_engram().config
    full = count_folder(folder(config, tmp_path / "full"))
    config.engram_row_quantization = "int8"
    assert count_folder(folder(config, tmp_path / "int8")) == full and full.params_table


@pytest.mark.parametrize(("family", "reads"), [("qwen4_exp", None), ("gemma3n", 3 * 4)])
def test_rows_of_other_memories(family: str, reads: int | None, tmp_path: Path) -> None:
    adapter = opened(family)
    found = count_parameters(adapter)
    named = "embed_tokens_per_layer" if family == "gemma3n" else "ngram_embedding"
    table = sum(p.numel() for n, p in adapter.model.named_parameters() if named in n)
    assert found.params_table == table > 0 and found.params_total is not None
    if reads is not None:
        # One row of all layers; the head is the embedding, so that nothing else is left out.
        assert found.params_active == found.params_total - table + reads
    assert count_folder(folder(adapter.model.config, tmp_path)) == found


class Remembers(nn.Module):
    """A linear layer beside a table of which nobody has said what it is."""

    def __init__(self, inner: nn.Module, extra: nn.Module) -> None:
        super().__init__()
        self.inner, self.extra = inner, extra

    def forward(self, *args: Any, **keys: Any) -> Any:
        return self.inner(*args, **keys)


@pytest.mark.parametrize(
    ("extra", "lacking", "told"),
    [
        (nn.Embedding(99, 4), {"params_table", "params_active"}, "look-up table .*extra"),
        (nn.Bilinear(2, 2, 2), {"params_active"}, "a part that the adapter does not know: .*extra"),
        (nn.ModuleDict({"experts": nn.Linear(2, 2)}), {"params_active"}, "experts that .*extra"),
    ],
)
def test_what_the_adapter_does_not_know_is_not_guessed(
    extra: nn.Module, lacking: set[str], told: str
) -> None:
    """An unlisted family that is like Llama but for one part."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = hf.Qwen2ForCausalLM(hf.Qwen2Config(**sizes, **heads, pad_token_id=0))
    plain = count_parameters(open_model(model))
    assert not plain.uncounted and plain.params_total is not None
    assert plain.params_active == plain.params_total - 39 * 16
    block = model.model.layers[0]
    block.mlp.down_proj = Remembers(block.mlp.down_proj, extra)
    found = count_parameters(open_model(model))
    more = sum(parameter.numel() for parameter in extra.parameters())
    assert found.params_total == plain.params_total + more
    assert set(found.uncounted) == lacking and found.params_active is None
    assert (found.params_table is None) == ("params_table" in lacking)
    for reason in found.uncounted.values():
        assert re.search(told, reason)


def test_a_module_of_ones_own_counts_in_all_alone() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.mlp = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.mlp(x + self.attn(x)) + self.attn(x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.blocks = nn.Embedding(10, 8), nn.ModuleList([Block()])
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 10, bias=False)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.emb(ids)
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    taps = {"attn_out": "attn", "mlp_out": "mlp"}
    parts = Parts("emb", "blocks", "norm", "head", taps, max_positions=16)
    found = count_parameters(adapt(PlainModel(Net(), parts)))
    assert found.params_total == 80 + 2 * 72 + 16 + 80
    assert found.params_table is None and found.params_active is None
    assert "its Parts name no table" in found.uncounted["params_table"]


def test_a_ledger_is_written_whatever_lies_in_a_folder(tmp_path: Path) -> None:
    """The stages that open a model say what is wrong with it."""
    folder(hf.OPTConfig(num_hidden_layers=1), tmp_path / "opt")
    for name, config in (("odd", {"model_type": "llama", "hidden_size": "x"}), ("none", {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    folder(seeded(make_engram).config, tmp_path / "own")
    names = ("opt", "odd", "none", "gone", "own")
    models = tuple(ModelSpec(name, path=str(tmp_path / name)) for name in names)
    found = loaded_ledger(StudyConfig(name="compare", scale="loaded", models=models))
    assert list(found) == list(names)
    assert found["opt"]["params_total"] and found["opt"]["params_active"] is None
    assert "has no part" in found["opt"]["uncounted"]["params_active"]
    for name in ("odd", "none", "gone"):
        assert found[name]["params_total"] is None
        (reason,) = set(found[name]["uncounted"].values())
        assert reason and "\n" not in reason
    assert found["own"]["params_active"] and found["own"]["uncounted"] == {}
