"""Which settings make sense where a text is made."""

from engram_eval.config import CorpusConfig
from engram_eval.corpus.budget import check_shares
from engram_eval.corpus.entities import check_dials
from engram_eval.corpus.packed import is_packed
from engram_eval.corpus.tokenizer import check_vocab_size
from engram_eval.errors import UserError


def check_corpus(config: CorpusConfig) -> None:
    """Refuse settings that no text can have; what lies at its paths is not read.

    Raises:
        UserError: names the setting.
    """
    if not config.tokenizer:
        check_vocab_size(config.vocab_size)
    elif is_packed(config.paths):
        raise UserError(
            f"corpus.tokenizer={config.tokenizer!r}: {config.paths[0]} is tokenised already; pack "
            "it with this tokenizer, or leave one of the two out"
        )
    if not 0 < config.val_fraction < 1:
        raise UserError(f"corpus.val_fraction {config.val_fraction}: must lie between 0 and 1")
    if config.train_bytes < 0 or not (config.train_bytes or config.paths):
        raise UserError(f"corpus.train_bytes {config.train_bytes}: must be positive")
    if not config.paths:
        check_shares(config)
        check_dials(config.entities)
