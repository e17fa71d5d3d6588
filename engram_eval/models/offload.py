"""Tables whose rows lie in host memory or on disk, fetched for a batch ahead of their layer.

The rows are no parameter of the model: they stay where they are when the model moves to another
device or dtype. They are read there, in the model's dtype and on its device.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .row_cache import RowCache
from .row_file import scratch_tensor, stored_tensor
from .table import RowTable


class Fetch:
    """Rows that are being read in a thread of their own.

    Args:
        rows: what is read; identifies the fetch.
        read: returns the values of ``rows``.
        device: where the values are wanted; on CUDA they are copied on a stream of their own.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        read: Callable[[torch.Tensor], Any],
        device: torch.device,
    ) -> None:
        self.rows = rows
        self._values: Any = None
        self._error: BaseException | None = None
        self._device, self._event = device, None
        self._thread = threading.Thread(target=self._run, args=(read,), daemon=True)
        self._thread.start()

    def _run(self, read: Callable[[torch.Tensor], Any]) -> None:
        try:
            with torch.no_grad():
                if self._device.type == "cuda":
                    self._read_on_side_stream(read)
                else:
                    self._values = read(self.rows)
        # It is raised where the values are asked for.
        except BaseException as error:
            self._error = error

    def _read_on_side_stream(self, read: Callable[[torch.Tensor], Any]) -> None:
        with torch.cuda.stream(torch.cuda.Stream(self._device)) as stream:
            self._values = read(self.rows)
            self._event = stream.record_event()

    def wait(self) -> None:
        """Wait until nothing is read any more."""
        self._thread.join()

    def result(self) -> Any:
        """Wait for the values and return them."""
        self.wait()
        if self._error is not None:
            raise self._error
        if self._event is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(self._event)
            values = self._values if isinstance(self._values, torch.Tensor) else self._values[-1]
            values.record_stream(current)
        return self._values


class Used:
    """Rows that a training step has read: distinct numbers (U,), and their values as a leaf."""

    def __init__(self, rows: torch.Tensor, values: torch.Tensor) -> None:
        self.rows, self.values = rows, values


