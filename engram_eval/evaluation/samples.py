"""lm-eval's samples in the form that is kept: one line an item, with all that it scored."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from engram_eval.errors import UserError
from engram_eval.files import content_hash

Sample = dict[str, Any]

# What can be rebuilt from the item, or is as long as a prompt.
_DROPPED = ("arguments", "resps")
_LONG_FIELDS = ("prompt",)
# Scores of an item that are averaged, in order of importance; those where guessing helps.
FRACTIONS = ("acc", "acc_norm", "exact_match", "f1", "pass_at_1", "math_verify", "bleu_acc")
GUESSED = frozenset({"acc", "acc_norm"})
# Fields of an item that name or hold the text it was made from: a file, a passage, a dialogue.
SOURCES = ("source", "source_id", "passage", "article", "context")
# Metrics that tasks call otherwise than ``records.METRICS``.
ALIASES = {"pass@1": "pass_at_1", "em": "exact_match"}
SCORED = frozenset({*FRACTIONS, *ALIASES, "bits_per_byte", "perplexity"})
"""Metrics of tasks that become metric rows; others are lm-eval's alone."""


def unscored(task: str, metrics: Iterable[str]) -> UserError:
    """Return the error for a task none of whose metrics would become a row."""
    return UserError(
        f"task {task!r}: none of its metrics ({', '.join(metrics) or 'it names none'}) is one that "
        f"a study keeps; allowed: {', '.join(sorted(SCORED))}"
    )


def per_item(samples: Sequence[Mapping[str, Any]], output_type: str) -> Iterator[Sample]:
    """Yield one sample per item, scored by the task's first filter.

    What further filters score is kept under ``by_filter``.

    Args:
        samples: lm-eval's: one per item and filter, filters one after the other.
        output_type: the task's; a multiple choice gets ``n_choices``.
    """
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    first = [sample for sample in samples if sample["filter"] == filters[0]]
    others: dict[Any, dict[str, dict[str, Any]]] = {}
    for sample in samples:
        if sample["filter"] != filters[0]:
            others.setdefault(sample["doc_id"], {})[sample["filter"]] = _scores(sample)
    for sample in first:
        kept = {key: value for key, value in sample.items() if key not in _DROPPED}
        kept["doc"] = {k: v for k, v in sample["doc"].items() if k not in _LONG_FIELDS}
        kept |= _scores(sample)
        if output_type == "multiple_choice":
            kept["n_choices"] = len(sample["arguments"])
        if sample["doc_id"] in others:
            kept["by_filter"] = others[sample["doc_id"]]
        yield kept


def _scores(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item's scores under the names that metric rows have."""
    return {ALIASES.get(name, name): sample[name] for name in sample["metrics"]}


def pool(parts: Mapping[str, Sequence[Sample]]) -> list[Sample]:
    """Put the samples of a benchmark's tasks together; ``subtask`` becomes a slice label."""
    return [
        {
            **sample,
            "item": f"{task} {sample['doc_id']}",
            "slices": {"subtask": task.partition("@")[0]},
        }
        for task, samples in parts.items()
        for sample in samples
    ]


def slices_of(sample: Mapping[str, Any]) -> Mapping[str, str]:
    """Return an item's labels."""
    return sample.get("slices") or sample["doc"].get("slices") or {}


def item_id(sample: Mapping[str, Any]) -> str:
    """Name an item by its place and the hash of its content."""
    place = sample.get("item") or sample["doc"].get("id", sample["doc_id"])
    return f"{place} {sample.get('doc_hash', '')}"


def sources_of(samples: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return what each item was made from, or nothing where no two items share a source.

    Items of one source are no independent evidence: they are resampled together, and standard
    errors take them for one.
    """
    return shared(tuple(map(source_of, samples)))


def shared(sources: tuple[str, ...]) -> tuple[str, ...]:
    """Return sources as they are, or none where no two units share one."""
    return sources if len(set(sources)) < len(sources) else ()


def source_of(sample: Mapping[str, Any]) -> str:
    """Name what an item was made from: our own items say it, questions share their passage."""
    told = next((sample["doc"][key] for key in SOURCES if sample["doc"].get(key)), None)
    return content_hash(told) if told else item_id(sample)


def has_number(metric: str, samples: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether every item has a number of a metric."""
    return bool(samples) and all(isinstance(s.get(metric), int | float) for s in samples)


def has_ratio(metric: str, samples: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether every item has (log-likelihood, size) of a metric."""
    return bool(samples) and all(isinstance(s.get(metric), list | tuple) for s in samples)
