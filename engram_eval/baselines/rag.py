"""Retrieval before the prompt (RAG): an lm-eval model around any other one.

Before each context stand the k best passages of the training documents, the best one last, within
a budget of tokens. On running text passages are looked up anew every ``STRIDE`` tokens, by the
words before (in-context RALM, arXiv:2302.00083). They stand at the beginning of the document,
behind the end of the one before: memories of the document so far look no further back. They take
their room from the window: beyond what it was trained on, a model is worse whatever it reads there.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from engram_eval.arrays import Floats, Ints
from engram_eval.baselines.built import Built, Setting
from engram_eval.baselines.costs import Costs
from engram_eval.baselines.passages import Passages
from engram_eval.baselines.training_text import documents

BEST, BUDGET, STRIDE = 4, 160, 64
# Validation tokens on which the cost of retrieval is measured.
COST_TOKENS = 8192
BETWEEN = "\n\n"

Rows = Sequence[tuple[Sequence[int], Sequence[int]]]


class RagLM(LM):
    """Reads passages before each context.

    Args:
        inner: the model that reads them; with ``tokenizer``, ``tok_encode``, ``eot_token_id`` and,
            where its contexts are bounded, ``max_length``.
        passages: what is looked up.
        row_bits: returns -log2 p of each token of the second part of every row.
        k: passages at most.
        budget: tokens that they may take.
    """

    def __init__(
        self,
        inner: Any,
        passages: Passages,
        row_bits: Callable[[Rows], list[Floats]],
        k: int = BEST,
        budget: int = BUDGET,
    ) -> None:
        super().__init__()
        self.inner, self.passages, self.row_bits = inner, passages, row_bits
        self.k, self.budget = k, budget
        self.retrieve = lru_cache(maxsize=None)(self._retrieve)

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval tells tokenizers apart by."""
        return str(self.inner.tokenizer_name)

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score continuations after passages and context."""
        longest: dict[str, int] = {}
        for context, continuation in (request.args for request in requests):
            longest[context] = max(longest.get(context, 0), self._size(continuation))
        return self.inner.loglikelihood(
            [self._led(request, longest[request.args[0]]) for request in requests], disable_tqdm
        )

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue passages and context."""
        led = [
            self._led(request, int(request.args[1].get("max_gen_toks") or 256))
            for request in requests
        ]
        return self.inner.generate_until(led, disable_tqdm)

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return ln p of whole texts, passages looked up on the way."""
        texts = [self.inner.tok_encode(*request.args) for request in requests]
        window = min(self._room(), 2048)
        bits = [self.stream_bits(np.array(tokens, np.int64), window) for tokens in texts]
        return [-float(np.log(2) * entry.sum()) for entry in bits]

    def _led(self, request: Instance, behind: int) -> Instance:
        """Put passages before a request's context; ``behind`` tokens must fit after it."""
        context, rest = request.args
        left = self._room() - self._size(context) - behind
        passages = self.retrieve(context, min(self.budget, left))
        return dataclasses.replace(request, arguments=(passages + context, rest))

    def _room(self) -> int:
        return int(getattr(self.inner, "max_length", 1 << 30))

    def _size(self, text: str) -> int:
        return len(self.inner.tok_encode(text))

    def _retrieve(self, query: str, budget: int) -> str:
        """Return the best passages that fit, the best one last, ready to stand before a text."""
        chosen: list[str] = []
        for text in self.passages.best(query, self.k):
            size = self._size(text + BETWEEN)
            if size <= budget:
                chosen.insert(0, text)
                budget -= size
        return "".join(text + BETWEEN for text in chosen)

    def stream_bits(self, tokens: Ints, window: int) -> Floats:
        """Return -log2 p of each token of a stream, (T,), in windows as held-out loss has.

        Args:
            tokens: (T,), as the inner model numbers them.
            window: no context but the passages reaches over its borders, and with them no more
                tokens are read.
        """
        bits = self.row_bits(self.stream_rows(tokens, window))
        return np.concatenate(bits) if bits else np.zeros(0)

    def stream_rows(self, tokens: Ints, window: int) -> list[tuple[list[int], list[int]]]:
        """Cut a stream into (what is read before, what is scored)."""
        rows = []
        for start in range(0, len(tokens), window):
            end = min(start + window, len(tokens))
            # So that passages find room beside what is scored.
            stride = max(1, min(STRIDE, window // 4))
            for at in range(start, end, stride):
                rows.append(self._stride(tokens, start, range(at, min(end, at + stride)), window))
        return rows

    def _stride(
        self, tokens: Ints, start: int, places: range, window: int
    ) -> tuple[list[int], list[int]]:
        """Return what is read before some tokens of a stream, and these."""
        at, end = places.start, places.stop
        before = tokens[max(0, start - 1) : at].tolist()
        if not start:
            before = [self.inner.eot_token_id, *before]
        told = tokens[at:end].tolist()
        own = before[_beginning(before, self.inner.eot_token_id) :]
        query = self.inner.tokenizer.decode(own)
        # The last token is scored, not read; one before them all is.
        left = min(window, self._room()) + 1 - len(told)
        passages = self.retrieve(query, min(self.budget, left - 1))
        led = self.inner.tok_encode(passages) if passages else []
        kept = before[-max(1, left - len(led)) :]
        begin = _beginning(kept, self.inner.eot_token_id)
        return [*kept[:begin], *led, *kept[begin:]], told


def build_rag(
    setting: Setting, inner: Any, row_bits: Callable[[Rows], list[Floats]], val: Ints
) -> Built:
    """Index the training documents and put retrieval before a model.

    Args:
        setting: has the documents.
        inner: see ``RagLM``.
        row_bits: see ``RagLM``.
        val: validation tokens, as ``inner`` numbers them, on which the cost is measured.
    """
    costs = Costs(setting.folder)
    with setting.report.task("rag: index passages", 1) as bar, costs.timed("build"):
        texts = documents(setting.corpus, "train")
        passages = Passages.build(texts, setting.folder / "passages")
        bar.advance()
    lm = RagLM(inner, passages, row_bits)
    window = setting.config.seq_len
    sample = val[:COST_TOKENS]
    with costs.timed("score", len(sample)):
        rows = lm.stream_rows(sample, window)
    read = sum(len(before) for before, _ in rows) / max(1, len(sample))
    costs.settings["tokens_read_per_token"] = read
    return Built(lm, lambda tokens: lm.stream_bits(tokens, window), costs.rows())


def _beginning(tokens: list[int], end: int) -> int:
    """Return the place behind the last end of text, 0 where there is none."""
    for place in range(len(tokens) - 1, -1, -1):
        if tokens[place] == end:
            return place + 1
    return 0
