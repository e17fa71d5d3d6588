"""AdamW that touches only the rows that a step reads, and still equals AdamW on all of them.

AdamW moves every row at every step: moments decay, and what is left of them moves the row on. A
row that has never been read has no moments and, without weight decay, stays. All others can wait:
what a row has missed is made up for, step by step and with each step's own rate, when it is read
again or saved. The same kernel does the same arithmetic, so that nothing differs, not even in the
last bit, as long as a row is a whole number of the processor's vectors (else now and then in the
last bit).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engram_eval.config import TrainConfig
from engram_eval.models.offload import HostTable

NOTHING = 2.0**-50
"""What an update must have shrunk to, over its first size, before a row counts as settled."""


class RowAdamW:
    """Moments of one table that does not lie on the device.

    Args:
        table: its ``refresh`` is set, so that rows are up to date when they are read.
        betas: of both moments.
        decay: weight decay; with it rows that were never read wait, too, and nothing is left out
            of what is made up for.

    Attributes:
        moments: exp_avg and exp_avg_sq, (rows, row_dim) each, where the table lies.
        last: (rows,) the 1-based step up to which a row is up to date; 0 if it was never read.
        rates: the rate of each step so far.
    """

    def __init__(self, table: HostTable, betas: tuple[float, float], decay: float = 0.0) -> None:
        self.table, self.betas, self.decay = table, betas, decay
        self.moments = (table.zeros(), table.zeros())
        self.last = torch.zeros(len(table.weight), dtype=torch.int32)
        self.rates: list[float] = []
        # Updates shrink at least by this factor a step: m by beta1, the root of v by sqrt(beta2).
        shrink = betas[0] / math.sqrt(betas[1])
        ends = 0 < shrink < 1 and not decay
        self.settled = math.ceil(math.log(NOTHING) / math.log(shrink)) if ends else None
        table.refresh = self.refresh

    @torch.no_grad()
    def refresh(self, rows: Tensor) -> None:
        """Bring distinct ``rows`` (U,) up to date."""
        last = self.last[rows]
        due = (last < len(self.rates)) & (last >= (0 if self.decay else 1))
        if bool(due.any()):
            self._make_up(rows[due], last[due])

    def _make_up(self, rows: Tensor, last: Tensor) -> None:
        """Make up for the steps that ``rows`` (U,) have missed since their ``last`` (U,)."""
        last, order = last.sort()
        rows = rows[order]
        values, *moments = self._read(rows)
        now, first = len(self.rates), int(last[0]) + 1
        steps = torch.arange(first, now + 1)
        # The longest ago comes first: those that still move at a step stand side by side.
        waiting = torch.searchsorted(last, steps).tolist()
        still = [0] * len(steps)
        if self.settled is not None:
            still = torch.searchsorted(last + self.settled, steps).tolist()
        nothing = torch.zeros_like(values)
        for step, begin, end in zip(steps.tolist(), still, waiting, strict=True):
            if begin < end:
                some = slice(begin, end)
                self._update(values[some], nothing[some], [each[some] for each in moments], step)
        if self.settled is not None:
            self._decay(moments, (now - self.settled - last).clamp_min(0))
        self._write(rows, values, moments)

    def _decay(self, moments: list[Tensor], skipped: Tensor) -> None:
        """Shrink moments by the steps that are left out because they move nothing any more."""
        for moment, beta in zip(moments, self.betas, strict=True):
            moment *= torch.pow(beta, skipped.double()).to(moment.dtype).unsqueeze(1)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Take a step with the gradients of what the table has ``used``."""
        self.rates.append(rate)
        for used in self.table.merge_used():
            if used.values.grad is not None:
                values, *moments = self._read(used.rows)
                gradient = used.values.grad.to(values.device, values.dtype)
                self._update(values, gradient, moments, len(self.rates))
                self._write(used.rows, values, moments)

    def _read(self, rows: Tensor) -> list[Tensor]:
        return [each[rows] for each in (self.table.weight, *self.moments)]

    def _write(self, rows: Tensor, values: Tensor, moments: list[Tensor]) -> None:
        self.table.write(rows, values)
        for kept, moment in zip(self.moments, moments, strict=True):
            kept.index_copy_(0, rows, moment)
        self.last[rows] = len(self.rates)

    def _update(self, values: Tensor, gradient: Tensor, moments: list[Tensor], step: int) -> None:
        # What ``torch.optim.AdamW(fused=True)`` calls, without the 50 us that it takes around it.
        torch._fused_adamw_(
            [values],
            [gradient],
            [moments[0]],
            [moments[1]],
            [],
            [torch.tensor(float(step))],
            lr=self.rates[step - 1],
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def pack(self) -> dict[str, Tensor]:
        """Return what a resume point must hold beside the rows."""
        first, second = self.moments
        rates = torch.tensor(self.rates, dtype=torch.float64)
        return {"exp_avg": first, "exp_avg_sq": second, "last": self.last, "rates": rates}

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the tensors of ``pack`` back."""
        for kept, name in zip(self.moments, ("exp_avg", "exp_avg_sq"), strict=True):
            kept.copy_(tensors[name])
        self.last.copy_(tensors["last"])
        self.rates = tensors["rates"].tolist()


class AdamWWithRows(torch.optim.AdamW):
    """AdamW over parameters, and over the rows of tables that are no parameters.

    Args:
        groups: as ``parameter_groups`` returns them; the first one's ``lr_scale`` is 1.
        config: training settings.
        tables: name -> table.
    """

    def __init__(
        self, groups: list[dict[str, Any]], config: TrainConfig, tables: Mapping[str, HostTable]
    ) -> None:
        betas = (config.beta1, config.beta2)
        super().__init__(groups, lr=config.lr, betas=betas, fused=True)
        self.table_scale = config.table_lr_multiplier
        decay = config.table_weight_decay
        self.rows = {name: RowAdamW(table, betas, decay) for name, table in tables.items()}

    def step(self, closure: Any = None) -> Any:
        """Take a step on all parameters and on the rows that were read."""
        loss = super().step(closure)
        rate = self.param_groups[0]["lr"] * self.table_scale
        for rows in self.rows.values():
            rows.step(rate)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, and which rows were read."""
        super().zero_grad(set_to_none)
        for rows in self.rows.values():
            rows.table.used.clear()


def trained_tables(model: nn.Module) -> dict[str, HostTable]:
    """Return the tables that do not lie on the device and are trained, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, HostTable) and not module.frozen
    }
