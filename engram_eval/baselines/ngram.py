"""The n-gram language model as an lm-eval model: what counting alone achieves."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from numpy.typing import NDArray

from engram_eval.corpus.ngrams import NGramModel
from engram_eval.corpus.store import Corpus
from engram_eval.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TokenRequest = tuple[tuple[str, str], list[int], list[int]]


class NgramLM(TemplateLM):
    """Scores and continues text by interpolated n-gram counts of the training text.

    Texts become tokens in the same way as for lm-eval's Hugging Face models, so that scores are
    comparable.

    Args:
        model: the counts.
        tokenizer: the corpus's tokenizer.
        order: n, the predicted token included.
    """

    def __init__(
        self, model: NGramModel, tokenizer: "PreTrainedTokenizerFast", order: int = 5
    ) -> None:
        super().__init__()
        if not 1 <= order <= model.max_order:
            raise UserError(f"n-gram order {order}; counted are 1 to {model.max_order}")
        self.model, self.tokenizer, self.order = model, tokenizer, order

    @property
    def eot_token_id(self) -> int:
        """The token between documents, which also stands before an empty context."""
        return self.tokenizer.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval tells tokenizers apart by."""
        return str(self.tokenizer.name_or_path)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return a text's tokens; the tokenizer has no special ones to add."""
        return self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens))

    def token_bits(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return -log2 p of each token of a stream of documents, (T,)."""
        stream = np.concatenate([[self.eot_token_id], tokens])
        return self.model.surprisal_bits(stream, self.order)[1:]

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return ln p(continuation | context) and whether greedy decoding would write it."""
        rows = [[*context, *continuation] for _, context, continuation in requests]
        bits = self._surprisal_bits(rows)
        results = []
        for (_, context, continuation), row_bits in zip(requests, bits, strict=True):
            logprob = -math.log(2) * float(row_bits[len(context) :].sum())
            results.append((logprob, self._is_greedy(context, continuation)))
        return results

    def _surprisal_bits(self, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Score several sequences at once, each without a view of the one before it."""
        if not rows:
            return []
        bounds = np.cumsum([0, *(len(row) for row in rows)])
        starts = np.repeat(bounds[:-1], np.diff(bounds))
        flat = np.concatenate([np.asarray(row, np.int64) for row in rows])
        bits = self.model.surprisal_bits(flat, self.order, starts)
        return [bits[start:end] for start, end in pairwise(bounds)]

    def _is_greedy(self, context: Sequence[int], continuation: Sequence[int]) -> bool:
        seen = list(context)
        for token in continuation:
            if self._next(seen) != token:
                return False
            seen.append(token)
        return True

    def _next(self, context: Sequence[int]) -> int:
        """Return the likeliest next token; the lowest id among equals."""
        return int(self.model.distribution(context, self.order).argmax())

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return ln p of whole texts, each taken for the beginning of a document."""
        rows = [[self.eot_token_id, *self.tok_encode(*request.args)] for request in requests]
        return [-math.log(2) * float(bits[1:].sum()) for bits in self._surprisal_bits(rows)]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue texts greedily up to a stop string, the end of text or ``max_gen_toks``.

        Raises:
            UserError: a request asks for sampling.
        """
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, gen_kwargs: dict[str, Any]) -> str:
        options = normalize_gen_kwargs(gen_kwargs)
        if options["do_sample"]:
            raise UserError("the n-gram baseline decodes greedily; do_sample is not allowed")
        tokens = self.tok_encode(context) or [self.eot_token_id]
        written: list[int] = []
        text = ""
        while len(written) < options["max_gen_toks"]:
            token = self._next([*tokens, *written])
            if token == self.eot_token_id:
                break
            written.append(token)
            text = self.tokenizer.decode(written)
            if any(stop and stop in text for stop in options["until"]):
                break
        return postprocess_generated_text(text, options["until"], None)


def ngram_lm(corpus: Corpus) -> NgramLM:
    """Build the baseline from a corpus's own counts, at the highest order counted."""
    model = corpus.ngrams()
    return NgramLM(model, corpus.tokenizer(), model.max_order)
