"""The corpus stage: text in, a folder of tokens, counts and a manifest out.

Everything is made in a scratch folder beside the result and moved when it is complete; the
manifest goes last, and without it nothing counts as a corpus.
"""

import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from engram_eval.config import CorpusConfig
from engram_eval.config_json import to_dict
from engram_eval.corpus.document import BOUNDARY, SPLITS, Document
from engram_eval.corpus.given_tokenizer import given_tokenizer
from engram_eval.corpus.ngrams import NGramModel
from engram_eval.corpus.pack import pack, token_dtype
from engram_eval.corpus.packed import adopt, is_packed
from engram_eval.corpus.pocket import pocket_documents
from engram_eval.corpus.readers import open_sources, read_documents
from engram_eval.corpus.settings import check_corpus
from engram_eval.corpus.spool import Spool
from engram_eval.corpus.store import (
    END_ID,
    MANIFEST,
    NGRAM_ORDERS,
    NGRAMS,
    SCHEMA,
    Corpus,
    load_corpus,
)
from engram_eval.corpus.tokenizer import (
    EOS,
    save_tokenizer,
    token_bytes,
    train_tokenizer,
    vocabulary_size,
)
from engram_eval.errors import UserError
from engram_eval.files import file_sha256, write_json
from engram_eval.progress import Reporter, Task
from engram_eval.records import MetricRow

SPLIT_RULE = (
    "the source's own split where it has one, else val if sha256(text) (first 8 bytes, "
    "as a fraction) < val_fraction; val documents whose text is also in train are dropped"
)


def build_corpus(
    inputs: Mapping[str, Path],
    config: CorpusConfig,
    seed: int | None,
    out: Path,
    report: Reporter,
) -> list[MetricRow]:
    """Build the corpus that a configuration describes; the same one gives the same bytes.

    A packed corpus in place of text is taken over as it is.

    Args:
        inputs: none are needed.
        config: its own seed draws text and order.
        seed: not used; part of every stage's signature.
        out: the folder to fill.
        report: where progress goes.

    Returns:
        Tokens per split and domain; entropies per generated domain.

    Raises:
        UserError: a bad configuration or input; ``out`` then holds no corpus.
    """
    check_corpus(config)
    if is_packed(config.paths):
        return _rows(adopt(Path(config.paths[0]), config, out))
    with _scratch(out) as work, Spool(work / "documents.jsonl", config.val_fraction) as spool:
        ignored = _collect(config, spool, report)
        tokenizer, end_id = _tokenizer(config, spool, work, report)
        rng = np.random.default_rng(config.seed)
        for split in SPLITS:
            order = rng.permutation(spool.count(split))
            with report.task(f"corpus: pack {split}", len(order)) as task:
                documents = _as_read(spool.read(split, order), tokenizer)
                for packed in pack(documents, tokenizer, spool.domains, work, split, end_id):
                    task.advance(packed)
        _count_ngrams(vocabulary_size(tokenizer), end_id, work, report)
        facts: dict[str, Any] = {"dropped": dict(spool.dropped), "ignored_files": ignored}
        if end_id != BOUNDARY:
            facts[END_ID] = end_id
        _publish(config, spool.domains, facts, work, out)
    corpus = load_corpus(out)
    _tell(corpus.manifest, report)
    return _rows(corpus)


def _tell(manifest: Mapping[str, Any], report: Reporter) -> None:
    """Say how much text there is, and what bounds the loss on generated answers."""
    for domain, part in manifest["splits"]["train"]["domains"].items():
        line = f"{domain}: {part['tokens']:,} training tokens"
        bounds = manifest["entropies"]["val"].get(domain)
        if bounds:
            line += (
                f"; a held-out answer has {bounds['entropy_absent_bits']:.2f} bits without the "
                f"skill, {bounds['entropy_perfect_bits']:.2f} with it"
            )
        report.say(line)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """Give an empty folder inside ``out`` that is gone afterwards, whatever happens.

    Its name is fixed, so that what a killed build left behind goes with the next one.
    """
    work = out / ".partial"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work)


def _collect(config: CorpusConfig, spool: Spool, report: Reporter) -> list[str]:
    """Fill the spool; returns the files that were passed over."""
    if config.paths:
        sources = open_sources(config.paths)
        known = sum(path.stat().st_size for source in sources for path in source.files)
        total = min(known or config.train_bytes, config.train_bytes or known)
        with report.task("corpus: read", total) as task:
            _read(read_documents(sources), spool, config.train_bytes, task)
        ignored = [f"{source.spec}/{name}" for source in sources for name in source.ignored]
    else:
        with report.task("corpus: generate", config.train_bytes) as task:
            _read(pocket_documents(config), spool, 0, task)
        ignored = []
    spool.finish()
    for split in SPLITS:
        if not spool.count(split):
            raise UserError(
                f"the corpus has no {split} documents ({spool.count('train')} train, "
                f"{spool.count('val')} val): give more text or another val_fraction"
            )
    return ignored


def _read(documents: Iterator[Document], spool: Spool, train_bytes: int, task: Task) -> None:
    """Take documents until there are ``train_bytes`` of training text (0: all)."""
    taken = 0
    for document in documents:
        size = len(document.text.encode())
        if spool.add(document) == "train":
            taken += size
        task.advance(size)
        if train_bytes and taken >= train_bytes:
            return


