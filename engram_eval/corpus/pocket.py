"""The pocket corpus: what every machine has or the package carries, nothing downloaded.

Each generated domain draws from a random stream of its own, and each split from another, so a
change in one moves no text of the others.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from engram_eval.config import CorpusConfig
from engram_eval.corpus.arithmetic import arithmetic_documents
from engram_eval.corpus.budget import budget
from engram_eval.corpus.document import Document
from engram_eval.corpus.entities import entity_documents
from engram_eval.corpus.facts import facts_documents
from engram_eval.corpus.recall import recall_documents
from engram_eval.corpus.stdlib import stdlib_documents

LIBRARY_DOMAINS = ("code", "docs")

# No document is more than this part of its domain's split, so that even little text is varied;
# but a piece too short to be read as code helps nobody.
MAX_SHARE = 8
MIN_LIMIT = 2_000


@dataclass
class _Left:
    """What may still be taken for one domain and split: all in all, and per document."""

    size: int
    limit: int


def pocket_documents(config: CorpusConfig) -> Iterator[Document]:
    """Yield all documents of the pocket corpus, domain by domain.

    Sizes follow ``train_bytes`` and the mix, but entities follow their dials and come on top.
    The standard library ends after some 10 MB; a larger budget gets what there is, and the
    corpus's manifest tells how much that is.
    """
    yield from library_documents(config, stdlib_documents(config.val_fraction))
    yield from facts_documents(config)
    yield from entity_documents(config)
    yield from arithmetic_documents(config)
    yield from recall_documents(config)


def library_documents(config: CorpusConfig, source: Iterable[Document]) -> Iterator[Document]:
    """Take ``code`` and ``docs`` from a source until their bytes are spent, cut at line ends."""
    left: dict[tuple[str, str | None], _Left] = {}
    for domain in LIBRARY_DOMAINS:
        for split, size in budget(config, domain)._asdict().items():
            left[domain, split] = _Left(size, max(size // MAX_SHARE, MIN_LIMIT))
    if not any(part.size for part in left.values()):
        return
    for document in source:
        part = left[document.domain, document.split]
        text = cut(document.text, min(part.size, part.limit))
        if text:
            part.size -= len(text.encode())
            yield replace(document, text=text)
        elif len(document.text.encode()) > part.size:
            part.size = 0
            if not any(part.size for part in left.values()):
                return


def cut(text: str, size: int) -> str:
    """Return the whole leading lines of a text that fit in ``size`` bytes; maybe none."""
    data = text.encode()
    return text if len(data) <= size else data[: data.rfind(b"\n", 0, size) + 1].decode()
