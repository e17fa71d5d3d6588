"""The evaluation stages: a trained model on the tasks and on held-out text."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM

from engram_eval.adapters.load import load_model
from engram_eval.adapters.stage import model_sha256
from engram_eval.allocator import keep_freed_memory
from engram_eval.arrays import Floats, Ints
from engram_eval.config import EvalConfig
from engram_eval.corpus.store import load_corpus
from engram_eval.corpus.tokenizer_file import opened
from engram_eval.environment import compute_device, device
from engram_eval.evaluation.fast_lm import FastLM
from engram_eval.evaluation.heldout import token_bits
from engram_eval.evaluation.heldout_stage import heldout, text_for, windows
from engram_eval.evaluation.heldout_text import HeldoutText
from engram_eval.evaluation.loading import benchmarks, load_tasks
from engram_eval.evaluation.quiet import quiet_lm_eval
from engram_eval.evaluation.result_cache import FOLDER, ResultCache, identity
from engram_eval.evaluation.runner import run_tasks
from engram_eval.evaluation.samples import unscored
from engram_eval.evaluation.scores import task_rows
from engram_eval.evaluation.settings import check_settings
from engram_eval.evaluation.shared_lm import SharedLM, own_folder, shared_cost
from engram_eval.parallel.launched import launched
from engram_eval.parallel.ranks import Ranks, joined
from engram_eval.progress import Reporter
from engram_eval.records import EQUAL_LOSS, EQUAL_LOSS_FACTS, MetricRow
from engram_eval.stage_config import EqualLossScores

TOKENS_PER_REQUEST = 64


def evaluate(
    inputs: Mapping[str, Path],
    config: EvalConfig,
    seed: int | None,
    out: Path,
    report: Reporter,
) -> list[MetricRow]:
    """Score a trained model.

    Writes ``results.json`` (lm-eval's form), ``samples/<task>.jsonl`` and ``heldout.jsonl`` (sums
    per document). Tasks that an interrupted run finished are not run again; nor are those that
    another evaluation in the same store has asked of this checkpoint.

    Args:
        inputs: ``train`` with the folder ``model``; ``corpus`` and ``items`` where held-out text
            or tasks of ours are scored.
        config: tasks, and the window of the held-out loss.
        seed: of the training run; nothing here is random.
        out: the folder to fill.
        report: where progress goes.

    Started by ``torchrun``, each process scores a part of every task's requests and of the
    held-out text; the first one writes.

    Raises:
        UserError: an impossible setting or an unknown task (before the model is loaded), or no
            model.
    """
    check_settings(config)
    keep_freed_memory()
    loaded = asked_tasks(config, inputs)
    model = inputs["train"] / "model"
    scored = config.heldout and "corpus" in inputs
    # Before the tasks, so that a tokenizer that cannot be used is told of at once.
    text = text_for(load_corpus(inputs["corpus"]), config, model) if scored else None
    batch = windows(config)
    with ExitStack() as stack:
        ranks = stack.enter_context(joined()) if launched() else None
        lm = functools.cache(lambda: hf_lm(model, config.batch_size, ranks))

        end_id = text.end_id if text else 0

        def cost(tokens: Ints, before: int = end_id) -> Floats:
            opened = lm()
            return token_bits(opened.model, tokens, config.seq_len, batch, opened.device, before)

        if ranks is None:
            who = identity(model=model_sha256(model), batch_size=config.batch_size, device=device())
            cache = ResultCache(out.parent / FOLDER, who)
            return score(lm, cost, loaded, text, config, out, report, cache)
        unit = batch * config.seq_len
        mine = stack.enter_context(own_folder(out, ranks))
        shared = functools.partial(shared_cost, cost, unit=unit, ranks=ranks, end_id=end_id)
        # What one process found in a cache while another did not, the other would wait for.
        return score(lm, shared, loaded, text, config, mine, report, None)


def evaluate_equal_loss(
    inputs: Mapping[str, Path],
    config: EqualLossScores,
    seed: int | None,
    out: Path,
    report: Reporter,
) -> list[MetricRow]:
    """Score the checkpoint that meets another model's loss; see ``evaluate``.

    Its rows say so by their condition, whose loss it is and the step; the last checkpoint of the
    worse of two models is scored too, so that both have rows of this condition.

    Args:
        inputs: as for ``evaluate``; ``train`` is what ``training.equal_loss`` chose.
        config: how it is scored, and whose loss was met.
        seed: of the training run.
        out: the folder to fill.
        report: where progress goes.
    """
    step = json.loads((inputs["train"] / EQUAL_LOSS_FACTS).read_text(encoding="utf-8"))["step"]
    rows = evaluate(inputs, config.evaluate, seed, out, report)
    marks: dict[str, Any] = {"condition": EQUAL_LOSS, "other": dict(config.other), "step": step}
    return [dataclasses.replace(row, **marks) for row in rows]


def asked_tasks(config: EvalConfig, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Load the tasks as ``score`` takes them; of none where held-out text says enough.

    Raises:
        UserError: an unknown task, or one whose data are not there.
    """
    if not config.tasks:
        return {"tasks": {}, "pooled": {}}
    mirror = Path(config.mirror) if config.mirror else None
    return load_tasks(
        config.tasks,
        inputs.get("items"),
        mirror,
        config.unsafe_code,
        config.lengths,
        config.tokenizer,
        config.include_path,
    )


def hf_lm(folder: Path, batch_size: int, ranks: Ranks | None = None) -> FastLM:
    """Load a model folder for lm-eval.

    Args:
        folder: in Hugging Face form, with its tokenizer.
        batch_size: requests of moderate length that are scored at once.
        ranks: the processes that share the requests, each on its device; None for one alone.

    Raises:
        UserError: the folder holds no model.
    """
    model, tokenizer = load_model(folder), opened(folder)
    place = compute_device() if ranks is None else ranks.device
    return fast_lm(model.to(place), tokenizer, batch_size, ranks)


def fast_lm(model: Any, tokenizer: Any, batch_size: int, ranks: Ranks | None = None) -> FastLM:
    """Wrap a loaded model for lm-eval; see ``hf_lm``."""
    make = FastLM if ranks is None else functools.partial(SharedLM, ranks=ranks)
    with quiet_lm_eval():
        return make(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            tokens_per_batch=batch_size * TOKENS_PER_REQUEST,
        )


def score(
    lm: LM | Callable[[], LM],
    cost: Callable[[Ints], Floats],
    loaded: Mapping[str, Any],
    text: HeldoutText | None,
    config: EvalConfig,
    out: Path,
    report: Reporter,
    cache: ResultCache | None,
) -> list[MetricRow]:
    """Run the tasks, then the held-out text, and return the rows of both.

    Args:
        lm: for lm-eval, or what opens it when it is first needed.
        cost: gives the bits of each token of held-out text.
        loaded: as ``asked_tasks`` gives them.
        text: held-out text; None where it is not scored.
        config: how many items of each task.
        out: the folder to fill.
        report: where progress goes.
        cache: answers that are known; None where nobody may look.

    Raises:
        UserError: a task none of whose metrics is kept.
    """
    samples = run_tasks(lm, loaded, out, report, config.limit, cache)
    first = {name: loaded["tasks"][tasks[0]] for name, tasks in benchmarks(loaded).items()}
    rows: list[MetricRow] = []
    for name, found in samples.items():
        made = task_rows(name, first[name].config.metadata, found)
        if not made:
            raise unscored(name, found[0]["metrics"] if found else ())
        rows += made
    return rows if text is None else rows + heldout(cost, text, out, report)
