"""What ``train.jsonl`` says, for TensorBoard, if asked for; nothing leaves the disk."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from engram_eval.errors import UserError


class Board:
    """Writes events to ``out/tensorboard``; does nothing unless ``wanted``.

    Args:
        out: folder of the training run.
        wanted: whether events are written.
        first: 0-based step at which the run goes on; events of later steps are superseded.

    Raises:
        UserError: the tensorboard package is missing.
    """

    def __init__(self, out: Path, wanted: bool, first: int) -> None:
        self._writer: Any = None
        if not wanted:
            return
        if find_spec("tensorboard") is None:
            raise UserError("--tensorboard needs a package: pip install 'engram-eval[track]'")
        from torch.utils.tensorboard import SummaryWriter

        folder = str(out / "tensorboard")
        self._writer = SummaryWriter(folder, purge_step=first + 1 if first else None)

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Write the numbers of a step; those of a domain are named ``loss_nats/code``."""
        if self._writer is not None:
            for name, value in _scalars(row):
                self._writer.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


def _scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if name == "domains":
            for domain, numbers in value.items():
                yield f"loss_nats/{domain}", numbers["loss_nats"]
        elif isinstance(value, int | float) and name != "step":
            yield name, value
