"""Tables whose rows lie in host memory or on disk, fetched for a batch ahead of their layer.

The rows are no parameter of the model: they stay where they are when the model moves to another
device or dtype. They are read there, in the model's dtype and on its device. They may be quantised,
also on the device; only what is read is then made into numbers again.
"""

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from .fetch import Fetch
from .row_cache import RowCache
from .row_file import scratch_tensor, stored_tensor
from .row_format import CHUNK, ROW_FORMATS, SCALE_BYTES
from .table import RowTable

NOT_TRAINED = (
    "engram_row_quantization={!r}: quantised rows are not trained; "
    "open the model with 'none', or with engram_frozen_table=True"
)


class Used:
    """Rows that a training step has read: distinct numbers (U,), and their values as a leaf."""

    def __init__(self, rows: torch.Tensor, values: torch.Tensor) -> None:
        self.rows, self.values = rows, values


class HostTable(RowTable):
    """A table in host memory, pinned where there is a GPU.

    Attributes:
        weight: (rows, row_dim), a plain tensor; quantised (rows, row_dim + 4), bytes.
        quantization: a key of ``ROW_FORMATS``, or ``none``.
        format: what belongs to it, or None.
        ahead: whether ``fetch`` reads in a thread; otherwise rows are read when they are needed.
        cache: keeps what is read often on the model's device; None for no cache.
        used: what training steps have read since the list was emptied, for row-wise optimisers.
        refresh: called with the distinct rows (U,) before they are read, so that an optimiser can
            bring rows up to date that it has put off.
    """

    anchor: torch.Tensor

    def __init__(
        self,
        rows: int,
        row_dim: int,
        ahead: bool = True,
        cache_rows: int = 0,
        quantization: str = "none",
    ) -> None:
        nn.Module.__init__(self)
        self.frozen, self.ahead, self.cache_rows = False, ahead, cache_rows
        self.row_dim, self.quantization = row_dim, quantization
        self.format = ROW_FORMATS.get(quantization)
        # Moves with the model, and so says where and in which dtype rows are wanted.
        self.register_buffer("anchor", torch.empty(0), persistent=False)
        self.weight = self._room(rows)
        self.draw(0.02)
        self.used: list[Used] = []
        self.refresh: Callable[[torch.Tensor], None] | None = None
        self.cache: RowCache | None = None
        self._fetch: Fetch | None = None
        self._pool: Executor | None = None
        self._stream: torch.cuda.Stream | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the thread, its stream and what it reads: they cannot be copied."""
        return {**self.__dict__, "_fetch": None, "_pool": None, "_stream": None}

    def _room(self, rows: int) -> torch.Tensor:
        if self.format is None:
            return self._new(rows, self.row_dim, torch.float32)
        return self._new(rows, self.row_dim + SCALE_BYTES, torch.uint8)

    def _new(self, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        if self.anchor.device.type == "meta":
            return torch.empty(rows, width, dtype=dtype, device="meta")
        pinned = self._pinned()
        return torch.empty(rows, width, dtype=dtype, device="cpu", pin_memory=pinned)

    def _pinned(self) -> bool:
        return torch.cuda.is_available()

    @torch.no_grad()
    def draw(self, std: float) -> None:
        """Draw all rows anew, with a standard deviation of ``std``; the same ones quantised."""
        if self.format is None:
            nn.init.normal_(self.weight, std=std)
        elif self.weight.device.type != "meta":
            rows = nn.init.normal_(torch.empty(len(self.weight), self.row_dim), std=std)
            self._fill(self.weight, rows)

    def attach(self, stored: torch.Tensor) -> None:
        """Take over rows that were saved; ``stored`` is mapped from their file.

        Raises:
            ValueError: another shape than the table's, or quantised otherwise.
        """
        self._check(stored)
        self.weight = self._fill(self._room(len(stored)), stored)

    def _fill(self, room: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
        """Write ``stored`` rows, plain or quantised, into ``room``, as this table keeps them."""
        if self.format is None:
            room.copy_(stored)
        elif stored.dtype == self.format.dtype:
            room.copy_(stored.view(torch.uint8))
        else:
            for some, rows in zip(room.split(CHUNK), stored.split(CHUNK), strict=True):
                some.copy_(self.format.pack(rows))
        return room

    def _check(self, stored: torch.Tensor) -> None:
        names = {each.dtype: name for name, each in ROW_FORMATS.items()}
        saved = names.get(stored.dtype, "none")
        if saved not in ("none", self.quantization):
            raise ValueError(
                f"table.weight: its rows were saved as {saved!r}; "
                f"engram_row_quantization={self.quantization!r} needs them as they were before"
            )
        width = self.row_dim + (SCALE_BYTES if saved != "none" else 0)
        if stored.shape != (len(self.weight), width):
            model = (len(self.weight), self.row_dim)
            raise ValueError(
                f"table.weight: {tuple(stored.shape)} in the file, {model} in the model"
            )

    def freeze(self) -> None:
        """Keep the rows as they are drawn."""
        self.frozen = True

    def values(self) -> torch.Tensor:
        """Return all rows as numbers, (rows, row_dim), where they lie."""
        if self.format is None:
            return self.weight
        return self.format.unpack(self.weight, torch.float32)

    def fetch(self, rows: torch.Tensor) -> None:
        """Begin to read ``rows`` (B, T, heads), which ``forward`` will be given."""
        if self.ahead:
            self._settle()
            self._pool = self._pool or ThreadPoolExecutor(1, "rows")
            self._fetch = Fetch(rows, self._reader(), self._pool, self._own_stream())

    def forward(self, rows: torch.Tensor, rounded: bool = False) -> torch.Tensor:
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

    def _own_stream(self) -> torch.cuda.Stream | None:
        """Return the stream of the GPU on which rows are copied; None where there is no GPU."""
        device = self.anchor.device
        if device.type != "cuda":
            return None
        if self._stream is None or self._stream.device != device:
            self._stream = torch.cuda.Stream(device)
        return self._stream

    def _learns(self) -> bool:
        learns = self.training and not self.frozen and torch.is_grad_enabled()
        if learns and self.format is not None:
            raise ValueError(NOT_TRAINED.format(self.quantization))
        return learns

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
            place = self.anchor
            self.cache = RowCache(self.cache_rows, self.row_dim, place.dtype, place.device)
        flat = rows.flatten().to(self.anchor.device)
        return self.cache.read(flat, self._gather).view(*rows.shape, -1)

    def _gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Return ``rows`` (...) in the model's dtype on the model's device, (..., row_dim)."""
        values = self._raw(rows)
        if self.format is None:
            # After the move: before it, the CPU would change the dtype, and wait.
            return values.to(self.anchor.device, non_blocking=True).to(self.anchor.dtype)
        moved = values.to(self.anchor.device, non_blocking=True)
        return self.format.unpack(moved, self.anchor.dtype)

    def _raw(self, rows: torch.Tensor) -> torch.Tensor:
        """Return ``rows`` (...) as they are kept, (..., width), in pinned memory for a GPU."""
        if self.anchor.device.type != "cuda" or self.weight.device.type != "cpu":
            return nn.functional.embedding(rows.to(self.weight.device), self.weight)
        flat, width = rows.cpu().flatten(), self.weight.shape[1]
        room = torch.empty(len(flat), width, dtype=self.weight.dtype, pin_memory=True)
        return torch.index_select(self.weight, 0, flat, out=room).view(*rows.shape, width)

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
        return self._room(len(self.weight)).zero_()

    def write(self, rows: torch.Tensor, values: torch.Tensor) -> None:
        """Replace distinct ``rows`` (U,) by ``values`` (U, row_dim)."""
        kept = values.to(self.weight.dtype) if self.format is None else self.format.pack(values)
        self.weight.index_copy_(0, rows.to(self.weight.device), kept)
        if self.cache is not None:
            self.cache.forget(rows)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.device.type == "meta":
            # Not loaded yet: transformers must not put a parameter in its place.
            return
        if self.refresh is not None:
            for some in torch.arange(len(self.weight)).split(CHUNK):
                self.refresh(some)
        weight = self.weight if self.format is None else self.weight.view(self.format.dtype)
        destination[f"{prefix}weight"] = weight

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}weight")
        if stored is not None:
            self._check(stored)
            self._fill(self.weight, stored)
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

    def _new(self, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        if self.anchor.device.type == "meta":
            return torch.empty(rows, width, dtype=dtype, device="meta")
        return scratch_tensor(rows, width, dtype)

    def zeros(self) -> torch.Tensor:
        """Return zeros in the shape of the table, in a file that takes no room yet."""
        return self._room(len(self.weight))

    def attach(self, stored: torch.Tensor) -> None:
        """Take over rows that were saved: the mapping itself, unless they are yet to quantise."""
        if self.format is not None and stored.dtype != self.format.dtype:
            super().attach(stored)
            return
        self._check(stored)
        self.weight = stored if self.format is None else stored.view(torch.uint8)


class QuantizedTable(HostTable):
    """A quantised table on the device: no parameter either, but it goes where the model goes."""

    def _new(self, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(rows, width, dtype=dtype, device=self.anchor.device)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.weight = self.weight.to(self.anchor.device)
        return self


# What transformers must not call unexpected in a checkpoint: ``attach_tables`` reads it.
ATTACHED_KEYS = r"\.table\.weight$"

TABLES: dict[str, type[RowTable]] = {"device": RowTable, "host": HostTable, "disk": DiskTable}


def make_table(
    rows: int,
    row_dim: int,
    storage: str = "device",
    ahead: bool = True,
    cache_rows: int = 0,
    quantization: str = "none",
) -> RowTable:
    """Make a table; ``ahead`` and ``cache_rows`` are for those that lie elsewhere."""
    if storage != "device":
        kind: Any = TABLES[storage]
        made: RowTable = kind(rows, row_dim, ahead, cache_rows, quantization)
        return made
    if quantization == "none":
        return RowTable(rows, row_dim)
    return QuantizedTable(rows, row_dim, ahead=False, quantization=quantization)


def attach_tables(model: nn.Module, source: Any, **options: Any) -> None:
    """Give the tables of a loaded model that lie elsewhere the rows that were saved with it.

    Args:
        model: loaded from ``source``, which may hold the decoder alone or with its head.
        source: a folder or a hub name.
        **options: what ``from_pretrained`` was given.

    Raises:
        ValueError: the saved model has no such table.
    """
    for name, module in model.named_modules():
        if isinstance(module, HostTable):
            names = dict.fromkeys((name, f"model.{name}", name.removeprefix("model.")))
            stored = (stored_tensor(source, f"{each}.weight", **options) for each in names)
            found = next((rows for rows in stored if rows is not None), None)
            if found is None:
                raise ValueError(f"{source} has no {name}.weight")
            module.attach(found)