def _tokenizer(
    config: CorpusConfig, spool: Spool, work: Path, report: Reporter
) -> tuple[Tokenizer, int]:
    """Write the tokenizer that was given, or one trained on the training documents.

    Returns:
        The tokenizer, and the id of its end of text.
    """
    if config.tokenizer:
        given = given_tokenizer(config.tokenizer)
        tokenizer, end, end_id = given.tokenizer, given.end, given.end_id
    else:
        tokenizer, end, end_id = _trained(config, spool, report), EOS, BOUNDARY
    save_tokenizer(tokenizer, work / "tokenizer", end)
    np.save(work / "token_bytes.npy", token_bytes(tokenizer))
    return tokenizer, end_id


def _as_read(documents: Iterator[Document], tokenizer: Tokenizer) -> Iterator[Document]:
    """Yield documents in the Unicode form that a tokenizer reads and gives back."""
    normalizer = tokenizer.normalizer
    for document in documents:
        text = normalizer.normalize_str(document.text) if normalizer else document.text
        # Spans in other text would be others; pack checks what it cannot give back.
        same = text == document.text or document.answers
        yield document if same else replace(document, text=text)


def _trained(config: CorpusConfig, spool: Spool, report: Reporter) -> Tokenizer:
    count = spool.count("train")
    with report.task("corpus: train the tokenizer", count) as task:

        def texts() -> Iterator[str]:
            for document in spool.read("train", range(count)):
                task.advance()
                yield document.text

        tokenizer = train_tokenizer(texts(), config.vocab_size)
    if tokenizer.get_vocab_size() < config.vocab_size:
        report.say(
            f"the text supports {tokenizer.get_vocab_size()} tokens of the "
            f"{config.vocab_size} asked for"
        )
    return tokenizer


def _count_ngrams(vocab_size: int, end_id: int, work: Path, report: Reporter) -> None:
    with report.task("corpus: count n-grams", 1) as task:
        tokens = np.fromfile(work / "train.bin", dtype=token_dtype(vocab_size))
        NGramModel.count(tokens, vocab_size, NGRAM_ORDERS, end_id).save(work / NGRAMS)
        task.advance()


def _publish(
    config: CorpusConfig, domains: list[str], facts: Mapping[str, Any], work: Path, out: Path
) -> None:
    """Move the finished files into place, and then write the manifest."""
    (work / "documents.jsonl").unlink()
    files = sorted(path.relative_to(work) for path in work.rglob("*") if path.is_file())
    sizes = {
        name.as_posix(): {
            "sha256": file_sha256(work / name),
            "bytes": (work / name).stat().st_size,
        }
        for name in files
    }
    corpus = Corpus(work, {}, tuple(domains), np.load(work / "token_bytes.npy"))
    manifest = {**_describe(corpus), **facts, "config": to_dict(config), "files": sizes}
    (out / MANIFEST).unlink(missing_ok=True)
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).replace(out / name)
    write_json(out / MANIFEST, manifest)


def _describe(corpus: Corpus) -> dict[str, Any]:
    """Summarise the packed files as plain data."""
    splits = {split: _split_sizes(corpus, split) for split in SPLITS}
    total = [sum(part[unit] for part in splits.values()) for unit in ("tokens", "bytes")]
    model = corpus.ngrams()
    return {
        "schema": SCHEMA,
        "python": platform.python_version(),
        "vocab_size": corpus.vocab_size,
        "domains": list(corpus.domains),
        "splits": splits,
        "split_rule": SPLIT_RULE,
        "tokens_per_byte": total[0] / total[1],
        "entropies": {split: _entropies(corpus, split) for split in SPLITS},
        "ngrams": {"max_order": model.max_order, "distinct": [len(k) for k in model.keys]},
    }


def _split_sizes(corpus: Corpus, split: str) -> dict[str, Any]:
    """Count documents, tokens (ends of text included) and bytes, in all and per domain."""
    docs = corpus.docs(split)

    def sizes(rows: np.ndarray) -> dict[str, int]:
        tokens = int((rows[:, 1] - rows[:, 0]).sum())
        return {"documents": len(rows), "tokens": tokens, "bytes": int(rows[:, 3].sum())}

    parts = {name: sizes(docs[docs[:, 2] == i]) for i, name in enumerate(corpus.domains)}
    return {**sizes(docs), "domains": parts}


def _entropies(corpus: Corpus, split: str) -> dict[str, dict[str, float]]:
    """Average the two analytic entropies over the answers of each generated domain."""
    answers = corpus.answers(split)
    result = {}
    for index in np.unique(answers.domain):
        mine = answers.domain == index
        result[corpus.domains[index]] = {
            "answers": int(mine.sum()),
            "entropy_absent_bits": float(answers.absent_bits[mine].mean()),
            "entropy_perfect_bits": float(answers.perfect_bits[mine].mean()),
        }
    return result


def _rows(corpus: Corpus) -> list[MetricRow]:
    """Turn the manifest's numbers into metric rows."""
    rows = []
    for split in SPLITS:
        sizes = corpus.manifest["splits"][split]
        rows.append(
            MetricRow("corpus", "tokens", sizes["tokens"], split=split, n=sizes["documents"])
        )
        for domain, part in sizes["domains"].items():
            label = {"domain": domain}
            rows.append(
                MetricRow(
                    "corpus",
                    "tokens",
                    part["tokens"],
                    split=split,
                    slice=label,
                    n=part["documents"],
                )
            )
        for domain, part in corpus.manifest["entropies"][split].items():
            for metric in ("entropy_absent_bits", "entropy_perfect_bits"):
                value, label = part[metric], {"domain": domain}
                rows.append(
                    MetricRow("corpus", metric, value, split=split, slice=label, n=part["answers"])
                )
    return rows
