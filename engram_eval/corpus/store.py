"""A corpus on disk: verified once, then read through memory maps."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engram_eval.arrays import Ints
from engram_eval.corpus.document import BOUNDARY, SPLITS
from engram_eval.corpus.ngrams import NGramModel
from engram_eval.corpus.pack import Answers, token_dtype
from engram_eval.errors import UserError, unknown
from engram_eval.files import file_sha256
from engram_eval.locks import waiting_lock

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SCHEMA = 1
MANIFEST = "manifest.json"
NGRAMS = "ngrams"
NGRAM_ORDERS = 5
END_ID = "end_of_text"
"""Key of the manifest where documents do not end with 0."""
# Larger files are only checked for their size, so that opening a corpus stays instant.
HASHED_BYTES = 4 << 20


@dataclass(frozen=True)
class Corpus:
    """A built corpus.

    Attributes:
        folder: where its files are.
        manifest: what it consists of; see ``build.build_corpus``.
        domains: names; arrays refer to them by index.
        token_bytes: bytes of text that each token stands for, (V,); 0 for the end of text.
    """

    folder: Path
    manifest: Mapping[str, Any]
    domains: tuple[str, ...]
    token_bytes: Ints

    @property
    def vocab_size(self) -> int:
        """Tokens of the tokenizer."""
        return len(self.token_bytes)

    @property
    def end_id(self) -> int:
        """The token that ends every document, and so marks the beginning of the next."""
        return int(self.manifest.get(END_ID, BOUNDARY))

    def tokens(self, split: str) -> np.memmap:
        """Return a split's token stream, (T,); every document ends with ``end_id``."""
        path = self._file(split, "bin")
        return np.memmap(path, dtype=token_dtype(self.vocab_size), mode="r")

    def docs(self, split: str) -> Ints:
        """Return start, end (exclusive, end of text included), domain, bytes: (documents, 4)."""
        return np.load(self._file(split, "docs.npy"))

    def answers(self, split: str) -> Answers:
        """Return the token spans of a split's answers with their two entropies."""
        with np.load(self._file(split, "answers.npz")) as arrays:
            return Answers(*(arrays[name] for name in Answers._fields))

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """Load the tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(self.folder / "tokenizer"))

    def ngrams(self) -> NGramModel:
        """Open the n-gram counts of the training tokens; of a packed corpus, count them first."""
        place = self.folder / NGRAMS
        if not place.exists():
            # Several stages ask at once; counting takes long, and a folder is moved once.
            with waiting_lock(self.folder / f"{NGRAMS}.lock"):
                if not place.exists():
                    self._count(place)
        return NGramModel.load(place)

    def _count(self, place: Path) -> None:
        counted = NGramModel.count(self.tokens("train"), self.vocab_size, NGRAM_ORDERS, self.end_id)
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            counted.save(Path(scratch) / NGRAMS)
            (Path(scratch) / NGRAMS).rename(place)

    def _file(self, split: str, suffix: str) -> Path:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        return self.folder / f"{split}.{suffix}"


def load_corpus(folder: Path | str) -> Corpus:
    """Open a corpus and check it against its manifest: all files, sizes, hashes of small ones.

    Raises:
        UserError: no corpus there, an unfinished one, one of a newer version, or a changed file.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{folder}: no corpus here (no finished {MANIFEST})") from error
    except ValueError as error:
        raise UserError(f"{folder / MANIFEST}: damaged ({error})") from error
    if manifest.get("schema") != SCHEMA:
        raise UserError(
            f"{folder}: corpus of schema {manifest.get('schema')}; this version reads {SCHEMA}"
        )
    for name, facts in manifest["files"].items():
        _check_file(folder / name, facts)
    return Corpus(folder, manifest, tuple(manifest["domains"]), np.load(folder / "token_bytes.npy"))


def _check_file(path: Path, facts: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise UserError(f"{path}: missing from the corpus; build it again")
    size = path.stat().st_size
    small = size <= HASHED_BYTES
    if size != facts["bytes"] or (small and file_sha256(path) != facts["sha256"]):
        raise UserError(f"{path}: is not what the manifest describes; build the corpus again")
