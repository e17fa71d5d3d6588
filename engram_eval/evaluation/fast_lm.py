"""An lm-eval model that gives ``HFLM``'s results in less time.

Every context is read once and kept in a cache; continuations are read behind it in batches, and
beginnings that several contexts share are read once as well. Where a model's cache does not allow
that, ``fallback_reason`` says why and ``HFLM`` does the work.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.models import huggingface
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text

from engram_eval.errors import UserError
from engram_eval.evaluation.batching import PASS_COST, Budget
from engram_eval.evaluation.cached_model import CachedModel
from engram_eval.evaluation.encode import encode_pairs, encode_prompts, encode_texts
from engram_eval.evaluation.fast_check import Encoded, accepted_arguments, disagreement, obstacle
from engram_eval.evaluation.fast_generate import (
    Decoding,
    Stopper,
    generate,
    generation_obstacle,
    plain_decoding,
)
from engram_eval.evaluation.fast_score import Request, score
from engram_eval.evaluation.prefix_tree import CLUSTER_COST

logger = logging.getLogger(__name__)

CACHE_BYTES = 2**29
LOGIT_BYTES = 2**28
# Prompts are read with so many times the tokens, because large batches write faster.
PROMPT_BATCHES = 4

Scored = list[tuple[float, bool]]


class FastLM(HFLM):
    """``HFLM`` that reads what requests share once.

    Args:
        *args: of ``HFLM``.
        tokens_per_batch: most tokens that are computed at once, padding included.
        **kwargs: of ``HFLM``; its ``batch_size`` matters only where ``HFLM`` does the work.

    Attributes:
        fallback_reason: why ``HFLM`` does the work; None where it does not.
    """

    def __init__(self, *args: Any, tokens_per_batch: int = 4096, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokens_per_batch = tokens_per_batch
        accepts = accepted_arguments(self.model.forward)
        self.fallback_reason = obstacle(self, accepts)
        self.cached = CachedModel(self.model, self.device, self.mixed_precision_dtype, accepts)
        if self.fallback_reason is None:
            self.fallback_reason = self._disagreement()
        if self.fallback_reason is not None:
            logger.warning("HFLM scores this model: %s", self.fallback_reason)

    @cached_property
    def budget(self) -> Budget:
        """What one forward pass may need."""
        with torch.inference_mode():
            columns = CACHE_BYTES // self.cached.column_bytes()
        return Budget(
            tokens=self.tokens_per_batch,
            columns=columns,
            logits=LOGIT_BYTES // (4 * self._model_vocabulary),
        )

    @property
    def _model_vocabulary(self) -> int:
        return int(self.config.get_text_config().vocab_size)

    def _disagreement(self) -> str | None:
        """Compare with ``HFLM`` on a few tokens, whose prefix is shared however short it is."""
        return disagreement(
            lambda requests: self._score(requests, True, cluster_cost=0),
            lambda requests: HFLM._loglikelihood_tokens(self, requests, True),
            self._model_vocabulary,
            self.mixed_precision_dtype or self.model.dtype,
        )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> Scored:
        """Return (log-likelihood in nats, whether it is greedy) of each continuation."""
        if self.fallback_reason is not None or self.enable_thinking:
            return super().loglikelihood(requests, disable_tqdm)
        pairs = [request.args for request in requests]
        encoded = [
            (pair, list(request.context), list(request.continuation))
            for pair, request in zip(pairs, encode_pairs(self, pairs), strict=True)
        ]
        return self._loglikelihood_tokens(encoded, disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: list[Encoded],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> Scored:
        if self.fallback_reason is not None:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        answers = self._score(requests, disable_tqdm)
        for (pair, _, _), answer in zip(requests, answers, strict=True):
            if pair is not None:
                self.cache_hook.add_partial("loglikelihood", pair, answer)
        return answers

    def _score(
        self, requests: list[Encoded], disable_tqdm: bool, cluster_cost: int = CLUSTER_COST
    ) -> Scored:
        most = self.max_length
        cut = [_cut(context, rest, most) for _, context, rest in requests]
        with self._bar(len(cut), "loglikelihood", disable_tqdm) as bar:
            dtype = self.softmax_dtype or torch.float32
            tally = score(self.cached, cut, dtype, self.budget, cluster_cost, bar.update)
        return list(zip(tally.nats.tolist(), tally.greedy.tolist(), strict=True))

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of each text in nats, in windows of the model's length."""
        if self.fallback_reason is not None:
            return super().loglikelihood_rolling(requests, disable_tqdm)
        texts = [request.args[0] for request in requests]
        tokens = encode_texts(self, texts)
        windows = [self._windows(list(tokens[text])) for text in texts]
        answers = iter(self._loglikelihood_tokens([*chain(*windows)], disable_tqdm))
        totals = [sum((next(answers)[0] for _ in part), 0.0) for part in windows]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _windows(self, tokens: list[int]) -> list[Encoded]:
        """Cut a text into (context, scored part), each token being scored once."""
        found = utils.get_rolling_token_windows(
            tokens, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
        )
        return [(None, *utils.make_disjoint_window(window)) for window in found]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes behind each prompt, up to a stop string."""
        kinds: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            kinds.setdefault(repr(request.args[1]), []).append(index)
        answers: dict[int, str] = {}
        with self._bar(len(requests), "generate_until", disable_tqdm) as bar:
            for members in kinds.values():
                found = self._answer([requests[index] for index in members], bar.update)
                answers.update(zip(members, found, strict=True))
        return [answers[index] for index in range(len(requests))]

    def _answer(self, requests: list[Instance], done: Callable[[int], None]) -> list[str]:
        """Generate for requests with the same options, by whichever back end can."""
        decoding = (
            self.fallback_reason
            or generation_obstacle(self)
            or plain_decoding(self, requests[0].args[1])
        )
        if isinstance(decoding, Decoding):
            return self._generate([request.args for request in requests], decoding, done)
        logger.warning("HFLM generates %d texts: %s", len(requests), decoding)
        done(len(requests))
        return super().generate_until(requests, disable_tqdm=True)

    def _generate(
        self,
        requests: Sequence[tuple[str, Mapping[str, Any]]],
        decoding: Decoding,
        done: Callable[[int], None],
    ) -> list[str]:
        """Write behind the prompts of (prompt, options) pairs, equal ones once."""
        room = self.max_length - decoding.most
        if room <= 0:
            raise UserError(
                f"cannot generate {decoding.most} tokens: the model holds {self.max_length}"
            )
        encoded = encode_prompts(self, (prompt for prompt, _ in requests))
        cut = {text: ids[-room:] or (self.prefix_token_id,) for text, ids in encoded.items()}
        prompts = list(dict.fromkeys(cut.values()))
        stopper = Stopper(self, decoding.stops)
        budget = self._writing_budget(decoding.most)
        written = generate(self.cached, prompts, decoding.most, stopper, budget, done)
        texts = dict(zip(prompts, map(self.tok_decode, written), strict=True))
        answers = []
        for prompt, options in requests:
            text = postprocess_generated_text(texts[cut[prompt]], list(decoding.stops), None)
            self.cache_hook.add_partial("generate_until", (prompt, options), text)
            answers.append(text)
        return answers

    def _writing_budget(self, most: int) -> Budget:
        """Prompts are read once, then every batch takes up to ``most`` small passes."""
        tokens = PROMPT_BATCHES * self.tokens_per_batch
        return replace(self.budget, tokens=tokens, pass_cost=most * PASS_COST)

    def _bar(self, total: int, title: str, disable: bool) -> Any:
        """Return lm-eval's progress bar, which whoever silences lm-eval silences too."""
        hidden = disable or self.rank != 0
        return huggingface.tqdm(total=total, disable=hidden, desc=f"Running {title} requests")


def _cut(context: Sequence[int], continuation: Sequence[int], most: int) -> Request:
    """Drop the beginning of a context that is too long, as ``HFLM`` does."""
    if len(continuation) > most:
        raise UserError(f"a continuation has {len(continuation)} tokens: the model holds {most}")
    kept = most + 1 - len(continuation)
    return Request(tuple(context[-kept:]), tuple(continuation))
