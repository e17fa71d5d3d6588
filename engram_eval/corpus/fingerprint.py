"""What a corpus is made of, as hashes: the same hashes, the same corpus."""

import hashlib
import platform
from pathlib import Path
from typing import Any

from engram_eval.config import CorpusConfig
from engram_eval.corpus.given_tokenizer import given_tokenizer
from engram_eval.corpus.packed import is_packed
from engram_eval.corpus.readers import Source, open_sources
from engram_eval.corpus.stdlib import stdlib_fingerprint
from engram_eval.corpus.store import MANIFEST
from engram_eval.files import file_sha256

TABLES = Path(__file__).resolve().parent / "tables"


def corpus_fingerprint(config: CorpusConfig) -> dict[str, Any]:
    """Hash everything outside the configuration that decides a corpus's text and tokens.

    A dataset of the Hugging Face hub counts by its name: pin it by downloading it.

    Raises:
        UserError: a path is missing or of an unknown kind, or a tokenizer cannot be used.
    """
    given = {"tokenizer": given_tokenizer(config.tokenizer).sha256} if config.tokenizer else {}
    return {**_text(config), **given}


def _text(config: CorpusConfig) -> dict[str, Any]:
    if is_packed(config.paths):
        return {"packed": file_sha256(Path(config.paths[0]) / MANIFEST)}
    if config.paths:
        return {"sources": [_source(source) for source in open_sources(config.paths)]}
    return {
        "python": platform.python_version(),
        "stdlib": stdlib_fingerprint(),
        "tables": _folder_sha256(TABLES),
    }


def _source(source: Source) -> dict[str, Any]:
    # The path itself does not count: moved text is the same text.
    return {
        "domain": source.domain,
        "dataset": source.spec if source.spec.startswith("hf:") else None,
        "files": [file_sha256(path) for path in source.files],
    }


def _folder_sha256(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n".encode())
    return total.hexdigest()
