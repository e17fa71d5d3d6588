"""Texts that a program holds, as a file that a study can read."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from engram_eval.errors import UserError
from engram_eval.files import content_hash, write_atomic

Texts = Iterable[str] | Mapping[str, Iterable[str]]
DOMAIN = "texts"


def corpus_of(texts: Texts, val: Texts | None = None, folder: Path | str = "runs/texts") -> Path:
    """Keep texts for ``run(..., corpus=...)``; return the file, which is named by its content.

    Args:
        texts: documents; in a mapping, by domain, which losses are told apart by.
        val: documents that validate, in the same form; a text that is also among the others is
            dropped. None: a share of ``texts``, chosen by their hash (``corpus.val_fraction``).
        folder: where the file goes.

    Raises:
        UserError: no texts, or something that is none.
    """
    found = list(records("texts", texts, None if val is None else "train"))
    if val is not None:
        found += records("val", val, "val")
    path = Path(folder) / f"{content_hash(found)}.jsonl"
    if not path.exists():
        write_atomic(path, "".join(f"{json.dumps(record)}\n" for record in found))
    return path


def records(name: str, texts: Texts, split: str | None = None) -> Iterator[dict[str, str]]:
    """Yield each text with its domain, and its split if there is one.

    Args:
        name: what the texts are called in an error.
        texts: documents; in a mapping, by domain.
        split: theirs.

    Raises:
        UserError: no texts, or something that is none.
    """
    by_domain = texts if isinstance(texts, Mapping) else {DOMAIN: texts}
    count = 0
    for domain, documents in by_domain.items():
        if isinstance(documents, str) or not isinstance(documents, Iterable):
            raise UserError(f"{name}: expected a list of texts, got {documents!r:.40}")
        for text in documents:
            if not isinstance(text, str):
                raise UserError(f"{name}: text {count} of it is none: {text!r:.40}")
            yield {"text": text, "domain": domain, **({"split": split} if split else {})}
            count += 1
    if not count:
        raise UserError(f"{name}: holds no texts")
