"""Registration with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_engram import EngramConfig
from .modeling_engram import EngramForCausalLM, EngramModel


def register() -> None:
    """Make the architecture known to transformers' Auto classes; may be called again.

    Saved folders then also carry the code, so that ``trust_remote_code=True`` loads them where
    this package is not installed.
    """
    AutoConfig.register(EngramConfig.model_type, EngramConfig, exist_ok=True)
    AutoModel.register(EngramConfig, EngramModel, exist_ok=True)
    AutoModelForCausalLM.register(EngramConfig, EngramForCausalLM, exist_ok=True)
    EngramConfig.register_for_auto_class()
    EngramModel.register_for_auto_class("AutoModel")
    EngramForCausalLM.register_for_auto_class("AutoModelForCausalLM")
