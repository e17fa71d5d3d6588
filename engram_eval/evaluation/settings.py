"""Which numbers make sense where something is scored."""

from engram_eval.config import EvalConfig
from engram_eval.errors import UserError

LEAST = {"limit": 0, "batch_size": 1, "seq_len": 1, "heldout_sequences": 0}


def check_settings(config: EvalConfig) -> None:
    """Refuse numbers that make no sense.

    Raises:
        UserError: names the number.
    """
    for name, least in LEAST.items():
        if getattr(config, name) < least:
            raise UserError(f"evaluate.{name}={getattr(config, name)}: at least {least} is needed")
    if any(length < 1 for length in config.lengths):
        raise UserError(f"evaluate.lengths={list(config.lengths)}: each must be at least 1")
