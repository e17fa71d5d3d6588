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

    def forward(self, x: torch.Tensor, new: int) -> torch.Tensor:
        """Convolve ``x`` (B, S, C); only the last ``new`` outputs are made, (B, new, C)."""
        reach = (self.weight.shape[-1] - 1) * self.dilation
        if x.shape[1] > new + reach:
            # Cut only where there is more: the gradient of a cut is a pass over zeros.
            x = x[:, -(new + reach) :]
        taps = self.weight.squeeze(1).to(x.dtype).unbind(-1)
        x = nn.functional.pad(x, (0, 0, new + reach - x.shape[1], 0))
        output = x[:, :new] * taps[0]
        for number, tap in enumerate(taps[1:], start=1):
            start = number * self.dilation
            output = torch.addcmul(output, x[:, start : start + new], tap)
        return output
