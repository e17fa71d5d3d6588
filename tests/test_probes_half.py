"""Models in bfloat16 or float16: every family opens, and every probe says what float32 says.

The truth is the same model, its rounded weights widened, whose every step has float32's digits.
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from adapters_fixture import FAMILIES, seeded
from probes_fixture import PEOPLE, engram, llama, noise_sample, small_corpus
from transformers import PreTrainedModel

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.adapters.load import open_model
from engram_eval.arm_corpus import arm_corpus
from engram_eval.config import CorpusConfig, ProbeConfig
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from engram_eval.studies.registry import find_study
from probes.capture import batches
from probes.registry import PROBES, find_probe
from probes.sample import draw_sample

OPTIONS = ProbeConfig(tokens=512, seq_len=32, items=2)
HALVES = (torch.bfloat16, torch.float16)


def olmoe(**changes: Any) -> PreTrainedModel:
    config = {**FAMILIES["olmoe"].keywords, "max_position_embeddings": 64}  # type: ignore[attr-defined]
    torch.manual_seed(0)
    return hf.OlmoeForCausalLM(hf.OlmoeConfig(**{**config, **changes})).eval()


CASES = [
    *(("engram", name, torch.bfloat16) for name in PROBES),
    *(("olmoe", name, torch.bfloat16) for name in ("logit_lens", "router", "knockout")),
    *(("engram", name, torch.float16) for name in ("tuned_lens", "depth", "patching", "surgery")),
]
# Of the few facts that these ask about, rounding to 8 bits changes which a model knows.
OF_KNOWN_FACTS = ("patching", "surgery")
# Where a curve of shares of few examples reaches a level: one example more moves it by a block.
CROSSINGS = ("decodable_depth_layers",)
ROUNDED = ("value", "stderr", "ci_low", "ci_high", "baseline")
MAKES = {"engram": engram, "olmoe": olmoe}


@pytest.fixture(scope="module")
def corpus_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Corpus]:
    """Return the text that a probe's material can be made of."""

    def built(config: CorpusConfig) -> Corpus:
        folder = tmp_path_factory.mktemp("corpus")
        build_corpus({}, config, None, folder, Reporter(quiet=True))
        return load_corpus(folder)

    @functools.cache
    def found(reads: str) -> Corpus:
        if reads == "probes.people:make_prompts":
            return built(PEOPLE)
        if reads == "probes.told_facts:tell_facts":
            study = find_study("capacity", "smoke")
            config = arm_corpus(study, study.models[0])
            dials = dataclasses.replace(
                config.entities, n_entities=6, max_exposures=9, min_exposures=4
            )
            return built(dataclasses.replace(config, entities=dials))
        return small_corpus(tmp_path_factory.mktemp("text"))

    return lambda reads: found(reads if "people" in reads or "told" in reads else "")


def rows_of(name: str, corpus: Corpus, model: PreTrainedModel) -> list[MetricRow]:
    entry = find_probe(name)
    sample = draw_sample(corpus, OPTIONS)
    items = (None, OPTIONS.items) if entry.items else ()
    material = resolve_name(entry.reads)(corpus, sample, *items) if entry.reads else sample
    models = [open_model(model)]
    if entry.kind == "pair":
        models.append(open_model(llama(vocab_size=corpus.vocab_size)))
    return resolve_name(entry.function)(*models, material, None).rows


@pytest.mark.parametrize(("model", "name", "dtype"), CASES)
def test_every_probe_says_what_float32_says(
    model: str, name: str, dtype: torch.dtype, corpus_of: Callable[[str], Corpus]
) -> None:
    corpus = corpus_of(find_probe(name).reads)
    make = functools.partial(
        MAKES[model], vocab_size=corpus.vocab_size, max_position_embeddings=512
    )
    half, whole = (rows_of(name, corpus, make().to(dtype).to(t)) for t in (dtype, torch.float32))
    assert len(half) == len(whole) > 0
    if name in OF_KNOWN_FACTS and dtype == torch.bfloat16:
        return
    pairs = defaultdict(list)
    for one, other in zip(half, whole, strict=True):
        assert one == dataclasses.replace(other, **{key: getattr(one, key) for key in ROUNDED})
        if one.metric in CROSSINGS and other.ci_low is not None and other.ci_high is not None:
            assert one.value is None or other.ci_low <= one.value <= other.ci_high
        elif one.value is not None and other.value is not None:
            pairs[one.metric].append((one.value, other.value))
    for metric, values in pairs.items():
        given, expected = np.array(values).T
        error, scale = np.abs(given - expected).mean(), np.abs(expected).mean()
        assert error <= 0.03 * (1 + scale), (metric, error, scale)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_opens(family: str, dtype: torch.dtype) -> None:
    adapter = open_model(seeded(FAMILIES[family]).to(dtype))
    assert adapter.dtype == dtype
    tokens = torch.arange(8)[None]
    last = Tap("resid_post", adapter.n_layers - 1)
    with torch.no_grad(), adapter.record([last]) as found:
        logits = adapter.logits(tokens)
    assert logits.dtype == torch.float32 and found[last].dtype == dtype
    # In float32 the stream is brought back to what the model reads.
    torch.testing.assert_close(adapter.unembed(found[last].float()), logits, rtol=0.02, atol=0.02)


def opened(dtype: torch.dtype) -> Adapter:
    return open_model(engram().to(dtype))


def test_edits_may_be_in_float32() -> None:
    adapter, tokens = opened(torch.bfloat16), torch.arange(1, 9)[None]
    with torch.no_grad():
        plain = adapter.logits(tokens)
        with adapter.edit("memory_out", 1, lambda x: x.float() * 0):
            off = adapter.logits(tokens)
        with adapter.memory_off():
            assert torch.equal(adapter.logits(tokens), off)
    assert not torch.equal(off, plain)


def test_what_is_read_is_float32_and_whole_numbers_stay() -> None:
    adapter = opened(torch.bfloat16)
    sample = noise_sample(4, 16)
    taps = [Tap("resid_post", 1), Tap("memory_index", 1), Tap("router_weights", 1)]
    (batch,) = batches(adapter, sample, taps, logits=True)
    assert batch.logits is not None and batch.logits.dtype == torch.float32
    types = [batch.taps[tap].dtype for tap in taps]
    assert types == [torch.float32, torch.int64, torch.float32]
