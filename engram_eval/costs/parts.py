"""Costs of the building blocks that every count in the ledger is made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Cost of one component: parameters, those that a token touches, forward FLOPs per token."""

    params: int = 0
    active: int = 0
    flops: int = 0

    def __add__(self, other: "Part") -> "Part":
        return Part(
            self.params + other.params, self.active + other.active, self.flops + other.flops
        )

    def times(self, count: int) -> "Part":
        """Return the cost of ``count`` such components."""
        return Part(count * self.params, count * self.active, count * self.flops)


def linear(inputs: int, outputs: int, bias: bool = False) -> Part:
    """Return the cost of a linear layer."""
    params = inputs * outputs + (outputs if bias else 0)
    return Part(params, params, 2 * inputs * outputs)


def swiglu(width: int, inner: int) -> Part:
    """Return the cost of a SwiGLU layer, or of one expert: three projections."""
    return linear(width, inner).times(2) + linear(inner, width)


def norm(width: int) -> Part:
    """Return the cost of an RMSNorm's gains."""
    return Part(width, width)
