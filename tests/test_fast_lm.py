"""Our lm-eval back end beside ``HFLM``: the same numbers, flags and texts."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from models_fixture import LATENT, full
from tokenizers import processors

from engram_eval.corpus.tokenizer import EOS, train_tokenizer
from engram_eval.errors import UserError
from engram_eval.evaluation.encode import encode_pairs, encode_texts
from engram_eval.evaluation.fast_lm import FastLM

VOCAB = 300
SENTENCE = "the cat sat on a mat and then it saw two red birds near old water under trees"
WORDS = SENTENCE.split()
SHOTS = [" ".join(random.Random(n).choices(WORDS, k=45)) for n in range(2)]
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def llama(**options: Any) -> Any:
    config = transformers.LlamaConfig(**{**LLAMA, "num_key_value_heads": 2, **options})
    return seeded(lambda: transformers.LlamaForCausalLM(config))


def neox() -> Any:
    return seeded(lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**LLAMA)))


MODELS: dict[str, Callable[[], Any]] = {
    "engram": lambda: full(vocab_size=VOCAB, eos_token_id=0),
    "llama": llama,
    "neox": neox,
}


def tokenizer(bos: bool = False) -> transformers.PreTrainedTokenizerFast:
    """Make a byte-level tokenizer; with ``bos`` one that puts a token before each text."""
    trained = train_tokenizer([" ".join(WORDS * 3)], VOCAB)
    if bos:
        template = processors.TemplateProcessing(f"{EOS} $A", special_tokens=[(EOS, 0)])
        trained.post_processor = template
        trained.encode_special_tokens = False
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained, bos_token=EOS, eos_token=EOS, pad_token=EOS
    )


class Pair:
    """A model behind both back ends."""

    def __init__(self, model: Any, bos: bool = False, **options: Any) -> None:
        tokens_per_batch = options.pop("tokens_per_batch", 4096)
        options = {"pretrained": model, "tokenizer": tokenizer(bos), "batch_size": 4, **options}
        self.slow = HFLM(**options)
        self.fast = FastLM(tokens_per_batch=tokens_per_batch, **options)
        assert self.fast.fallback_reason is None

    def check(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        requests = ask("loglikelihood", pairs)
        expected = self.slow.loglikelihood(requests, disable_tqdm=True)
        found = self.fast.loglikelihood(requests, disable_tqdm=True)
        assert [nats for nats, _ in found] == pytest.approx([n for n, _ in expected], abs=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        return found

    def write(self, prompts: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        requests = ask("generate_until", prompts)
        found = self.fast.generate_until(requests, disable_tqdm=True)
        assert found == self.slow.generate_until(requests, disable_tqdm=True)
        return found


def ask(kind: Any, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


def text(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


OPTIONS = [" cat", " old water", " the red birds sat", " old trees", " x"]
CONTEXTS = [text(seed, 3 + seed % 7) for seed in range(9)]
KINDS: dict[str, list[tuple[str, str]]] = {
    "several tokens": [(c, o) for c in CONTEXTS for o in OPTIONS],
    "one token": [(c, o) for c in CONTEXTS for o in (" cat", " the", " a")],
    "one option": [(c, text(n, 5)) for n, c in enumerate(CONTEXTS)],
    "empty context": [("", o) for o in (*OPTIONS, text(1, 30), EOS + "the cat")],
    "blank context": [("the cat  ", "sat"), ("the cat ", "sat"), ("the cat", " sat")],
    "repeated": [(CONTEXTS[0], o) for o in OPTIONS] * 2 + [(CONTEXTS[1], " cat")] * 3,
    "options with a common beginning": [(c, " two red" + o) for c in CONTEXTS for o in OPTIONS],
    "an option that begins another": [
        (c, o) for c in CONTEXTS for o in (" a", " a cat", " a cat on")
    ],
    "begins with the end of text": [(EOS + c, o) for c in CONTEXTS for o in OPTIONS],
}


@pytest.fixture(scope="module", params=MODELS)
def both(request: pytest.FixtureRequest) -> Pair:
    return Pair(MODELS[request.param]())


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal(both: Pair, kind: str) -> None:
    both.check(KINDS[kind])


def test_flags_tell_the_greedy_text(both: Pair) -> None:
    context = [5, 40, 7, 21]
    best: list[int] = []
    for _ in range(3):
        best.append(int(both.slow._model_call(torch.tensor([context + best]))[0, -1].argmax()))
    options = [best, best[:1], [*best[:2], best[2] ^ 1], [best[0] ^ 1, *best[1:]]]
    requests = [(None, context, option) for option in options]
    found = both.fast._loglikelihood_tokens(requests, disable_tqdm=True)
    expected = both.slow._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [flag for _, flag in found] == [flag for _, flag in expected]
    assert [flag for _, flag in found] == [True, True, False, False]


def shots(clusters: int = 2, each: int = 16) -> list[tuple[str, str]]:
    """Make questions behind shared examples, whose own lengths differ, and some without."""
    behind = [
        (f"{SHOTS[c]}\n{text(10 * c + n, 2 + n % 6)}", option)
        for n in range(each)
        for c in range(clusters)
        for option in OPTIONS[:3]
    ]
    return behind + [(context, " cat") for context in CONTEXTS]


def fed_tokens(pair: Pair, requests: Sequence[tuple[str, str]]) -> int:
    """Count the positions that the model computes, padding included."""
    seen: list[int] = []
    layer = pair.fast.model.get_input_embeddings()
    handle = layer.register_forward_hook(lambda _m, ids, _o: seen.append(ids[0].numel()))
    pair.fast.loglikelihood(ask("loglikelihood", requests), disable_tqdm=True)
    handle.remove()
    return sum(seen)


def test_prefixes_are_shared_per_cluster(both: Pair) -> None:
    requests = shots()
    both.check(requests)
    whole = sum(len(both.fast.tok_encode(context)) for context, _ in dict(requests).items())
    assert fed_tokens(both, requests) < whole / 2


def test_all_kinds_together_in_any_order(both: Pair) -> None:
    requests = [pair for kind in KINDS.values() for pair in kind] + shots()
    found = both.check(requests)
    order = random.Random(3).sample(range(len(requests)), len(requests))
    shuffled = both.fast.loglikelihood(
        ask("loglikelihood", [requests[i] for i in order]), disable_tqdm=True
    )
    assert [found[i] for i in order] == shuffled


@pytest.mark.parametrize("tokens_per_batch", [1, 100])
def test_small_batches(tokens_per_batch: int) -> None:
    pair = Pair(full(vocab_size=VOCAB), tokens_per_batch=tokens_per_batch)
    pair.check([*KINDS["several tokens"], *KINDS["repeated"], *shots()])


@pytest.mark.parametrize("model", MODELS)
def test_long_contexts_lose_their_beginning(model: str) -> None:
    pair = Pair(MODELS[model](), max_length=40)
    requests = [(text(n, 20 + 6 * n), option) for n in range(8) for option in OPTIONS]
    lengths = [len(pair.fast.tok_encode(context)) for context, _ in requests]
    assert min(lengths) < 36 and max(lengths) > 60
    pair.check(requests)
    pair.check([("the", text(1, 200)[:60])])


@pytest.mark.parametrize("add_bos_token", [None, True, False])
def test_beginnings_of_text(add_bos_token: bool | None) -> None:
    pair = Pair(llama(), bos=True, add_bos_token=add_bos_token)
    pair.check([*KINDS["several tokens"], *KINDS["empty context"]])
    if add_bos_token is not False:
        pair.check([("   ", "the cat")])
    pair.check(KINDS["begins with the end of text"])
    texts = [CONTEXTS[0], EOS + CONTEXTS[0], text(1, 90)]
    rolling = ask("loglikelihood_rolling", [(t,) for t in texts])
    assert pair.fast.loglikelihood_rolling(rolling, disable_tqdm=True) == pytest.approx(
        pair.slow.loglikelihood_rolling(rolling, disable_tqdm=True), abs=2e-4
    )
    pair.write([(t, {"max_gen_toks": 4}) for t in texts[:1]])
    pair.write([(t, {"max_gen_toks": 4}) for t in texts[1:2]])


def test_own_prefix_token() -> None:
    pair = Pair(llama(), prefix_token_id=17)
    pair.check(KINDS["empty context"])


@pytest.mark.parametrize("max_length", [32, 256])
def test_rolling_scores_equal(both: Pair, max_length: int) -> None:
    texts = [text(n, 4 + 15 * n) for n in range(6)]
    pair = Pair(both.fast.model, max_length=max_length)
    requests = ask("loglikelihood_rolling", [(t,) for t in [*texts, texts[0], ""]])
    found = pair.fast.loglikelihood_rolling(requests, disable_tqdm=True)
    expected = pair.slow.loglikelihood_rolling(requests, disable_tqdm=True)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert found[0] == found[-2] and found[-1] == 0.0


PROMPTS = [*CONTEXTS, CONTEXTS[0], *(f"{SHOTS[0]}\n{text(n, 2 + n % 5)}" for n in range(14))]


@pytest.mark.parametrize("until", [[], ["t", "e "], "a"])
def test_texts_equal(both: Pair, until: list[str] | str) -> None:
    found = both.write([(prompt, {"until": until, "max_gen_toks": 12}) for prompt in PROMPTS])
    assert found[0] == found[len(CONTEXTS)]
    assert len(set(found)) > 3
    if until == "a":
        assert not any("a" in answer for answer in found)


def test_texts_of_different_options_equal(both: Pair) -> None:
    options = [
        {"max_gen_toks": 3},
        {"max_new_tokens": 5, "until": ["t"], "do_sample": False, "temperature": 0.0},
        {"max_gen_toks": 7, "until": "x"},
    ]
    both.write([(p, options[n % 3]) for n, p in enumerate(PROMPTS)])


def test_texts_end_with_the_end_of_text() -> None:
    model = llama()
    pair = Pair(model)
    usual = model.generate(torch.tensor([pair.fast.tok_encode(PROMPTS[0])]), max_new_tokens=9)
    model.generation_config.eos_token_id = [0, int(usual[0, -1])]
    requests = [(p, {"max_gen_toks": 40}) for p in PROMPTS[:6]]
    written: list[int] = []
    layer = model.get_input_embeddings()
    handle = layer.register_forward_hook(lambda _m, ids, _o: written.append(len(ids[0])))
    pair.fast.generate_until(ask("generate_until", requests), disable_tqdm=True)
    handle.remove()
    assert sum(written) < 6 * 40
    # One by one, since HFLM writes the padding's text behind ends that are not its tokenizer's.
    for request in requests:
        pair.write([request])


def test_long_prompts_lose_their_beginning() -> None:
    pair = Pair(llama(), max_length=40)
    for n in range(3):
        pair.write([(text(n, 30 + 9 * n), {"max_gen_toks": 10})])
    with pytest.raises(UserError, match="cannot generate 40 tokens: the model holds 40"):
        pair.fast.generate_until(ask("generate_until", [("a", {"max_gen_toks": 40})]))


def test_an_empty_prompt_starts_from_the_prefix_token() -> None:
    pair = Pair(llama())
    empty, explicit = pair.fast.generate_until(
        ask("generate_until", [("", {"max_gen_toks": 5}), (EOS, {"max_gen_toks": 5})]),
        disable_tqdm=True,
    )
    assert empty == explicit


def test_what_is_not_plain_decoding_is_left_to_hflm(caplog: pytest.LogCaptureFixture) -> None:
    pair = Pair(llama())
    plain, beams = {"max_gen_toks": 4}, {"max_gen_toks": 4, "num_beams": 2}
    pair.write([(p, beams if n % 2 else plain) for n, p in enumerate(PROMPTS[:4])])
    assert "HFLM generates 2 texts: the request asks for num_beams" in caplog.text
    sampled = {"max_gen_toks": 4, "do_sample": True, "temperature": 1.0}
    pair.fast.generate_until(ask("generate_until", [("the", sampled)]), disable_tqdm=True)
    assert "it is to sample" in caplog.text
    pair.fast.model.generation_config.repetition_penalty = 1.5
    pair.slow.model.generation_config.repetition_penalty = 1.5
    pair.write([(p, plain) for p in PROMPTS[:2]])
    assert "generation_config asks for repetition_penalty" in caplog.text


class DeafGPT2(transformers.GPT2LMHeadModel):
    """Does not hear where its tokens stand, so that padding moves them."""

    def forward(self, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class ForgetfulLlama(transformers.LlamaForCausalLM):
    """Cannot go on from a cache."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        use_cache: Any = None,
    ) -> Any:
        if past_key_values is not None:
            raise NotImplementedError("no cache here")
        return super().forward(input_ids)


