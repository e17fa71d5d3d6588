"""Registration with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_engram import EngramConfig
from .modeling_engram import EngramForCausalLM, EngramModel


def register() -> None:
    """Make the architecture known to transformers' Auto classes; may be called again."""
    AutoConfig.register(EngramConfig.model_type, EngramConfig, exist_ok=True)
    AutoModel.register(EngramConfig, EngramModel, exist_ok=True)
    AutoModelForCausalLM.register(EngramConfig, EngramForCausalLM, exist_ok=True)
