"""What is streamed is what one pass over everything would give, and says which tokens it is of."""

from itertools import pairwise

import pytest
import torch
from probes_fixture import engram, llama, noise_sample

from engram_eval.adapters.base import Tap
from engram_eval.adapters.load import open_model
from engram_eval.errors import UserError
from probes.capture import batches

SITES = (
    *("resid_pre", "memory_index", "memory_rows", "memory_gate", "memory_out", "attn_out"),
    *("router_logits", "router_weights", "router_index", "mlp_out", "resid_post"),
)
TAPS = [Tap(site, 1) for site in SITES]


@pytest.mark.parametrize("tokens_per_batch", [1, 192, 100_000])
def test_streaming_equals_one_pass(tokens_per_batch: int) -> None:
    adapter, found = open_model(engram()), noise_sample()
    parts = list(batches(adapter, found, TAPS, True, tokens_per_batch))
    with torch.no_grad(), adapter.record(TAPS) as whole:
        logits = adapter.logits(torch.from_numpy(found.token[:, :-1]))
    n = found.inputs.token.size
    for tap in TAPS:
        rows = torch.cat([part.taps[tap] for part in parts])
        torch.testing.assert_close(rows, whole[tap].reshape(n, -1), rtol=1e-4, atol=1e-4)
    scores = torch.cat([part.logits for part in parts if part.logits is not None])
    torch.testing.assert_close(scores, logits.flatten(0, 1), rtol=1e-4, atol=1e-4)
    assert parts[0].part.start == 0 and parts[-1].part.stop == n
    assert all(left.part.stop == right.part.start for left, right in pairwise(parts))
    most = max(tokens_per_batch, found.shape[1])
    assert all(len(part.targets) == part.part.stop - part.part.start <= most for part in parts)
    assert torch.cat([part.targets for part in parts]).tolist() == found.targets.token.tolist()
    assert parts[0].taps[Tap("memory_index", 1)].dtype == torch.int64


def test_a_row_belongs_to_the_token_that_was_read() -> None:
    adapter, found = open_model(llama()), noise_sample()
    (part,) = batches(adapter, found, [Tap("resid_pre", 0)])
    expected = adapter.embedding.get_parameter("weight")[torch.from_numpy(found.inputs.token)]
    torch.testing.assert_close(part.taps[Tap("resid_pre", 0)], expected)


def test_what_is_not_there() -> None:
    with pytest.raises(UserError, match="no memory_out at layer 1"):
        next(batches(open_model(llama()), noise_sample(), [Tap("memory_out", 1)]))
