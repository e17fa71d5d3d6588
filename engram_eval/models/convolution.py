"""The memory's short convolution along time (arXiv:2601.07372 eq. 5)."""

import torch
from torch import nn


class DepthwiseCausalConv(nn.Module):
    """Depthwise causal convolution along time: taps t, t - dilation, t - 2 dilation, ...

    ``weight`` is (C, 1, kernel_size) as in ``nn.Conv1d``, the last tap being the present token.
    Written as shifted products because that is several times faster than ``conv1d`` on a CPU.
    """

    def __init__(self, channels: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.weight = nn.Parameter(torch.zeros(channels, 1, kernel_size))

    def forward(self, x: torch.Tensor, new: int, texts: torch.Tensor | None = None) -> torch.Tensor:
        """Convolve ``x`` (B, S, C); only the last ``new`` outputs are made, (B, new, C).

        ``texts`` (B, S): each position's text, of several in a row; others' inputs count as zero.
        """
        reach = (self.weight.shape[-1] - 1) * self.dilation
        if x.shape[1] > new + reach:
            # Cut only where there is more: the gradient of a cut is a pass over zeros.
            x = x[:, -(new + reach) :]
        taps = self.weight.squeeze(1).to(x.dtype).unbind(-1)
        missing = new + reach - x.shape[1]
        x = nn.functional.pad(x, (0, 0, missing, 0))
        if texts is not None:
            texts = nn.functional.pad(texts, (missing, 0), value=-1)
        output = self._past(x, texts, 0, new) * taps[0]
        for number, tap in enumerate(taps[1:], start=1):
            past = self._past(x, texts, number * self.dilation, new)
            output = torch.addcmul(output, past, tap)
        return output

    @staticmethod
    def _past(x: torch.Tensor, texts: torch.Tensor | None, start: int, new: int) -> torch.Tensor:
        """Return ``new`` inputs from ``start`` on, zero where the last ones are of another text."""
        past = x[:, start : start + new]
        if texts is None:
            return past
        other = texts[:, start : start + new] != texts[:, -new:]
        return past.masked_fill(other.unsqueeze(-1), 0)
