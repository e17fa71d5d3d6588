"""A built corpus to carry to another machine: tokens, tokenizer, documents, and no counts."""

import json
import lzma
import shutil
from collections.abc import Sequence
from pathlib import Path

from engram_eval.config import CorpusConfig
from engram_eval.corpus.store import MANIFEST, NGRAMS, Corpus, load_corpus
from engram_eval.errors import UserError
from engram_eval.files import write_json

TOKENS = ".bin"
"""Suffix of token streams, which are compressed: to about 60 %."""


def is_packed(paths: Sequence[str]) -> bool:
    """Return whether ``paths`` is one folder that holds a corpus instead of text."""
    return len(paths) == 1 and (Path(paths[0]) / MANIFEST).is_file()


def pack_corpus(corpus: Corpus, out: Path) -> int:
    """Copy a corpus without what can be counted again; return its bytes.

    Args:
        corpus: what is packed.
        out: a folder that does not exist yet, or a packed corpus that is replaced.

    Raises:
        UserError: ``out`` holds something else.
    """
    check_room(out)
    shutil.rmtree(out, ignore_errors=True)
    kept = [name for name in corpus.manifest["files"] if not name.startswith(f"{NGRAMS}/")]
    for name in kept:
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == TOKENS:
            with lzma.open(_pressed(target), "wb", preset=0) as file:
                file.write((corpus.folder / name).read_bytes())
        else:
            shutil.copyfile(corpus.folder / name, target)
    files = {name: corpus.manifest["files"][name] for name in kept}
    write_json(out / MANIFEST, {**corpus.manifest, "files": files})
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def check_room(out: Path) -> None:
    """Refuse to replace what is no packed corpus.

    Raises:
        UserError: ``out`` holds something else.
    """
    if out.exists() and not (out.is_dir() and (is_packed([str(out)]) or not any(out.iterdir()))):
        raise UserError(f"{out}: is there already, and is no packed corpus")


def adopt(packed: Path, config: CorpusConfig, out: Path) -> Corpus:
    """Take over a packed corpus as the corpus stage's result.

    Raises:
        UserError: a damaged corpus, or one of a larger vocabulary than the study has.
    """
    manifest = json.loads((packed / MANIFEST).read_text(encoding="utf-8"))
    if manifest["vocab_size"] > config.vocab_size:
        raise UserError(
            f"{packed}: has {manifest['vocab_size']} tokens; "
            f"corpus.vocab_size={config.vocab_size} is smaller"
        )
    (out / MANIFEST).unlink(missing_ok=True)
    for name in manifest["files"]:
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _unpack(packed / name, target)
    write_json(out / MANIFEST, manifest)
    return load_corpus(out)


def _unpack(source: Path, target: Path) -> None:
    pressed = _pressed(source)
    try:
        if source.suffix == TOKENS:
            target.write_bytes(lzma.decompress(pressed.read_bytes()))
        else:
            shutil.copyfile(source, target)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: missing from the packed corpus") from error
    except lzma.LZMAError as error:
        raise UserError(f"{pressed}: damaged ({error})") from error


def _pressed(path: Path) -> Path:
    return path.with_name(f"{path.name}.xz")
