"""A predictor that stands alone, as an lm-eval model."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from engram_eval.arrays import Floats, Ints
from engram_eval.baselines.predictor import Predictor, in_chunks, join, window_starts
from engram_eval.baselines.training_text import Vocabulary
from engram_eval.errors import UserError

TokenRequest = tuple[tuple[str, str], list[int], list[int]]


class PredictorLM(TemplateLM):
    """Scores and continues text by a predictor.

    Texts become tokens in the same way as for lm-eval's Hugging Face models, so that scores are
    comparable.

    Args:
        predictor: of the tokens as ``vocabulary`` numbers them.
        tokenizer: the corpus's.
        vocabulary: of this tokenizer.
    """

    def __init__(self, predictor: Predictor, tokenizer: Any, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.predictor, self.tokenizer, self.vocabulary = predictor, tokenizer, vocabulary

    @property
    def eot_token_id(self) -> int:
        """The token between documents, which also stands before an empty context."""
        return self.vocabulary.end

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval tells tokenizers apart by."""
        return str(self.tokenizer.name_or_path)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return a text's tokens; special ones only where they are asked for."""
        return self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens))

    def token_bits(self, tokens: Ints, seq_len: int) -> Floats:
        """Return -log2 p of each token of a stream of documents, (T,).

        Args:
            tokens: (T,).
            seq_len: window; no context reaches over its border, as none of a model does.
        """
        stream = self._inner([self.eot_token_id, *tokens])
        starts = window_starts(len(stream), seq_len)
        return -np.log2(self.predictor.score(stream, starts).p[1:])

    def row_bits(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Floats]:
        """Return -log2 p of each token of the second part of every row, after the first part."""
        flat, starts, bounds = join([self._inner([*before, *told]) for before, told in rows])
        bits = -np.log2(self.predictor.score(flat, starts).p)
        ends = zip(rows, bounds[1:], strict=True)
        return [bits[end - len(told) : end] for (_, told), end in ends]

    def _inner(self, tokens: Sequence[int]) -> Ints:
        return self.vocabulary.inner(np.asarray(tokens, np.int64))

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return ln p(continuation | context) and whether greedy decoding would write it."""
        rows = [(context, continuation) for _, context, continuation in requests]
        greedy = self._greedy(rows)
        bits = self.row_bits(rows)
        nats = [-math.log(2) * float(entry.sum()) for entry in bits]
        return list(zip(nats, greedy, strict=True))

    def _greedy(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[bool]:
        """Tell of each continuation whether each of its tokens is the likeliest one."""
        alive = [bool(told) for _, told in rows]
        for position in range(max((len(told) for _, told in rows), default=0)):
            asked = [n for n, (_, told) in enumerate(rows) if alive[n] and position < len(told)]
            found = self._next([[*rows[n][0], *rows[n][1][:position]] for n in asked])
            for n, token in zip(asked, found, strict=True):
                alive[n] = token == rows[n][1][position]
        return alive

    def _next(self, contexts: Sequence[Sequence[int]]) -> list[int]:
        """Return the likeliest next token of each context; the lowest number among equals."""
        found: list[int] = []
        inner = [self._inner(context) for context in contexts]
        for part in in_chunks(len(inner), self.predictor.vocab_size):
            best = self.predictor.distributions(inner[part]).p.argmax(axis=1)
            found += self.vocabulary.inner(best).tolist()
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return ln p of whole texts, each taken for the beginning of a document."""
        texts = [self.tok_encode(*request.args) for request in requests]
        bits = self.row_bits([([self.eot_token_id], tokens) for tokens in texts])
        return [-math.log(2) * float(entry.sum()) for entry in bits]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue texts greedily up to a stop string, the end of text or ``max_gen_toks``.

        Raises:
            UserError: a request asks for sampling.
        """
        writers = [_Writer(self, *request.args) for request in requests]
        active = writers
        while active := [writer for writer in active if not writer.over]:
            found = self._next([[*writer.prompt, *writer.written] for writer in active])
            for writer, token in zip(active, found, strict=True):
                writer.add(token)
        return [postprocess_generated_text(w.text, w.options["until"], None) for w in writers]


class _Writer:
    """One text that is being written."""

    def __init__(self, lm: PredictorLM, context: str, gen_kwargs: dict[str, Any]) -> None:
        self.lm, self.options = lm, normalize_gen_kwargs(gen_kwargs)
        if self.options["do_sample"]:
            raise UserError("counting baselines decode greedily; do_sample is not allowed")
        self.prompt = lm.tok_encode(context) or [lm.eot_token_id]
        self.written: list[int] = []
        self.text = ""
        self.over = self.options["max_gen_toks"] < 1

    def add(self, token: int) -> None:
        if token == self.lm.eot_token_id:
            self.over = True
            return
        self.written.append(token)
        self.text = self.lm.tokenizer.decode(self.written)
        stopped = any(stop and stop in self.text for stop in self.options["until"])
        self.over = stopped or len(self.written) >= self.options["max_gen_toks"]
