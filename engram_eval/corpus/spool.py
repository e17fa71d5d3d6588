"""Collected documents on disk, so that the text never has to fit into memory."""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from engram_eval.corpus.document import SPLITS, Answer, Document, hash_fraction
from engram_eval.files import canonical_json


class Spool:
    """Takes in documents, drops repeats, decides splits; gives them back in any order.

    A document without a split of its own is decided by the hash of its text. In memory are only
    a position and a hash per document.

    Args:
        path: the file to write.
        val_fraction: share of documents that validate.

    Attributes:
        domains: names, in the order of their first document.
        dropped: ``duplicates`` within a split, and validation documents whose text is also
            training text (``also_in_train``): what was trained on is not held out.
    """

    def __init__(self, path: Path, val_fraction: float) -> None:
        self.val_fraction = val_fraction
        self.domains: list[str] = []
        self.dropped: Counter[str] = Counter(duplicates=0, also_in_train=0)
        self._file = open(path, "w+b")  # noqa: SIM115 (lives as long as the spool)
        self._offsets = {split: array("q") for split in SPLITS}
        self._hashes: dict[str, list[bytes]] = {split: [] for split in SPLITS}
        self._seen: dict[str, set[bytes]] = {split: set() for split in SPLITS}

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, document: Document) -> str | None:
        """Take in a document; returns its split, or None if it was dropped as a repeat."""
        validates = hash_fraction(document.text) < self.val_fraction
        split = document.split or ("val" if validates else "train")
        digest = hashlib.sha256(document.text.encode()).digest()[:16]
        if digest in self._seen[split] and not document.keep_repeats:
            self.dropped["duplicates"] += 1
            return None
        self._seen[split].add(digest)
        self._hashes[split].append(digest)
        self._offsets[split].append(self._file.tell())
        record = [document.text, document.domain, document.name, split, document.answers]
        self._file.write(canonical_json(record).encode() + b"\n")
        if document.domain not in self.domains:
            self.domains.append(document.domain)
        return split

    def finish(self) -> None:
        """Drop validation documents that are also training documents; call it after the last."""
        fresh = [digest not in self._seen["train"] for digest in self._hashes["val"]]
        kept = [o for o, keep in zip(self._offsets["val"], fresh, strict=True) if keep]
        self.dropped["also_in_train"] = len(fresh) - len(kept)
        self._offsets["val"] = array("q", kept)

    def count(self, split: str) -> int:
        """Return the number of a split's documents."""
        return len(self._offsets[split])

    def read(self, split: str, order: Iterable[int]) -> Iterator[Document]:
        """Yield a split's documents by their indices."""
        offsets: Sequence[int] = self._offsets[split]
        for index in order:
            self._file.seek(offsets[index])
            text, domain, name, fixed, answers = json.loads(self._file.readline())
            yield Document(text, domain, name, fixed, tuple(Answer(*a) for a in answers))
