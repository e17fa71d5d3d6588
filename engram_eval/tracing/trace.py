"""One text's way through the memory: tokens, n-grams, rows, gates, and what was added."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from engram_eval.adapters.base import Adapter, Reads, Tap, widened
from engram_eval.adapters.load import open_model
from engram_eval.config import CorpusConfig
from engram_eval.corpus.tokenizer_file import opened
from engram_eval.costs.ledger import architecture_config
from engram_eval.errors import UserError
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.scales import SCALES
from engram_eval.tracing.words import Words
from engram_eval.variants import engram

PROMOTED = 3
RANDOM_VOCAB = 2048


class Ngram(NamedTuple):
    """What one order looked up for a token.

    Attributes:
        texts: of the compressed tokens, the oldest first; ``words.NOTHING`` beyond the start.
        rows: one per head, within the head's own table.
        sizes: rows of each head's table.
    """

    texts: tuple[str, ...]
    rows: tuple[int, ...]
    sizes: tuple[int, ...]


class Write(NamedTuple):
    """What the memory of one layer did for a token.

    Attributes:
        gate: between 0 and 1, the mean over residual streams; None for a memory without one.
        gates: of each stream.
        added: length of what was added to the residual stream.
        stream: length of the stream before that.
        promoted: tokens that the added vector alone raises most, by the unembedding.
    """

    layer: int
    ngrams: tuple[Ngram, ...]
    gate: float | None
    gates: tuple[float, ...]
    added: float
    stream: float
    promoted: tuple[str, ...]


class Step(NamedTuple):
    """One token, what each memory did there, and what that was worth.

    Attributes:
        text, id: of the token.
        compressed: its id after compression.
        next_bits: surprisal of the token that follows, in bits; None for the last.
        next_bits_off: the same with every memory's output zeroed, also at earlier tokens.
    """

    text: str
    id: int
    compressed: int
    next_bits: float | None
    next_bits_off: float | None
    writes: tuple[Write, ...]


class Trace(NamedTuple):
    """A traced text.

    Attributes:
        model: whose memory it went through.
        trained: False where gates, what is added and surprisal mean nothing yet.
    """

    text: str
    model: str
    trained: bool
    steps: tuple[Step, ...]


def trace_folder(text: str, folder: Path) -> Trace:
    """Trace ``text`` through a saved model.

    Raises:
        UserError: no model there, or one whose memory reads no tokens.
    """
    adapter = open_model(folder)
    return trace(text, adapter, opened(folder), str(folder))


def trace_random(text: str, seed: int) -> Trace:
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
    return trace(text, open_model(model), tokenizer, "An untrained model", trained=False)


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Learn a tokenizer from the facts that the package carries; takes about a second."""
    from engram_eval.corpus.facts import facts_documents
    from engram_eval.corpus.tokenizer import EOS, train_tokenizer

    texts = (document.text for document in facts_documents(CorpusConfig(train_bytes=500_000)))
    backend = train_tokenizer(texts, RANDOM_VOCAB)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=EOS, bos_token=EOS, pad_token=EOS
    )


def trace(
    text: str,
    adapter: Adapter,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    trained: bool = True,
) -> Trace:
    """Run ``text`` through a model and collect what its memories did.

    Args:
        text: a sentence or a few.
        adapter: the model.
        tokenizer: the model's.
        name: how the trace calls the model.
        trained: whether its weights mean anything.

    Raises:
        UserError: the model's memory reads no tokens, or the text is empty or too long.
    """
    if not adapter.reads:
        raise UserError(f"{name}: no memory that looks up tokens, so there is nothing to trace")
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    if not 1 <= ids.shape[1] <= adapter.max_positions:
        raise UserError(f"the text has {ids.shape[1]} tokens: must be 1 to {adapter.max_positions}")
    sites = ("memory_out", "memory_gate", "memory_index", "resid_pre")
    taps = [Tap(site, layer) for layer in adapter.memory_layers for site in sites]
    here = ids.to(adapter.device)
    with torch.no_grad(), adapter.record([tap for tap in taps if tap in adapter.places]) as found:
        bits = _next_bits(adapter.logits(here), here)
    with torch.no_grad(), adapter.memory_off():
        bits_off = _next_bits(adapter.logits(here), here)
    words = Words(tokenizer, adapter)
    history = words.history(here[0])
    by_layer = []
    for layer in adapter.memory_layers:
        rows = found[Tap("memory_index", layer)][0]
        ngrams = ngrams_of(adapter.reads[layer], rows, history, words)
        by_layer.append(_writes(adapter, layer, ngrams, found, words))
    compressed = words.compressed_ids(here[0])
    writes = zip(*by_layer, strict=True)
    tokens = zip(ids[0].tolist(), compressed, bits, bits_off, writes, strict=True)
    steps = (
        Step(words.token(one), one, small, after, without, did)
        for one, small, after, without, did in tokens
    )
    return Trace(text, name, trained, tuple(steps))


def _next_bits(logits: Tensor, ids: Tensor) -> list[float | None]:
    """Return the surprisal of each following token, in bits, from logits (1, T, V); then None."""
    surprisal = -logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return [*(surprisal / math.log(2)).tolist(), None]


def ngrams_of(
    reads: Reads, rows: Tensor, history: list[list[int]], words: Words
) -> list[tuple[Ngram, ...]]:
    """Return each token's n-grams, one per order.

    Args:
        reads: what the rows stand for.
        rows: (T, heads) of the whole table.
        history: for each token the ids that it looks back on, itself first.
        words: texts.
    """
    head_rows = torch.tensor(reads.head_rows, device=rows.device)
    parts = (rows - (head_rows.cumsum(0) - head_rows)).unflatten(1, (len(reads.orders), -1))
    sizes = head_rows.unflatten(0, (len(reads.orders), -1)).tolist()
    found = []
    for seen, own in zip(history, parts.tolist(), strict=True):
        texts = [words.compressed(one) for one in seen]
        found.append(
            tuple(
                Ngram(tuple(reversed(texts[:order])), tuple(numbers), tuple(many))
                for order, numbers, many in zip(reads.orders, own, sizes, strict=True)
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
    opened: list[tuple[float, ...]] = [()] * len(added)
    # Gemma 3n's gates are factors of single numbers.
    if gates is not None and gates.shape[-1] == adapter.streams:
        opened = [tuple(one) for one in gates[0].tolist()]
    # One vector for several streams stands for each of them.
    wide = added.repeat(1, stream.shape[-1] // added.shape[-1])
    best = adapter.unembed(wide).topk(PROMOTED, dim=-1).indices.tolist()
    return [
        Write(
            layer,
            ngrams[place],
            sum(opened[place]) / len(opened[place]) if opened[place] else None,
            opened[place],
            float(widened(added[place]).norm()),
            float(widened(stream[place]).norm()),
            tuple(words.token(one) for one in best[place]),
        )
        for place in range(len(added))
    ]
