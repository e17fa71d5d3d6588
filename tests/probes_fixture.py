"""Small models and samples whose probing results are known in advance."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from engram_eval.config import CorpusConfig, EntityDials, Mix
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.models import EngramConfig, EngramForCausalLM
from engram_eval.progress import Reporter
from probes.sample import Sample
from probes.token_tasks import KINDS

VOCAB = 48
# One spelling per kind of token, taken in turn by the ids from 1 on; id 0 ends documents.
SPELLINGS = ("\n", "7", " word", "ing", "(")
PEOPLE = CorpusConfig(
    vocab_size=400,
    train_bytes=30_000,
    val_fraction=0.3,
    mix=Mix(code=0, docs=0, facts=0.7, math=0.2, recall=0.1),
    entities=EntityDials(n_entities=8, max_exposures=6, min_exposures=3),
)


def llama(layers: int = 3, d_model: int = 32, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Build a Llama of known size with random weights, gains included."""
    torch.manual_seed(seed)
    config = {
        "vocab_size": VOCAB,
        "hidden_size": d_model,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 2 * d_model,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return _randomise(LlamaForCausalLM(LlamaConfig(**{**config, **changes})))


def engram(layers: int = 3, d_model: int = 32, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Build one of our models with a memory in block 1 and random weights."""
    torch.manual_seed(seed)
    config = {
        "vocab_size": VOCAB,
        "hidden_size": d_model,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 2 * d_model,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "engram_layers": [1],
        "engram_ngram_orders": [2, 3],
        "engram_heads": 2,
        "engram_rows": [101, 101],
        "engram_row_dim": 8,
        "engram_compression": False,
    }
    return _randomise(EngramForCausalLM(EngramConfig(**{**config, **changes})))


def _randomise(model: PreTrainedModel) -> PreTrainedModel:
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def silence(model: PreTrainedModel, layers: Iterable[int]) -> PreTrainedModel:
    """Let blocks of a Llama or dense Engram model add nothing."""
    with torch.no_grad():
        for layer in layers:
            model.model.layers[layer].self_attn.o_proj.weight.zero_()
            model.model.layers[layer].mlp.down_proj.weight.zero_()
    return model


class PreviousToken(nn.Module):
    """Attention that fetches a map of the previous token's state, and nothing else."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        before = nn.functional.pad(hidden_states, (0, 0, 1, 0))[:, :-1]
        return self.out(before), None


def sample(
    token: np.ndarray, documents: int = 8, seed: int = 0, texts: tuple[str, ...] | None = None
) -> Sample:
    """Make a sample of windows (N, T + 1) of made-up text in two domains."""
    rng = np.random.default_rng(seed)
    rows = np.arange(len(token)) * documents // len(token)
    document = np.repeat(rows[:, None], token.shape[1], axis=1)
    return Sample(
        token=token,
        position=np.arange(token.size).reshape(token.shape),
        document=document,
        domain=document % 2,
        surprisal_bits=rng.uniform(0, 8, token.shape),
        longest_bits=rng.uniform(0, 8, token.shape),
        unigram_bits=np.full(token.shape, np.log2(VOCAB)),
        name_end=np.zeros(token.shape, dtype=bool),
        domains=("even", "odd"),
        texts=texts or ("<|endoftext|>", *(SPELLINGS[i % 5] for i in range(VOCAB - 1))),
        seed=seed,
    )


def noise_sample(windows: int = 16, length: int = 32, seed: int = 0) -> Sample:
    """Make a sample of independent random tokens (ids from 1), one document per two windows."""
    rng = np.random.default_rng(seed)
    return sample(rng.integers(1, VOCAB, (windows, length + 1)), windows // 2, seed)


def small_corpus(folder: Path) -> Corpus:
    """Build a corpus of some 60 short made-up texts in two domains."""
    rng = np.random.default_rng(0)
    words = ["the", "of", "cat", "dog", "runs", "under", "over", "house", "(7)", "=", "x1", "blue"]
    for domain in ("prose", "verse"):
        (folder / "text" / domain).mkdir(parents=True)
        for number in range(60):
            lines = [" ".join(rng.choice(words, 12)) for _ in range(8)]
            path = folder / "text" / domain / f"{number}.txt"
            path.write_text("\n".join(lines) + "\n")
    config = CorpusConfig(
        paths=(str(folder / "text" / "prose"), str(folder / "text" / "verse")),
        vocab_size=320,
        train_bytes=0,
        val_fraction=0.4,
    )
    out = folder / "corpus"
    out.mkdir()
    build_corpus({}, config, None, out, Reporter(quiet=True))
    return load_corpus(out)


assert len(KINDS) == len(SPELLINGS) + 1
