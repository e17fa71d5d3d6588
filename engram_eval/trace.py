"""One text's way through the memory: tokens, n-grams, rows, gates, and what was added."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.adapters.load import open_model
from engram_eval.config import CorpusConfig
from engram_eval.errors import UserError
from engram_eval.ledger import architecture_config
from engram_eval.models.compression import text_normalizer
from engram_eval.models.hashing import TokenHistory
from engram_eval.models.layout import table_layouts
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.scales import SCALES
from engram_eval.variants import engram

NOTHING = "·"
PROMOTED = 3
RANDOM_VOCAB = 2048


class Ngram(NamedTuple):
    """What one order looked up for a token.

    Attributes:
        texts: of the compressed tokens, the oldest first; ``NOTHING`` beyond the text's start.
        rows: one per head, within the head's own table.
    """

    texts: tuple[str, ...]
    rows: tuple[int, ...]


class Write(NamedTuple):
    """What the memory of one layer did for a token.

    Attributes:
        gate: between 0 and 1; None for a memory without one.
        added: length of what was added to the residual stream.
        stream: length of the stream before that.
        promoted: tokens that the added vector alone raises most, by the unembedding.
    """

    layer: int
    ngrams: tuple[Ngram, ...]
    gate: float | None
    added: float
    stream: float
    promoted: tuple[str, ...]


class Step(NamedTuple):
    """One token: its text, its id, its id after compression, and what each memory did."""

    text: str
    id: int
    compressed: int
    writes: tuple[Write, ...]


class Trace(NamedTuple):
    """A traced text; ``model`` says whose memory it went through."""

    text: str
    model: str
    steps: tuple[Step, ...]


def trace_folder(text: str, folder: Path) -> Trace:
    """Trace ``text`` through a saved model.

    Raises:
        UserError: no model there, or one whose memory reads no tokens.
    """
    adapter = open_model(folder)
    return trace(text, adapter, AutoTokenizer.from_pretrained(folder), str(folder))


def trace_random(text: str, seed: int = 0) -> Trace:
    """Trace ``text`` through an untrained model of the quick scale, with a tokenizer made here.

    Tokens, n-grams and rows are what a trained model of this tokenizer would have; gates and what
    is added mean nothing yet.
    """
    tokenizer = small_tokenizer()
    shape = {**engram(SCALES["quick"]), "vocab_size": len(tokenizer)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EngramForCausalLM(architecture_config(shape))
    model.set_tokenizer(tokenizer)
    return trace(
        text, open_model(model), tokenizer, "an untrained model, whose gates mean nothing yet"
    )


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Learn a tokenizer from the facts that the package carries; takes about a second."""
    from engram_eval.corpus.facts import facts_documents
    from engram_eval.corpus.tokenizer import EOS, train_tokenizer

    texts = (document.text for document in facts_documents(CorpusConfig(train_bytes=500_000)))
    backend = train_tokenizer(texts, RANDOM_VOCAB)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=EOS, bos_token=EOS, pad_token=EOS
    )


def trace(text: str, adapter: Adapter, tokenizer: PreTrainedTokenizerBase, name: str) -> Trace:
    """Run ``text`` through a model and collect what its memories did.

    Raises:
        UserError: the model's memory reads no tokens, or the text is empty or too long.
    """
    core: Any = adapter.backbone
    if getattr(core, "token_history", None) is None:
        raise UserError(f"{name}: no memory that looks up tokens, so there is nothing to trace")
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    if not 1 <= ids.shape[1] <= adapter.max_positions:
        raise UserError(f"the text has {ids.shape[1]} tokens: must be 1 to {adapter.max_positions}")
    sites = ("memory_out", "memory_gate", "resid_pre")
    taps = [Tap(site, layer) for layer in adapter.memory_layers for site in sites]
    with torch.no_grad(), adapter.record([tap for tap in taps if tap in adapter.places]) as found:
        adapter.run(ids)
    words = Words(tokenizer, core.token_history)
    history, rows = core.token_history(ids, ids.shape[1])[:, 0], core.ngram_rows(ids)
    by_layer = []
    for layer in adapter.memory_layers:
        ngrams = ngrams_of(core, layer, rows[layer][0], history, words)
        by_layer.append(_writes(adapter, layer, ngrams, found, words))
    compressed = core.token_history.compressed_ids[ids[0]].tolist()
    tokens = zip(ids[0].tolist(), compressed, zip(*by_layer, strict=True), strict=True)
    steps = (Step(words.token(one), one, small, writes) for one, small, writes in tokens)
    return Trace(text, name, tuple(steps))


class Words:
    """Texts of tokens and of compressed tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, history: TokenHistory) -> None:
        self.tokenizer = tokenizer
        self.normalizer = text_normalizer() if history.compressed else None
        classes = history.compressed_ids.tolist()
        self.first = {c: i for i, c in reversed(list(enumerate(classes)))}

    def token(self, token: int) -> str:
        """Return the text of a token id."""
        if token >= len(self.tokenizer):
            return f"<{token}>"
        return str(self.tokenizer.decode([token]))

    def compressed(self, number: int) -> str:
        """Return the text that all tokens of a class have in common."""
        text = self.token(self.first[number])
        return text if self.normalizer is None else self.normalizer.normalize_str(text) or text


def ngrams_of(
    core: Any, layer: int, rows: Tensor, history: Tensor, words: Words
) -> list[tuple[Ngram, ...]]:
    """Return each token's n-grams, one per order.

    Args:
        core: the decoder.
        layer: whose memory.
        rows: (T, heads) of the whole table.
        history: (N, T) compressed ids; [k] is the id k places back.
        words: texts.
    """
    config = core.config
    starts = torch.tensor([0, *table_layouts(config)[layer].head_rows[:-1]]).cumsum(0)
    orders = [1] if config.engram_memory == "per_layer" else config.engram_ngram_orders
    parts = (rows - starts).unflatten(1, (len(orders), -1))
    pad = int(core.token_history.compressed_ids[core.token_history.pad_id])
    found = []
    for column, own in zip(history.T.tolist(), parts.tolist(), strict=True):
        texts = [words.compressed(one) if one != pad else NOTHING for one in column]
        found.append(
            tuple(
                Ngram(tuple(reversed(texts[:order])), tuple(numbers))
                for order, numbers in zip(orders, own, strict=True)
            )
        )
    return found


def _writes(
    adapter: Adapter,
    layer: int,
    ngrams: list[tuple[Ngram, ...]],
    found: Mapping[Tap, Tensor],
    words: Words,
) -> list[Write]:
    """Return what the memory of ``layer`` did for each token."""
    added, stream = found[Tap("memory_out", layer)][0], found[Tap("resid_pre", layer)][0]
    gates = found.get(Tap("memory_gate", layer))
    best = adapter.unembed(added).topk(PROMOTED, dim=-1).indices.tolist()
    return [
        Write(
            layer,
            ngrams[place],
            None if gates is None else float(gates[0, place].mean()),
            float(added[place].norm()),
            float(stream[place].norm()),
            tuple(words.token(one) for one in best[place]),
        )
        for place in range(len(added))
    ]