class PlainLlama(transformers.LlamaForCausalLM):
    """Takes ids and nothing else."""

    def forward(self, input_ids: Any) -> Any:
        return super().forward(input_ids)


def mistral() -> Any:
    config = transformers.MistralConfig(**LLAMA, num_key_value_heads=2, sliding_window=8)
    return seeded(lambda: transformers.MistralForCausalLM(config))


def gpt2(kind: type = transformers.GPT2LMHeadModel) -> Any:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    ends = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(**sizes, **ends, initializer_range=0.3)
    return seeded(lambda: kind(config))


def bloom() -> Any:
    config = transformers.BloomConfig(
        vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, eos_token_id=0, bos_token_id=0
    )
    return seeded(lambda: transformers.BloomForCausalLM(config))


def latent_streams() -> Any:
    return full(vocab_size=VOCAB, eos_token_id=0, residual_streams=2, **LATENT)


def blocks() -> Any:
    sizes = {"sparse_block_size": 3, "sparse_top_k": 1}
    return full(vocab_size=VOCAB, eos_token_id=0, attention_kind="block_sparse", **sizes)


@pytest.mark.parametrize("make", [gpt2, bloom, latent_streams, blocks])
def test_other_kinds_of_positions(make: Callable[[], Any]) -> None:
    pair = Pair(make())
    pair.check([*KINDS["several tokens"], *shots()])
    pair.write([(prompt, {"max_gen_toks": 5}) for prompt in PROMPTS])


