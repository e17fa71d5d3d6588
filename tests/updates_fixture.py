"""A small text that tells of a few people often, beside a little arithmetic."""

from pathlib import Path

from engram_eval.config import CorpusConfig, EntityDials, Mix, UpdateConfig
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.progress import Reporter

DIALS = EntityDials(n_entities=8, max_exposures=12, min_exposures=12, zipf_exponent=0.0)
TEXT = CorpusConfig(
    vocab_size=400,
    train_bytes=12_000,
    val_fraction=0.2,
    mix=Mix(code=0.0, docs=0.0, facts=0.0, math=1.0, recall=0.0),
    entities=DIALS,
)

OPTIONS = UpdateConfig(
    people=6, changes=1, steps=40, batch_size=8, weight_rates=(0.3, 1.0), row_rates=(1.0,)
)


def told_corpus(folder: Path) -> Corpus:
    folder.mkdir(parents=True)
    build_corpus({}, TEXT, None, folder, Reporter(quiet=True))
    return load_corpus(folder)
