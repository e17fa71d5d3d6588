"""Which settings make sense where something is trained."""

from engram_eval.config import OF_PARTS, TrainConfig
from engram_eval.errors import UserError, look_up


def check_training(train: TrainConfig) -> None:
    """Refuse settings that no training can have.

    Raises:
        UserError: names the setting.
    """
    from engram_eval.training.optim import OPTIMIZERS

    look_up("optimizer", train.optimizer, OPTIMIZERS)
    for name in ("lr", *OF_PARTS, "clip_norm"):
        if getattr(train, name) <= 0:
            raise UserError(f"train.{name}={getattr(train, name)}: must be above 0")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(train, name) < 1:
            raise UserError(f"train.{name}={getattr(train, name)}: must be in [0, 1)")
    for name in ("warmup_fraction", "min_lr_ratio"):
        if not 0 <= getattr(train, name) <= 1:
            raise UserError(f"train.{name}={getattr(train, name)}: must be in [0, 1]")
    for name in ("tokens", "seq_len", "batch_size"):
        if getattr(train, name) < 1:
            raise UserError(f"train.{name}={getattr(train, name)}: at least 1 is needed")
    for name in (
        *("router_bias_rate", "router_aux_loss_coef", "table_weight_decay", "weight_decay"),
        *("threads", "skip_bad_batches", "save_every_s"),
    ):
        if getattr(train, name) < 0:
            raise UserError(f"train.{name}={getattr(train, name)}: must not be below 0")
    for share in train.checkpoints:
        if not 0 < share <= 1:
            raise UserError(f"train.checkpoints: {share} is not a share of the tokens in (0, 1]")
    size, pieces = train.batch_size, train.accumulate
    if pieces < 1 or size % pieces:
        raise UserError(f"train.accumulate={pieces}: must divide train.batch_size={size}")
