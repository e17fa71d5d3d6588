"""Precision of products on a GPU: asked for while it works, and given back."""

import pytest
import torch
import training_tools as tools

from engram_eval.costs.ledger import architecture_config
from engram_eval.evaluation.heldout import token_bits
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.tensor_cores import tensor_cores


@pytest.mark.parametrize("asked", ["highest", "medium"])
@pytest.mark.parametrize(("device", "inside"), [("cuda", "high"), ("cuda:1", "high"), ("cpu", "")])
def test_precision_is_put_back(asked: str, device: str, inside: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(asked)
    try:
        with pytest.raises(KeyError), tensor_cores(device):
            assert torch.get_float32_matmul_precision() == (inside or asked)
            raise KeyError
        assert torch.get_float32_matmul_precision() == asked
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", tools.ARCHITECTURES)
def test_a_gpu_scores_text_as_a_cpu_does(name: str) -> None:
    keys = tools.ARCHITECTURES[name] | {"engram_compression": False, "initializer_range": 0.2}
    torch.manual_seed(0)
    model = EngramForCausalLM(architecture_config(keys))
    tokens = torch.randint(300, (2048,)).numpy()
    truth = token_bits(model, tokens, 64, 4)
    found = token_bits(model.to("cuda"), tokens, 64, 4, "cuda")
    assert abs(found - truth).max() < 0.05 and abs(found.mean() - truth.mean()) < 1e-3
