"""Batches that are cut, moved and hashed while the step before them runs."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import torch
from transformers import PreTrainedModel

from engram_eval.training.data import Batch, Batches
from engram_eval.training.lookup import look_up


def prefetched(
    model: PreTrainedModel,
    batches: Batches,
    first: int,
    steps: int,
    share: Callable[[Batch], Batch] | None = None,
) -> Generator[Batch]:
    """Yield the batches of steps ``first`` .. ``steps`` - 1 on the model's device, looked up.

    One batch is made ahead, in a thread; it hangs on nothing that a training step changes.

    Args:
        model: its memories' hashes are used.
        batches: the text.
        first: 0-based step.
        steps: see above.
        share: takes what one of several processes trains on; only that is looked up.
    """
    device = model.device

    def prepare(step: int) -> Batch:
        batch = batches.batch(step)
        if share is not None:
            batch = share(batch)
        batch = on_device(batch, device)
        return batch._replace(lookup=look_up(model, batch.inputs))

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
        ahead = pool.submit(prepare, first) if first < steps else None
        for step in range(first, steps):
            assert ahead is not None
            batch = ahead.result()
            ahead = pool.submit(prepare, step + 1) if step + 1 < steps else None
            yield batch


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with inputs and labels on ``device``; on a GPU without waiting for it."""
    if batch.inputs.device == device:
        return batch
    inputs, labels = (
        each.contiguous().pin_memory().to(device, non_blocking=True)
        for each in (batch.inputs, batch.labels)
    )
    return batch._replace(inputs=inputs, labels=labels)
