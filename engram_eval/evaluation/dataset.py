"""What the tasks' YAML names: how items are read and how one item is scored.

Stock lm-eval imports these two functions wherever engram_eval is installed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from engram_eval.errors import UserError
from engram_eval.files import read_jsonl


def items_file(yaml_file: Path, data_dir: Path | None = None) -> Path:
    """Return where a task's items lie: in ``data_dir``, or committed beside its YAML."""
    folder = data_dir or yaml_file.parent / "data"
    path = folder / f"{yaml_file.stem}.jsonl"
    if not path.is_file():
        raise UserError(f"no items for task {yaml_file.stem!r}: {path} does not exist")
    return path


def load_items(config_source: str, data_dir: str | None = None, **_: object) -> dict[str, Dataset]:
    """Give lm-eval a task's items as its ``test`` split.

    Args:
        config_source: the task's YAML; its file name is the task's name. Set by lm-eval.
        data_dir: folder of ``<task>.jsonl``; None means the committed items. A metadata key.

    lm-eval passes all metadata, the model's arguments included; the rest is not needed here.
    """
    path = items_file(Path(config_source), Path(data_dir) if data_dir else None)
    return {"test": Dataset.from_list(list(read_jsonl(path)))}


def process_results(
    doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]
) -> dict[str, Any]:
    """Score one item from the log-likelihoods of its choices.

    Args:
        doc: the item: ``choices``, ``gold``.
        results: (log-likelihood in nats, is greedy) of each choice, in order.

    Returns:
        ``acc``: 1.0 if the gold choice is the likeliest (the first of equals counts), else 0.0;
        ``bits_per_byte``: (log-likelihood in nats, UTF-8 bytes) of the gold choice, which
        lm-eval's aggregation of that name sums over the items.
    """
    likelihoods = [likelihood for likelihood, _ in results]
    gold = doc["gold"]
    size = len(doc["choices"][gold].encode())
    best = likelihoods.index(max(likelihoods))
    return {"acc": float(best == gold), "bits_per_byte": (likelihoods[gold], size)}
