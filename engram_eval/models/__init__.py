"""The suite's own architecture; the names below load torch and transformers when first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_engram import EngramConfig
    from .modeling_engram import EngramForCausalLM, EngramModel

__all__ = ["EngramConfig", "EngramForCausalLM", "EngramModel"]


def __getattr__(name: str) -> Any:
    """Load and register the classes on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import configuration_engram, modeling_engram
    from .register import register

    register()
    home = configuration_engram if name == "EngramConfig" else modeling_engram
    return getattr(home, name)
