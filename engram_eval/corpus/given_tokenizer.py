"""An existing tokenizer in place of one that is trained: found, checked, stripped of additions.

Models are trained on a stream in which the end of text alone stands between documents, so what a
tokenizer would put around a text (a beginning of text, padding) is taken off. What is left must
give back every text that it reads: bits per byte would otherwise be those of another text.
"""

import functools
import re
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from engram_eval.corpus.tokenizer import EOS, token_bytes, vocabulary_size
from engram_eval.corpus.tokenizer_file import FILE, SETTINGS, named_end, read_tokenizer
from engram_eval.errors import UserError, nearest
from engram_eval.files import content_hash, file_sha256

KNOWN_ENDS = (EOS, "<|end_of_text|>", "</s>", "<eos>", "<｜end▁of▁sentence｜>")
"""Taken for the end of text where no settings beside ``tokenizer.json`` name another."""

SAMPLE = "Two  spaces, CAPITALS, don't\n\n\tnaïve façade 0123456789\r\n漢字 🦉 = {x}"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Given(NamedTuple):
    """A tokenizer that was not trained here.

    Attributes:
        tokenizer: adds nothing to a text, and reads a spelt-out special token as text.
        end: the token that ends documents.
        end_id: its id.
        sha256: over what it computes.
    """

    tokenizer: Tokenizer
    end: str
    end_id: int
    sha256: str

    @property
    def size(self) -> int:
        """V: one more than the highest id."""
        return vocabulary_size(self.tokenizer)


def given_tokenizer(spec: str) -> Given:
    """Open a tokenizer.

    Args:
        spec: a folder with ``tokenizer.json``, such a file, or a name on the Hugging Face hub.

    Raises:
        UserError: nothing there, no fast tokenizer, one without an end of text, or one that does
            not give back the text that it reads.
    """
    files = _files(spec)
    return _open(spec, files, tuple(path.stat().st_mtime_ns for path in files))


def _files(spec: str) -> tuple[Path, ...]:
    """Return the tokenizer's file, and the settings beside it."""
    path = Path(spec)
    if path.is_dir():
        if not (path / FILE).is_file():
            raise _no_fast(spec)
        return (path / FILE, *_beside(path))
    if path.is_file():
        return (path, *(_beside(path.parent) if path.name == FILE else ()))
    if path.suffix == ".json" or spec.startswith((".", "/", "~")):
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{spec}: no such file or folder{nearest(path.name, names)}")
    if not HUB_NAME.fullmatch(spec):
        raise UserError(f"{spec}: no such folder, and no name of the Hugging Face hub")
    return _from_hub(spec)


def _beside(folder: Path) -> tuple[Path, ...]:
    return tuple(folder / name for name in SETTINGS if (folder / name).is_file())


def _no_fast(spec: str) -> UserError:
    return UserError(
        f"{spec}: no fast tokenizer (no {FILE}); AutoTokenizer.from_pretrained(...) and "
        "save_pretrained(...) write one where transformers can convert it"
    )


@functools.cache
def _from_hub(name: str) -> tuple[Path, ...]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    found = []
    for part in (FILE, *SETTINGS):
        try:
            found.append(Path(hf_hub_download(name, part)))
        except EntryNotFoundError as error:
            if part != FILE:
                continue
            if not isinstance(error, LocalEntryNotFoundError):
                raise _no_fast(name) from error
            raise UserError(
                f"{name}: no such folder, and not on the Hugging Face hub or its cache as far as "
                "this machine can reach"
            ) from error
        except (OSError, ValueError) as error:
            # Unknown or closed repositories, and names that the hub does not allow.
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{name}: no tokenizer from the hub ({reason})") from error
    return tuple(found)


@functools.cache
def _open(spec: str, files: tuple[Path, ...], changed_ns: tuple[int, ...]) -> Given:
    tokenizer = read_tokenizer(files[0])
    end, end_id = _end(spec, tokenizer, files[1:])
    tokenizer.add_special_tokens([end])
    tokenizer.post_processor = None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    _check_text_comes_back(spec, tokenizer)
    sha256 = content_hash({"file": file_sha256(files[0]), "end": end})
    return Given(tokenizer, end, end_id, sha256)


def _end(spec: str, tokenizer: Tokenizer, settings: tuple[Path, ...]) -> tuple[str, int]:
    """Return the token that ends a text and its id: what settings name, or a usual one."""
    named = [token for path in settings if (token := named_end(path)) is not None]
    for token in named or KNOWN_ENDS:
        end_id = tokenizer.token_to_id(token)
        if end_id is not None:
            return token, end_id
    sought = ", ".join(named or KNOWN_ENDS)
    raise UserError(f"{spec}: a tokenizer without an end of text (sought: {sought})")


def _check_text_comes_back(spec: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(SAMPLE, add_special_tokens=False).ids
    whole = tokenizer.decode(ids, skip_special_tokens=False) == SAMPLE
    if not whole or token_bytes(tokenizer)[ids].sum() != len(SAMPLE.encode()):
        raise UserError(
            f"{spec}: this tokenizer does not give back the text that it reads, byte for byte; "
            "allowed are those that do, as byte-level ones (GPT-2, Pythia, Qwen, Llama 3)"
        )