def subclass(kind: type) -> Any:
    config = transformers.LlamaConfig(**LLAMA)
    return seeded(lambda: kind(config))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (mistral, "its cache has DynamicSlidingWindowLayer"),
        (lambda: gpt2(DeafGPT2), "with a cache its log-likelihoods differ by"),
        (lambda: subclass(ForgetfulLlama), "raises NotImplementedError: no cache here"),
        (
            lambda: subclass(PlainLlama),
            "its forward takes no attention_mask, past_key_values, use_cache",
        ),
    ],
)
def test_models_that_cannot_share_fall_back(
    make: Callable[[], Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"pretrained": make(), "tokenizer": tokenizer(), "batch_size": 4}
    slow, fast = HFLM(**options), FastLM(**options)
    assert fast.fallback_reason is not None and reason in fast.fallback_reason
    assert f"HFLM scores this model: {fast.fallback_reason}" in caplog.text
    scores = ask("loglikelihood", KINDS["several tokens"])
    assert fast.loglikelihood(scores) == slow.loglikelihood(scores)
    rolling = ask("loglikelihood_rolling", [(text(1, 9),)])
    assert fast.loglikelihood_rolling(rolling) == slow.loglikelihood_rolling(rolling)


def test_encoder_decoders_fall_back() -> None:
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
    )
    model = seeded(lambda: transformers.T5ForConditionalGeneration(config))
    fast = FastLM(pretrained=model, tokenizer=tokenizer())
    assert fast.fallback_reason == "its back end is seq2seq, not a causal decoder"


