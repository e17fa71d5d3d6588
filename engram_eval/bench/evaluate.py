"""Evaluation throughput: lm-eval's own back end and ours, on the same requests, in turns.

The model has random weights, which cost what trained ones do. Its text is the documentation in
the interpreter's own library.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerFast

from engram_eval.allocator import keep_freed_memory
from engram_eval.bench.arms import bench_arms
from engram_eval.bench.turns import Contender, take_turns
from engram_eval.corpus.stdlib import stdlib_documents
from engram_eval.corpus.tokenizer import EOS, train_tokenizer
from engram_eval.costs.ledger import architecture_config
from engram_eval.environment import compute_device
from engram_eval.evaluation.fast_lm import FastLM
from engram_eval.evaluation.quiet import quiet_lm_eval
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.progress import Reporter
from engram_eval.variants import Architecture

CHARACTERS = 600_000
# In words: questions of about 75 tokens with options of about 7.
QUESTION, OPTION = 45, 4
OPTIONS, SHOTS = 4, 8
# As TriviaQA does.
WRITING = {"until": ["\n", ".", ","], "max_gen_toks": 64}
OURS, THEIRS = "ours", "HFLM"


class Workload(NamedTuple):
    """Requests of one kind.

    Attributes:
        name: what they are.
        method: of the back end, which answers them.
        requests: all that are answered in one turn.
    """

    name: str
    method: str
    requests: list[Instance]


class Answers(NamedTuple):
    """What a back end answered in its last turn, and the processor's seconds of all its turns."""

    found: list[Any]
    cpu_s: list[float]


def bench_evaluate(
    seconds: float, report: Reporter, scale: str = "quick", batch_size: int = 16
) -> list[dict[str, Any]]:
    """Measure how much faster our lm-eval back end answers than ``HFLM``.

    Args:
        seconds: about how long to measure; each answers everything at least twice.
        report: shows progress.
        scale: a key of ``SCALES``, whose Engram model is asked.
        batch_size: of ``HFLM``; ours chooses its batches itself.

    Returns:
        Rows with name, requests, hflm_s and ours_s (fastest turn; the first is not counted),
        ratio (the one over the other), cpu_ratio (the same of the processor's time, which what else
        the machine does hardly touches), and how far the answers differ: max_nats (largest
        difference of a log-likelihood), unequal (greedy flags or texts).

    Raises:
        UserError: an unknown scale.
    """
    arm = bench_arms(scale)["engram"]
    keep_freed_memory()
    deadline = time.monotonic() + seconds
    text = _words(CHARACTERS)
    tokenizer = _tokenizer(text, arm["vocab_size"])
    options = {"tokenizer": tokenizer, "batch_size": batch_size}
    workloads = list(_workloads(text))
    answers: dict[tuple[str, str], Answers] = {}
    with quiet_lm_eval(), report.task("bench evaluate", seconds) as task:
        model = _model(arm)
        lms = {
            THEIRS: HFLM(pretrained=model, **options),
            OURS: FastLM(pretrained=model, **options),
        }
        contenders = [
            _contender(lm, name, workload, answers)
            for workload in workloads
            for name, lm in lms.items()
        ]
        times = take_turns(contenders, deadline, task).steps
    return [_row(workload, times, answers) for workload in workloads]


def _model(architecture: Architecture) -> EngramForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EngramForCausalLM(architecture_config(architecture)).to(compute_device())


def _words(characters: int) -> list[str]:
    """Return about so many characters of prose, by words."""
    words: list[str] = []
    size = 0
    for document in stdlib_documents(val_fraction=0.0):
        if document.domain == "docs":
            words += document.text.split()
            size += len(document.text)
        if size > characters:
            break
    return words


def _tokenizer(words: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    trained = train_tokenizer([" ".join(words)], vocab_size)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained, bos_token=EOS, eos_token=EOS, pad_token=EOS
    )


def _workloads(words: Sequence[str]) -> Iterator[Workload]:
    """Cut text into what is asked; each word is used once."""
    rest = iter(words)

    def piece(size: int) -> str:
        return " ".join(next(rest) for _ in range(size))

    def questions(before: str, count: int) -> list[tuple[str, str]]:
        asked = [before + piece(QUESTION) for _ in range(count)]
        return [(text, " " + piece(OPTION)) for text in asked for _ in range(OPTIONS)]

    shots = "".join(piece(QUESTION + OPTION) + "\n\n" for _ in range(SHOTS))
    prompts = [piece(QUESTION) for _ in range(80)]
    yield _workload("multiple choice", "loglikelihood", questions("", 96))
    yield _workload(f"{SHOTS} shots", "loglikelihood", questions(shots, 24))
    yield _workload("generation", "generate_until", [(p, WRITING) for p in prompts[:64]])
    yield _workload(
        f"generation, {SHOTS} shots", "generate_until", [(shots + p, WRITING) for p in prompts[64:]]
    )


def _workload(name: str, method: Any, arguments: Sequence[tuple[Any, ...]]) -> Workload:
    requests = [Instance(method, {}, given, index) for index, given in enumerate(arguments)]
    return Workload(name, method, requests)


def _contender(
    lm: HFLM, name: str, workload: Workload, answers: dict[tuple[str, str], Answers]
) -> Contender:
    answer: Callable[..., list[Any]] = getattr(lm, workload.method)

    key = name, workload.name

    def step() -> None:
        started = time.process_time()
        found = answer(workload.requests, disable_tqdm=True)
        before = answers[key].cpu_s if key in answers else []
        answers[key] = Answers(found, [*before, time.process_time() - started])

    return Contender(f"{workload.name}, {name}", workload.name, None, step)


def _row(
    workload: Workload,
    times: dict[str, list[float]],
    answers: dict[tuple[str, str], Answers],
) -> dict[str, Any]:
    theirs, ours = (
        min(times[f"{workload.name}, {name}"], default=math.nan) for name in (THEIRS, OURS)
    )
    given = [answers[name, workload.name] for name in (THEIRS, OURS)]
    their_cpu, our_cpu = (min(entry.cpu_s[1:], default=math.nan) for entry in given)
    pairs = list(zip(*(entry.found for entry in given), strict=True))
    scored = workload.method == "loglikelihood"
    return {
        "name": workload.name,
        "requests": len(workload.requests),
        "hflm_s": theirs,
        "ours_s": ours,
        "ratio": theirs / ours,
        "cpu_ratio": their_cpu / our_cpu,
        "max_nats": max(abs(a[0] - b[0]) for a, b in pairs) if scored else None,
        "unequal": sum(a[1] != b[1] if scored else a != b for a, b in pairs),
    }
