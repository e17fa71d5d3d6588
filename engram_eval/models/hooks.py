"""Whether somebody looks at a module, which must then be called."""

from torch import nn


def is_unhooked(part: nn.Module) -> bool:
    """Whether nobody sees or changes what goes in and out of ``part``, or its gradients."""
    forward = part._forward_pre_hooks, part._forward_hooks
    return not any(forward) and not any((part._backward_pre_hooks, part._backward_hooks))
