"""What the YAML of the long-context tasks names: items at the lengths that are asked for."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from engram_eval.corpus.tokenizer_file import opened
from engram_eval.errors import UserError
from engram_eval.evaluation.long_context import long_items
from engram_eval.evaluation.repeats import KNOWN, repeat_items
from engram_eval.records import read_record

LENGTHS = (128, 256, 512)
LOADS = (1, 2, 4, 8)
OCCURRENCES = (1, 2, 3, 4)
COUNT = 20
REPEATED = "repeated_fragments"
# Documents of the training text from which fragments are drawn.
TEXTS = 2000


def load_long(
    config_source: str,
    tokenizer: str | None = None,
    pretrained: Any = None,
    data_dir: str | None = None,
    lengths: Sequence[int] = LENGTHS,
    loads: Sequence[int] = LOADS,
    count: int = COUNT,
    **_: object,
) -> dict[str, Dataset]:
    """Give lm-eval a task's items as its ``test`` split.

    Args:
        config_source: the task's YAML; its file name is the task's name. Set by lm-eval.
        tokenizer: folder or name of the tokenizer that counts lengths; a metadata key.
        pretrained: of lm-eval's model arguments; its tokenizer serves where none is named.
        data_dir: items of a study; the tokenizer and the fragments are those of its corpus.
        lengths: in tokens.
        loads: how much there is to keep apart; of repeated fragments, the occurrence scored.
        count: items for each length and load.

    Raises:
        UserError: no tokenizer is named, or no item fits into the lengths.
    """
    task = Path(config_source).stem
    corpus = _corpus(Path(data_dir)) if data_dir else None
    named = tokenizer or pretrained
    if corpus is None and not isinstance(named, str):
        raise UserError(
            f"task {task!r}: name a tokenizer (evaluate.tokenizer; with lm-eval itself "
            f"--metadata '{{\"tokenizer\": ...}}')"
        )
    size = _sizer(corpus.tokenizer() if corpus else opened(str(named)))
    if task == REPEATED:
        chosen = OCCURRENCES if tuple(loads) == LOADS else tuple(loads)
        items = repeat_items(_texts(corpus), lengths, chosen, count, size)
    else:
        items = long_items(task, lengths, loads, count, size)
    if not items:
        raise UserError(f"task {task!r}: nothing fits into {max(lengths)} tokens")
    return {"test": Dataset.from_list(items)}


def process_fragment(
    doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]
) -> dict[str, Any]:
    """Score one fragment: its cost, and whether greedy decoding would write it.

    Args:
        doc: the item.
        results: one (log-likelihood in nats, is greedy), of the fragment.
    """
    ((nats, greedy),) = results
    return {"acc": float(greedy), "bits_per_byte": (nats, len(doc["choices"][0].encode()))}


def _corpus(items: Path) -> Any:
    """Open the corpus that a study's items were made for, by the record beside them."""
    from engram_eval.corpus.store import load_corpus

    record = read_record(items)
    if record is None or "corpus" not in record.inputs:
        return None
    return load_corpus(items.parent / record.inputs["corpus"])


def _sizer(tokenizer: Any) -> Callable[[str], int]:
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def _texts(corpus: Any) -> Sequence[str]:
    if corpus is None:
        return KNOWN
    tokenizer, tokens = corpus.tokenizer(), corpus.tokens("train")
    bounds = corpus.docs("train")[:TEXTS, :2].tolist()
    return tokenizer.batch_decode([tokens[a : b - 1].tolist() for a, b in bounds])