def test_generation_falls_back_too() -> None:
    options = {"pretrained": mistral(), "tokenizer": tokenizer(), "batch_size": 2}
    requests = ask("generate_until", [(p, {"max_gen_toks": 4}) for p in PROMPTS[:4]])
    assert FastLM(**options).generate_until(requests) == HFLM(**options).generate_until(requests)


def test_nothing_to_score_and_too_much_are_refused() -> None:
    fast = Pair(llama(), max_length=20).fast
    for pair in (("", ""), ("the", ""), ("   ", "the"), ("", EOS)):
        with pytest.raises(UserError, match="nothing to score"):
            fast.loglikelihood(ask("loglikelihood", [pair]))
    with pytest.raises(UserError, match="tokens: the model holds 20"):
        fast.loglikelihood(ask("loglikelihood", [("the", text(1, 60))]))


def test_answers_go_to_lm_evals_cache(both: Pair) -> None:
    kept: list[tuple[str, Any, Any]] = []

    class Hook:
        def add_partial(self, kind: str, request: Any, answer: Any) -> None:
            kept.append((kind, request, answer))

    both.fast.set_cache_hook(Hook())
    answer = both.fast.loglikelihood(ask("loglikelihood", [("the", " cat")]))[0]
    total = both.fast.loglikelihood_rolling(ask("loglikelihood_rolling", [("the cat",)]))[0]
    options = {"max_gen_toks": 2}
    written = both.fast.generate_until(ask("generate_until", [("the", options)]))[0]
    assert kept == [
        ("loglikelihood", ("the", " cat"), answer),
        ("loglikelihood_rolling", ("the cat",), total),
        ("generate_until", ("the", options), written),
    ]


