"""Claims of ``main``: what the memory buys at equal cost, where, and on top of what."""

from engram_eval.claims.claim import (
    MEAN_OF_TASKS,
    Claim,
    Declare,
    Rows,
    Score,
    heldout,
    less_than,
    more_than,
)

PAPER = "arXiv:2601.07372 Table 1"
CONTEXT = "arXiv:2601.07372 Table 2"
OVERALL = 0.01
"""Bits per byte. The paper's own gain is 0.7 % of its loss; this is about as much of ours."""
DOMAIN = 0.02
RELATIVE = 0.02

ENGRAM = less_than("engram", "moe")

_claim = Declare("main.", OVERALL)


def _domain(name: str, domain: str, sentence: str, published: str, source: str = PAPER) -> Claim:
    return _claim(name, sentence, source, published, ENGRAM, heldout(domain), DOMAIN)


def _relative_gains(more: str) -> Score:
    """Return a score whose contrast is the relative gain in one domain over that in facts."""
    terms = (
        (1.0, Rows(slice={"domain": more})),
        (-1.0, Rows(slice={"domain": "facts"})),
    )
    return Score(terms, log=True, unit="relative gain")


def _tasks(domain: str, sentence: str, published: str, source: str = PAPER) -> Claim:
    score = Score(((1.0, Rows(MEAN_OF_TASKS, "acc", {"domain": domain})),), unit="accuracy")
    contrasts = more_than("engram", "moe")
    return _claim(f"tasks_{domain}", sentence, source, published, contrasts, score, 0.02)


def _benchmark(name: str, task: str, domain: str, sentence: str, published: str) -> Claim:
    """Return a claim on the bits per byte of the right answers to public questions."""
    score = Score(((1.0, Rows(task, slice={"domain": domain})),))
    return _claim(name, sentence, PAPER, published, ENGRAM, score, DOMAIN)


MAIN = (
    _claim(
        "baseline",
        "The mixture of experts beats its dense twin of equal FLOPs: the baseline is established",
        PAPER,
        "validation loss 1.634 against 1.768 nats",
        less_than("moe", "dense"),
    ),
    _claim(
        "loss",
        "At equal parameters and FLOPs, Engram predicts held-out text better than the MoE",
        PAPER,
        "validation loss 1.622 against 1.634 nats",
        ENGRAM,
    ),
    _domain("knowledge", "facts", "Engram gains in knowledge", "MMLU 60.4 against 57.4"),
    _domain(
        "rare_knowledge",
        "entities",
        "Engram gains in facts about rarely named people",
        "PopQA 19.4 against 19.2, TriviaQA 50.7 against 48.8",
    ),
    _domain("code", "code", "Engram gains in code", "HumanEval 40.8 against 37.8"),
    _domain("math", "math", "Engram gains in mathematics", "GSM8K 60.6 against 58.4"),
    _domain(
        "in_context",
        "recall",
        "Engram gains in looking up what stands in the context",
        "RULER multi-query needles 97.0 against 84.2",
        CONTEXT,
    ),
    _claim(
        "reasoning_as_much",
        "Mathematics gains more than knowledge does",
        "arXiv:2601.07372 abstract, not its Table 1",
        "of reasoning: BBH +5.0 points; of mathematics the other way round: GSM8K +2.2 and MATH "
        "+2.4 against MMLU +3.0",
        ENGRAM,
        _relative_gains("math"),
        RELATIVE,
    ),
    _claim(
        "code_as_much",
        "Code gains as much as knowledge does",
        PAPER,
        "HumanEval +3.0 against MMLU +3.0 points (+3.4 in the abstract)",
        ENGRAM,
        _relative_gains("code"),
        RELATIVE,
        prediction="equal",
    ),
    _claim(
        "dense_engram",
        "A memory added to a dense model lowers its loss",
        "deepseek-ai/Engram issue 20",
        "lower loss at 1.3 B with extra parameters, benchmarks hardly better",
        less_than("dense_engram", "dense"),
    ),
    _claim(
        "extra",
        "A memory on top of all experts lowers the loss",
        "arXiv:2608.30320 (Qwen3.8-Flash-Next)",
        "1.541 against 1.585 nats with a table of 50 times the rows",
        less_than("engram_extra", "moe"),
    ),
    _claim(
        "experts_spared",
        "Keeping the experts that make room for the memory makes no difference",
        "arXiv:2601.07372 section 3",
        "72 experts reduced to 55 at equal parameters",
        less_than("engram_extra", "engram"),
        prediction="equal",
    ),
    _tasks("knowledge", "Engram answers more questions of knowledge", "MMLU +3.0 points"),
    _tasks("code", "Engram answers more questions about code", "HumanEval +3.0 points"),
    _tasks("math", "Engram answers more questions of mathematics", "GSM8K +2.2 points"),
    _tasks(
        "context",
        "Engram uses its context better",
        "RULER variable tracking +12.0 points",
        CONTEXT,
    ),
    *(
        _benchmark(task.partition("_")[0], task, domain, f"Engram knows {what} better", published)
        for task, domain, what, published in (
            ("triviaqa_bpb", "knowledge", "the answers to TriviaQA", "TriviaQA 50.7 against 48.8"),
            ("mmlu_bpb", "knowledge", "the answers to MMLU", "MMLU 60.4 against 57.4"),
            ("gsm8k_bpb@0", "math", "the solutions of GSM8K", "GSM8K 60.6 against 58.4"),
            ("humaneval_bpb", "code", "the programs of HumanEval", "HumanEval 40.8 against 37.8"),
        )
    ),
)
