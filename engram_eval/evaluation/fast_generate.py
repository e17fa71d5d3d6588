"""Greedy continuations: shared beginnings are read once, and finished texts leave at once."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from transformers import GenerationMixin

from engram_eval.evaluation.batching import Budget
from engram_eval.evaluation.cached_model import CachedModel, StemBatch
from engram_eval.evaluation.prefix_tree import Stem, Tokens, split_clusters

# Of a request and of the model's generation_config: what greedy decoding does not look at.
_REQUEST = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}
_CONFIG = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_k", "top_p"),
    *("max_length", "use_cache", "transformers_version", "_from_model_config"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
}


class Decoding(NamedTuple):
    """How a text is written: the likeliest token each time, until it is over.

    Attributes:
        stops: strings that end it; the end of text is the last.
        most: tokens at most.
    """

    stops: tuple[str, ...]
    most: int


def generation_obstacle(lm: HFLM) -> str | None:
    """Return why the texts of a model are left to its own ``generate``."""
    settings = lm.model.generation_config.to_diff_dict()
    if others := sorted(set(settings) - _CONFIG):
        return f"generation_config asks for {', '.join(others)}"
    if lm.think_end_token is not None:
        return "thoughts are to be removed"
    if type(lm.model).generate is not GenerationMixin.generate:
        return "the model has a generate of its own"
    return None


def plain_decoding(lm: HFLM, options: Mapping[str, Any]) -> Decoding | str:
    """Read lm-eval's generation options; return the reason if they ask for more than greed."""
    wanted = dict(normalize_gen_kwargs(dict(options), lm.max_gen_toks))
    if wanted["do_sample"]:
        return "it is to sample"
    if others := sorted(set(wanted) - _REQUEST):
        return f"the request asks for {', '.join(others)}"
    end = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
    stops = handle_stop_sequences(wanted["until"], eos=end)
    return Decoding(tuple(stops), wanted["max_gen_toks"])


class Stopper:
    """Tells which texts are over.

    Args:
        lm: has the tokenizer, and the model that names tokens which end a text.
        stops: strings that end a text.
    """

    def __init__(self, lm: HFLM, stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = lm.tokenizer, stops
        ends = lm.model.generation_config.eos_token_id
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])
        lengths = [len(self.tokenizer.encode(stop, add_special_tokens=False)) for stop in stops]
        # Two more, as in HFLM: the same string may come in other tokens.
        self.tail = max(lengths) + 2
        self.closers = _closers(stops)
        self.closes = lru_cache(maxsize=None)(self._closes)

    def over(self, texts: Sequence[Sequence[int]]) -> list[bool]:
        """Tell which of the token lists, each longer by one than last time, have ended."""
        ended = [text[-1] in self.ends for text in texts]
        may_end = [n for n, text in enumerate(texts) if not ended[n] and self.closes(text[-1])]
        for number in may_end:
            tail = self.tokenizer.decode(texts[number][-self.tail :])
            ended[number] = any(stop in tail for stop in self.stops)
        return ended

    def _closes(self, token: int) -> bool:
        """Tell whether a stop string can end in a token."""
        if self.closers is None:
            return True
        return not self.closers.isdisjoint(self.tokenizer.decode([token]))


def _closers(stops: Sequence[str]) -> frozenset[str] | None:
    """Return the last characters of stop strings, if every token shows whether it has them.

    Blanks may vanish from single tokens, and other characters may be spread over several.
    """
    last = [stop[-1:] for stop in stops]
    return frozenset(last) if all(c.isascii() and c.strip(" ") for c in last) else None


@torch.inference_mode()
def generate(
    model: CachedModel,
    prompts: Sequence[Tokens],
    most: int,
    stopper: Stopper,
    budget: Budget,
    done: Callable[[int], None],
) -> list[list[int]]:
    """Return the tokens that greedy decoding writes behind each prompt.

    Args:
        model: what writes.
        prompts: distinct, none empty.
        most: tokens at most.
        stopper: ends texts before that; what ends a text is part of it.
        budget: of one forward pass.
        done: told how many texts are finished.
    """
    texts: list[list[int]] = [[] for _ in prompts]
    stems = [Stem(prompt, (), 1, key) for key, prompt in enumerate(prompts)]
    for prefix, cluster in split_clusters(stems):
        for batch in model.stems(prefix, cluster, budget, most):
            _write(model, batch, texts, most, stopper, done)
    return texts


def _write(
    model: CachedModel,
    batch: StemBatch,
    texts: list[list[int]],
    most: int,
    stopper: Stopper,
    done: Callable[[int], None],
) -> None:
    """Write the texts of one batch; those that are over leave it."""
    active = [texts[stem.key] for stem in batch.stems]
    past, logits = batch.past, batch.logits[:, -1]
    while True:
        tokens = logits.float().argmax(dim=-1)
        for text, token in zip(active, tokens.tolist(), strict=True):
            text.append(token)
        over = [end or len(active[0]) == most for end in stopper.over(active)]
        if any(over):
            done(sum(over))
            left = [row for row, end in enumerate(over) if not end]
            if not left:
                return
            rows = torch.tensor(left, device=model.device)
            active, past, tokens = [active[row] for row in left], past.select(rows), tokens[rows]
        logits, past = model.step(past, tokens)
