"""Tokens of requests, as lm-eval's ``HFLM`` makes them, each distinct text once."""

from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix

from engram_eval.errors import UserError
from engram_eval.evaluation.fast_score import Request
from engram_eval.evaluation.prefix_tree import Tokens

Texts = dict[str, Tokens]


def encode_pairs(lm: HFLM, pairs: Sequence[tuple[str, str]]) -> list[Request]:
    """Encode (context, continuation) pairs as ``TemplateLM.loglikelihood`` does.

    Blanks at the end of a context belong to the continuation; the pair is encoded as one text
    and cut where the context's own tokens end. An empty context is the prefix token.

    Raises:
        UserError: a continuation without tokens, or a context of blanks.
    """
    moved = [_move_blanks(*pair) for pair in pairs]
    led = [pair for pair, given in zip(moved, pairs, strict=True) if given[0]]
    whole = encode_texts(lm, (text for c, d in led for text in (c, c + d)))
    bare = encode_texts(lm, (d for c, d in pairs if not c), special=False)
    requests = []
    for (context, continuation), given in zip(moved, pairs, strict=True):
        if not given[0]:
            request = _after_prefix(lm.prefix_token_id, bare[continuation])
        else:
            head = whole[context]
            request = Request(head, whole[context + continuation][len(head) :])
        if not request.context or not request.continuation:
            raise UserError(f"nothing to score: context {given[0]!r}, continuation {given[1]!r}")
        requests.append(request)
    return requests


def _move_blanks(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _after_prefix(prefix: int, tokens: Tokens) -> Request:
    """A text that begins with the prefix token does not get a second one."""
    if tokens[:1] == (prefix,):
        return Request(tokens[:1], tokens[1:])
    return Request((prefix,), tokens)


def encode_texts(lm: HFLM, texts: Iterable[str], special: bool | None = None) -> Texts:
    """Encode distinct texts in one call, as ``HFLM.tok_encode`` does one by one.

    Args:
        lm: has the tokenizer and its settings.
        texts: may repeat.
        special: whether the tokenizer adds its own tokens; None means as ``lm`` is set, and never
            to a text that begins with the prefix token.
    """
    distinct = list(dict.fromkeys(texts))
    if special is not None:
        return _encode(lm, distinct, {"add_special_tokens": special})
    prefix = lm.tokenizer.decode(lm.prefix_token_id)
    return _encode_by(lm, distinct, prefix)


def encode_prompts(lm: HFLM, texts: Iterable[str]) -> Texts:
    """Encode distinct prompts as ``HFLM.tok_batch_encode`` does a batch of one."""
    distinct = list(dict.fromkeys(texts))
    return _encode_by(lm, distinct, lm.tokenizer.bos_token, truncation=lm.truncation)


def _encode_by(lm: HFLM, texts: list[str], prefix: str | None, **options: Any) -> Texts:
    """Encode texts; those that begin with ``prefix`` get no special tokens."""
    marked = [text for text in texts if has_bos_prefix(text, prefix)]
    chosen = set(marked)
    plain = [text for text in texts if text not in chosen]
    setting = {} if lm.add_bos_token is None else {"add_special_tokens": lm.add_bos_token}
    return {
        **_encode(lm, plain, {**options, **setting}),
        **_encode(lm, marked, {**options, "add_special_tokens": False}),
    }


def _encode(lm: HFLM, texts: list[str], options: dict[str, Any]) -> Texts:
    if not texts:
        return {}
    found = lm.tokenizer(texts, return_attention_mask=False, verbose=False, **options)
    return dict(zip(texts, map(tuple, found["input_ids"]), strict=True))