def test_wide_and_half_precision() -> None:
    wide = Pair(llama().double(), softmax_dtype="float64")
    expected = wide.slow.loglikelihood(ask("loglikelihood", KINDS["several tokens"]))
    found = wide.fast.loglikelihood(ask("loglikelihood", KINDS["several tokens"]))
    assert [n for n, _ in found] == pytest.approx([n for n, _ in expected], rel=1e-12)
    half = Pair(llama(), mixed_precision_dtype="bfloat16")
    found = half.fast.loglikelihood(ask("loglikelihood", KINDS["several tokens"]))
    assert [n for n, _ in found] == pytest.approx([n for n, _ in expected], rel=0.05)
    assert [n for n, _ in found] != pytest.approx([n for n, _ in expected], rel=1e-6)


PIECES = [*"the c\n\t é猫", "  ", EOS, " sat"]
STRINGS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@given(st.lists(st.tuples(STRINGS, STRINGS), min_size=1, max_size=6), st.booleans())
def test_pairs_are_encoded_as_hflm_does(pairs: list[tuple[str, str]], bos: bool) -> None:
    lm = ENCODERS[bos]
    for context, continuation in pairs:
        if not context:
            continue
        expected = lm._encode_pair(context, continuation)
        if all(expected):
            found = encode_pairs(lm, [(context, continuation)])[0]
            assert tuple(map(list, found)) == expected
    texts = [part for pair in pairs for part in pair]
    encoded = encode_texts(lm, texts)
    assert all(list(encoded[part]) == lm.tok_encode(part) for part in texts)


TINY = llama(num_hidden_layers=1)
ENCODERS = [HFLM(pretrained=TINY, tokenizer=tokenizer(bos)) for bos in (False, True)]