class HostTable(RowTable):
    """A table in host memory, pinned where there is a GPU.

    Attributes:
        weight: (rows, row_dim), a plain tensor.
        ahead: whether ``fetch`` reads in a thread; otherwise rows are read when they are needed.
        cache: keeps what is read often on the model's device; None for no cache.
        used: what training steps have read since the list was emptied, for row-wise optimisers.
        refresh: called with the distinct rows (U,) before they are read, so that an optimiser can
            bring rows up to date that it has put off.
    """

    anchor: torch.Tensor

    def __init__(self, rows: int, row_dim: int, ahead: bool = True, cache_rows: int = 0) -> None:
        nn.Module.__init__(self)
        self.frozen, self.ahead, self.cache_rows = False, ahead, cache_rows
        # Moves with the model, and so says where and in which dtype rows are wanted.
        self.register_buffer("anchor", torch.empty(0), persistent=False)
        self.weight = self._new(rows, row_dim)
        nn.init.normal_(self.weight, std=0.02)
        self.used: list[Used] = []
        self.refresh: Callable[[torch.Tensor], None] | None = None
        self.cache: RowCache | None = None
        self._fetch: Fetch | None = None

    def _new(self, rows: int, row_dim: int) -> torch.Tensor:
        return torch.empty(rows, row_dim, pin_memory=self._pinned())

    def _pinned(self) -> bool:
        return torch.cuda.is_available() and self.anchor.device.type != "meta"

    def attach(self, stored: torch.Tensor) -> None:
        """Take over rows that were saved; ``stored`` is mapped from their file.

        Raises:
            ValueError: another shape than the table's.
        """
        self._check(stored)
        room = torch.empty(stored.shape, dtype=stored.dtype, pin_memory=self._pinned())
        self.weight = room.copy_(stored)

    def _check(self, stored: torch.Tensor) -> None:
        if stored.shape != self.weight.shape:
            shapes = f"{tuple(stored.shape)} in the file, {tuple(self.weight.shape)} in the model"
            raise ValueError(f"table.weight: {shapes}")

    def freeze(self) -> None:
        """Keep the rows as they are drawn."""
        self.frozen = True

    def values(self) -> torch.Tensor:
        """Return all rows, where they lie."""
        return self.weight

    def fetch(self, rows: torch.Tensor) -> None:
        """Begin to read ``rows`` (B, T, heads), which ``forward`` will be given."""
        if self.ahead:
            self._settle()
            self._fetch = Fetch(rows, self._reader(), self.anchor.device)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Read ``rows`` (B, T, heads) and concatenate them: (B, T, heads * row_dim), eq. 2."""
        fetched = self._settle()
        known = fetched is not None and fetched.rows is rows
        found = fetched.result() if fetched is not None and known else self._reader()(rows)
        if not self._learns():
            return found.flatten(-2)
        distinct, places, values = found
        leaf = values.requires_grad_()
        self.used.append(Used(distinct, leaf))
        return nn.functional.embedding(places, leaf).flatten(-2)

    def _settle(self) -> Fetch | None:
        """End the fetch that is under way, if any, and return it: one thread reads at a time."""
        fetched, self._fetch = self._fetch, None
        if fetched is not None:
            fetched.wait()
        return fetched

    def _learns(self) -> bool:
        return self.training and not self.frozen and torch.is_grad_enabled()

    def _reader(self) -> Callable[[torch.Tensor], Any]:
        return self._read_distinct if self._learns() else self._read

    @torch.no_grad()
    def _read_distinct(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the distinct rows (U,), each read's place among them, and their values."""
        distinct, places = rows.cpu().unique(return_inverse=True)
        if self.refresh is not None:
            self.refresh(distinct)
        values = self._gather(distinct)
        return distinct, places.to(values.device), values

    # What is cached outlives an inference mode.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _read(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (B, T, heads, row_dim)."""
        if self.refresh is not None:
            self.refresh(rows.cpu().unique())
        if self.cache_rows == 0:
            return self._gather(rows)
        if self.cache is None:
            width, place = self.weight.shape[1], self.anchor
            self.cache = RowCache(self.cache_rows, width, place.dtype, place.device)
        flat = rows.flatten().to(self.anchor.device)
        return self.cache.read(flat, self._gather).view(*rows.shape, -1)

    def _gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Return ``rows`` (...) in the model's dtype on the model's device, (..., row_dim)."""
        values = nn.functional.embedding(rows.cpu(), self.weight)
        if self.anchor.device.type == "cuda":
            values = values.pin_memory()
        return values.to(self.anchor.device, self.anchor.dtype, non_blocking=True)

    def merge_used(self) -> list[Used]:
        """Join what several passes have read and its gradients into one entry, or none."""
        if len(self.used) > 1:
            numbers = torch.cat([each.rows for each in self.used])
            grads = [each.values.grad for each in self.used]
            found = [
                torch.zeros_like(each.values) if grad is None else grad
                for each, grad in zip(self.used, grads, strict=True)
            ]
            rows, places = numbers.unique(return_inverse=True)
            values = found[0].new_zeros(len(rows), found[0].shape[1])
            places = places.to(values.device)
            joined = Used(rows, values)
            values.grad = torch.zeros_like(values).index_add_(0, places, torch.cat(found))
            self.used = [joined]
        return self.used

    def zeros(self) -> torch.Tensor:
        """Return zeros in the shape of the table, where it lies."""
        return self._new(*self.weight.shape).zero_()

    def write(self, rows: torch.Tensor, values: torch.Tensor) -> None:
        """Replace distinct ``rows`` (U,) by ``values`` (U, row_dim)."""
        self.weight.index_copy_(0, rows, values.to(self.weight.dtype))
        if self.cache is not None:
            self.cache.forget(rows)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.device.type == "meta":
            # Not loaded yet: transformers must not put a parameter in its place.
            return
        if self.refresh is not None:
            for some in torch.arange(len(self.weight)).split(2**16):
                self.refresh(some)
        destination[f"{prefix}weight"] = self.weight

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}weight")
        if stored is not None:
            self._check(stored)
            self.weight.copy_(stored)
            if self.cache is not None:
                self.cache.forget()
        rest = {key: value for key, value in state_dict.items() if key != f"{prefix}weight"}
        super()._load_from_state_dict(rest, prefix, *args)
        if stored is None:
            _, _, missing, _, _ = args
            missing.append(f"{prefix}weight")


class DiskTable(HostTable):
    """A table in a memory-mapped file: the saved model's own, or a temporary one for new rows.

    A saved model's file is never written: rows that are trained change in memory, page by page.
    """

    def _new(self, rows: int, row_dim: int) -> torch.Tensor:
        if self.anchor.device.type == "meta":
            return torch.empty(rows, row_dim, device="meta")
        return scratch_tensor(rows, row_dim)

    def zeros(self) -> torch.Tensor:
        """Return zeros in the shape of the table, in a file that takes no room yet."""
        return self._new(*self.weight.shape)

    def attach(self, stored: torch.Tensor) -> None:
        """Take over rows that were saved: the mapping itself."""
        self._check(stored)
        self.weight = stored


# What transformers must not call unexpected in a checkpoint: ``attach_tables`` reads it.
ATTACHED_KEYS = r"\.table\.weight$"

TABLES: dict[str, type[RowTable]] = {"device": RowTable, "host": HostTable, "disk": DiskTable}


def make_table(
    rows: int, row_dim: int, storage: str = "device", ahead: bool = True, cache_rows: int = 0
) -> RowTable:
    """Make a table; ``ahead`` and ``cache_rows`` are for those that lie elsewhere."""
    if storage == "device":
        return RowTable(rows, row_dim)
    made = TABLES[storage](rows, row_dim, ahead, cache_rows)  # type: ignore[call-arg]
    return made


def attach_tables(model: nn.Module, source: Any, **options: Any) -> None:
    """Give the tables of a loaded model that lie elsewhere the rows that were saved with it.

    Args:
        model: loaded from ``source``.
        source: a folder or a hub name.
        **options: what ``from_pretrained`` was given.

    Raises:
        ValueError: the saved model has no such table.
    """
    for name, module in model.named_modules():
        if isinstance(module, HostTable):
            stored = stored_tensor(source, f"{name}.weight", **options)
            if stored is None:
                raise ValueError(f"{source} has no {name}.weight")
            module.attach(stored)
