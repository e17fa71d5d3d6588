"""Language models whose scores are known beforehand, and a small corpus to score on."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from engram_eval.config import CorpusConfig, EntityDials, Mix
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.evaluation.items import build_items
from engram_eval.progress import Reporter

VOCAB = 300
QUIET = Reporter(quiet=True)

# Without the standard library, so that it is built in a moment.
SMALL = CorpusConfig(
    vocab_size=VOCAB,
    train_bytes=40_000,
    mix=Mix(code=0.0, docs=0.0, facts=0.4, math=0.3, recall=0.3),
    entities=EntityDials(n_entities=12, max_exposures=6, min_exposures=2),
)


def small_corpus(folder: Path) -> Corpus:
    folder.mkdir(parents=True)
    build_corpus({}, SMALL, None, folder, QUIET)
    return load_corpus(folder)


def tiny_inputs(folder: Path, corpus: Corpus) -> dict[str, Path]:
    """Make what an evaluation takes: the corpus, its items, and a model that knows nothing."""
    build_items({"corpus": corpus.folder}, SMALL, None, folder / "items", QUIET)
    tiny_llama().save_pretrained(folder / "train" / "model")
    corpus.tokenizer().save_pretrained(folder / "train" / "model")
    return {"corpus": corpus.folder, "items": folder / "items", "train": folder / "train"}


class PlantedLM(LM):
    """Knows the right answers (``nats_per_byte`` is what a byte of a wrong one costs more).

    It scores choices alone: a task that asks it for text is the wrong one to plant.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], nats_per_byte: float) -> None:
        super().__init__()
        self.gold = {(item["query"], item["choices"][item["gold"]]) for item in items}
        self.nats_per_byte = nats_per_byte
        self.calls = 0

    def loglikelihood(self, requests: list[Instance], **_: Any) -> list[tuple[float, bool]]:
        self.calls += 1
        return [self._score(*request.args) for request in requests]

    def _score(self, context: str, continuation: str) -> tuple[float, bool]:
        known = (context, continuation) in self.gold
        size = len(continuation.encode())
        return -size * (math.log(2) + (0.0 if known else self.nats_per_byte)), known

    def loglikelihood_rolling(self, requests: list[Instance], **_: Any) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Instance], **_: Any) -> list[str]:
        raise NotImplementedError


class UniformModel(nn.Module):
    """Gives every token the same probability."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, self.vocab_size))


def tiny_llama(vocab_size: int = VOCAB, seed: int = 0) -> LlamaForCausalLM:
    """Make a random stock model, sharp enough that tokens differ in cost."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()
