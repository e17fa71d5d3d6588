"""Gates on text: how far the memory is let in at each token, with its n-gram behind it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from engram_eval.records import MetricRow
from reports.blocks import Item, Note, Passage, TextMap, Token
from reports.load import Study
from reports.numbers import fixed
from reports.query import pick

DOCUMENTS = 3
TOKENS = 110
ORDER = 3

Arrays = Mapping[str, npt.NDArray[Any]]


def gate_text(study: Study, rows: Sequence[MetricRow]) -> list[Item]:
    """Shade the first held-out documents of each model with gates, for its first seed.

    Args:
        study: its corpus holds the tokenizer.
        rows: of the probe ``gates``; their artifacts hold the gates token by token.
    """
    items: list[Item] = []
    for model in study.models:
        here = [r for r in pick(rows, model=model.name, metric="gate_mean") if r.artifact]
        if here:
            first = min(here, key=lambda row: (row.seed or 0, row.layer or 0))
            items.append(_one(study, first))
    return items


def _one(study: Study, row: MetricRow) -> Item:
    """Draw one model, or say why that is not possible."""
    try:
        return _map(row, read_arrays(study, row), read_tokenizer(study.folder))
    except (OSError, KeyError, IndexError, ValueError, SafetensorError) as error:
        return Note(f"The gates of {row.model} on text cannot be shown: {error}")


def read_arrays(study: Study, row: MetricRow) -> Arrays:
    """Read the arrays behind a row.

    Raises:
        OSError: the store of the study is not here.
        SafetensorError: the file is damaged.
    """
    name = Path((row.artifact or {})["file"]).name
    for stage in study.stages:
        if stage.model == row.model and stage.seed == row.seed and stage.stage == "probe":
            path = study.path_of(stage) / name
            if path.exists():
                return load_file(path)
    raise FileNotFoundError(f"{name} is not in the study's store")


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read the study's tokenizer; raises ``ValueError`` or ``OSError`` where it is not readable."""
    text = (folder / "corpus" / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8")
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises nothing finer
        raise ValueError(f"the tokenizer is damaged ({error})") from error


def _map(row: MetricRow, arrays: Arrays, tokenizer: Tokenizer) -> TextMap:
    gate = arrays[f"gate{row.layer}"]
    documents = list(dict.fromkeys(arrays["document"].tolist()))[:DOCUMENTS]
    passages, listed = [], []
    for number in documents:
        places = np.flatnonzero(arrays["document"] == number)[:TOKENS]
        ids = arrays["token"][places].tolist()
        told = [_behind(row, arrays, tokenizer, ids, i, int(p)) for i, p in enumerate(places)]
        tokens = [
            Token(text["token"], float(gate[p]), _tip(text))
            for text, p in zip(told, places, strict=True)
        ]
        passages.append(Passage(f"document {number}", tokens))
        listed += [{"document": number, **text} for text in told]
    return TextMap(
        f"gate-text-{row.model}",
        f"The gates of {row.model} on text",
        f"Block {row.layer}, seed {row.seed}: the stronger a token's colour, the further its "
        "memory is let in. The first held-out documents of the sample, not hand-picked.",
        passages,
        listed,
        low="gate 0",
        high="gate 1",
        key="Pointing at a token tells its n-gram, how often training text had it, the gate, and "
        "the rows of the table that were read.",
        model=row.model,
    )


def _behind(
    row: MetricRow, arrays: Arrays, tokenizer: Tokenizer, ids: Sequence[int], at: int, place: int
) -> dict[str, Any]:
    """Say what is behind one token: its n-gram, counts, gate and rows."""
    index = arrays.get(f"index{row.layer}")
    return {
        "token": tokenizer.decode([ids[at]], skip_special_tokens=False),
        "ngram": tokenizer.decode(list(ids[max(0, at - ORDER + 1) : at + 1])),
        "bigram_count": int(arrays["bigram_count"][place]),
        "trigram_count": int(arrays["trigram_count"][place]),
        "gate": float(arrays[f"gate{row.layer}"][place]),
        "rows": "" if index is None else " ".join(map(str, index[place].tolist())),
    }


def _tip(told: Mapping[str, Any]) -> str:
    rows = f"; rows {told['rows']}" if told["rows"] else ""
    return (
        f"“{told['ngram']}”: gate {fixed(told['gate'], 2)}; in training text the bigram "
        f"{told['bigram_count']} times, the trigram {told['trigram_count']} times{rows}"
    )
