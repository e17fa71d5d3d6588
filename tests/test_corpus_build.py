import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from engram_eval.config import CorpusConfig, EntityDials
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.document import Answer, Document
from engram_eval.corpus.fingerprint import corpus_fingerprint
from engram_eval.corpus.ngrams import NGramModel
from engram_eval.corpus.pack import Answers, pack, token_dtype
from engram_eval.corpus.pocket import pocket_documents
from engram_eval.corpus.spool import Spool
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.corpus.tokenizer import EOS, train_tokenizer
from engram_eval.errors import UserError
from engram_eval.files import file_sha256
from engram_eval.progress import Reporter, Task
from engram_eval.records import MetricRow

QUIET = Reporter(quiet=True)
POCKET = CorpusConfig(
    vocab_size=512, train_bytes=60_000, entities=EntityDials(n_entities=10, max_exposures=12)
)


def build(config: CorpusConfig, out: Path, report: Reporter = QUIET) -> list[MetricRow]:
    return build_corpus({}, config, None, out, report)


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def decoded(corpus: Corpus, split: str) -> list[tuple[str, str]]:
    """Domain and text of each packed document, read back through the tokenizer."""
    tokenizer, tokens = corpus.tokenizer(), corpus.tokens(split)
    return [
        (corpus.domains[domain], tokenizer.decode(tokens[start : end - 1].tolist()))
        for start, end, domain, _ in corpus.docs(split)
    ]


def write_jsonl(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


RECORDS = [
    {"text": f"Sentence {i} of the naïve text: {'ab' * (i % 7)} {EOS} 漢字\n\n\tend"}
    for i in range(200)
]


@pytest.fixture
def own(tmp_path: Path) -> CorpusConfig:
    path = write_jsonl(tmp_path / "own.jsonl", RECORDS)
    return CorpusConfig(paths=(path,), vocab_size=400, val_fraction=0.2, train_bytes=0)


class Built(NamedTuple):
    """A pocket corpus, the rows that its building gave, and what it said meanwhile."""

    corpus: Corpus
    rows: list[MetricRow]
    said: str


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Built:
    out, said = tmp_path_factory.mktemp("pocket"), io.StringIO()
    rows = build(POCKET, out, Reporter(out=said))
    return Built(load_corpus(out), rows, said.getvalue())


def test_each_generated_domain_says_what_bounds_its_loss(pocket: Built) -> None:
    lines = {line.split(":")[0]: line for line in pocket.said.splitlines()}
    assert "a held-out answer has 4.00 bits without the skill, 0.00 with it" in lines["recall"]
    assert all("0.00 with it" in lines[name] for name in ("facts", "entities", "math"))
    assert "held-out" not in lines["code"]


def test_every_document_comes_back_whole(own: CorpusConfig, tmp_path: Path) -> None:
    build(own, tmp_path / "corpus")
    corpus = load_corpus(tmp_path / "corpus")
    texts = {split: [text for _, text in decoded(corpus, split)] for split in ("train", "val")}
    assert sorted(texts["train"] + texts["val"]) == sorted(r["text"] for r in RECORDS)
    assert 20 < len(texts["val"]) < 60
    for split in ("train", "val"):
        docs, tokens = corpus.docs(split), corpus.tokens(split)
        # Text that spells out the end-of-text token ends no document.
        assert np.array_equal(np.flatnonzero(tokens == 0), docs[:, 1] - 1)
        assert np.array_equal(docs[1:, 0], docs[:-1, 1]) and docs[0, 0] == 0
        assert docs[-1, 1] == len(tokens)
        lengths = [corpus.token_bytes[tokens[start:end]].sum() for start, end, _, _ in docs]
        assert lengths == docs[:, 3].tolist()
        assert docs[:, 3].tolist() == [len(text.encode()) for text in texts[split]]


def test_manifest_and_rows_count_what_is_there(own: CorpusConfig, tmp_path: Path) -> None:
    rows = build(own, tmp_path / "corpus")
    corpus = load_corpus(tmp_path / "corpus")
    manifest = corpus.manifest
    for split in ("train", "val"):
        part = manifest["splits"][split]
        assert part["tokens"] == len(corpus.tokens(split)) and part["documents"] == len(
            corpus.docs(split)
        )
        assert part["domains"] == {"own": {k: v for k, v in part.items() if k != "domains"}}
    assert sum(p["bytes"] for p in manifest["splits"].values()) == sum(
        len(r["text"].encode()) for r in RECORDS
    )
    assert set(files(corpus.folder)) == {*manifest["files"], "manifest.json"}
    assert all(files(corpus.folder)[n] == f["sha256"] for n, f in manifest["files"].items())
    values = {(row.split, tuple(row.slice.items())): row.value for row in rows}
    assert values["train", ()] == manifest["splits"]["train"]["tokens"]
    assert values["val", (("domain", "own"),)] == manifest["splits"]["val"]["tokens"]


def test_ngrams_are_those_of_the_training_tokens(own: CorpusConfig, tmp_path: Path) -> None:
    build(own, tmp_path)
    corpus = load_corpus(tmp_path)
    counted = NGramModel.count(corpus.tokens("train"), corpus.vocab_size, 5)
    tokens = corpus.tokens("val")
    assert np.array_equal(
        corpus.ngrams().surprisal_bits(tokens, 5), counted.surprisal_bits(tokens, 5)
    )


def test_two_builds_are_equal_byte_for_byte(pocket: Built, tmp_path: Path) -> None:
    build(POCKET, tmp_path)
    assert files(tmp_path) == files(pocket.corpus.folder)


def test_the_seed_moves_the_order_only(own: CorpusConfig, tmp_path: Path) -> None:
    orders = []
    for seed in (0, 1):
        build(replace(own, seed=seed), tmp_path / str(seed))
        orders.append([text for _, text in decoded(load_corpus(tmp_path / str(seed)), "train")])
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    given = [r["text"] for r in RECORDS if r["text"] in set(orders[0])]
    assert orders[0] != given


def test_pocket_answers_are_the_tokens_of_their_text(pocket: Built) -> None:
    corpus, rows, _ = pocket
    tokenizer = corpus.tokenizer()
    expected: dict[tuple[str, str], list[str]] = {}
    for document in pocket_documents(POCKET):
        answers = [document.text[a.start : a.end] for a in document.answers]
        expected.setdefault((document.domain, document.text), answers)
    for split in ("train", "val"):
        tokens, answers, found = corpus.tokens(split), corpus.answers(split), 0
        for (start, end, _, _), key in zip(corpus.docs(split), decoded(corpus, split), strict=True):
            mine = np.flatnonzero((answers.start >= start) & (answers.end <= end))
            texts = [
                tokenizer.decode(tokens[answers.start[i] : answers.end[i]].tolist()) for i in mine
            ]
            assert [t.strip() for t in texts] == [t.strip() for t in expected[key]]
            assert all(corpus.domains[answers.domain[i]] == key[0] for i in mine)
            found += len(mine)
        assert found == len(answers.start) > 100
    metrics = {row.metric for row in rows if row.slice == {"domain": "math"} and row.split == "val"}
    assert metrics == {"tokens", "entropy_absent_bits", "entropy_perfect_bits"}
    entropies = corpus.manifest["entropies"]["val"]["math"]
    math = corpus.answers("val").domain == corpus.domains.index("math")
    assert entropies["answers"] == math.sum()
    assert entropies["entropy_absent_bits"] == pytest.approx(
        corpus.answers("val").absent_bits[math].mean()
    )


def test_held_out_modules_are_not_in_the_training_stream(pocket: Built) -> None:
    train, val = (set(decoded(pocket.corpus, split)) for split in ("train", "val"))
    assert not {text for _, text in train} & {text for _, text in val}
    assert {domain for domain, _ in val} == set(pocket.corpus.domains)


def test_repeats_go_unless_wanted_and_never_cross_splits(tmp_path: Path) -> None:
    def document(text: str, split: str | None = None, **more: bool) -> Document:
        return Document(text, "d", "n", split, **more)

    with Spool(tmp_path / "spool", 0.5) as spool:
        given = [
            document("once", "train"),
            document("once", "train"),
            document("told twice", "train", keep_repeats=True),
            document("told twice", "train", keep_repeats=True),
            document("leak", "val"),
            document("own", "val"),
            document("leak", "train"),
        ]
        taken = [spool.add(d) for d in given]
        spool.finish()
        assert taken == ["train", None, "train", "train", "val", "val", "train"]
        texts = {
            split: [d.text for d in spool.read(split, range(spool.count(split)))]
            for split in ("train", "val")
        }
    assert texts == {"train": ["once", "told twice", "told twice", "leak"], "val": ["own"]}
    assert spool.dropped == {"duplicates": 1, "also_in_train": 1}


def test_a_text_s_split_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(300)]
    splits = []
    for order in (texts, texts[::-1]):
        with Spool(tmp_path / "spool", 0.1) as spool:
            splits.append({text: spool.add(Document(text, "d", "n")) for text in order})
    assert splits[0] == splits[1]
    assert 15 < sum(split == "val" for split in splits[0].values()) < 50


def test_train_bytes_limit_what_is_taken(own: CorpusConfig, tmp_path: Path) -> None:
    build(replace(own, train_bytes=3_000), tmp_path)
    taken = load_corpus(tmp_path).manifest["splits"]["train"]["bytes"]
    assert 3_000 <= taken < 3_100


def test_answers_cover_all_tokens_that_overlap(tmp_path: Path) -> None:
    text = "The sum is 1234, in Malmö."
    tokenizer = train_tokenizer([text], 257)
    spans = [(11, 15), (20, 25), (0, 3)]
    document = Document(text, "d", "n", answers=tuple(Answer(a, b, 3.0, 1.0) for a, b in spans))
    assert list(pack([document, document], tokenizer, ["d"], tmp_path, "val")) == [2]
    with np.load(tmp_path / "val.answers.npz") as arrays:
        answers = Answers(**arrays)
    # One byte is one token here: " 1", then digits; the ö is two bytes.
    assert answers.start[:3].tolist() == [11, 20, 0]
    assert answers.end[:3].tolist() == [15, 26, 3]
    assert (answers.start[3:] - answers.start[:3] == len(text.encode()) + 1).all()
    assert set(answers.absent_bits) == {3.0} and set(answers.perfect_bits) == {1.0}


def test_tokens_are_wide_enough() -> None:
    assert token_dtype(65_536) == np.dtype("<u2") and token_dtype(65_537) == np.dtype("<u4")


def test_the_tokenizer_speaks_the_agreed_ids(pocket: Built) -> None:
    tokenizer = pocket.corpus.tokenizer()
    assert tokenizer.convert_tokens_to_ids(EOS) == 0
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == tokenizer.bos_token_id == 0
    assert len(tokenizer) == pocket.corpus.vocab_size == 512 and pocket.corpus.token_bytes[0] == 0
    text = " def f(x):\n    return 'π' + 1002"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode([i]) for i in ids[-4:]] == ["1", "0", "0", "2"]


class Interrupted(Reporter):
    """Stops the build, as a signal would, when a given piece of work begins or ends."""

    def __init__(self, title: str, at_end: bool) -> None:
        super().__init__(quiet=True)
        self.title, self.at_end = title, at_end

    @contextmanager
    def task(self, title: str, total: float) -> Iterator[Task]:
        if title == self.title and not self.at_end:
            raise KeyboardInterrupt
        yield Task(title, total)
        if title == self.title:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("work", ["read", "train the tokenizer", "pack val", "count n-grams"])
def test_an_interrupted_build_leaves_no_corpus(
    own: CorpusConfig, tmp_path: Path, work: str, at_end: bool
) -> None:
    out = tmp_path / "corpus"
    with pytest.raises(KeyboardInterrupt):
        build(own, out, Interrupted(f"corpus: {work}", at_end))
    assert files(out) == {}
    with pytest.raises(UserError, match="no corpus here"):
        load_corpus(out)


def test_what_a_kill_leaves_behind_does_no_harm(own: CorpusConfig, tmp_path: Path) -> None:
    build(own, tmp_path / "whole")
    out = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole", out)
    (out / "manifest.json").unlink()
    (out / "val.bin").write_bytes(b"half")
    (out / ".partial").mkdir()
    (out / ".partial" / "train.bin").write_bytes(b"half")
    with pytest.raises(UserError, match="no corpus here"):
        load_corpus(out)
    build(own, out)
    assert files(out) == files(tmp_path / "whole")


def test_bad_input_writes_nothing_and_keeps_what_was_there(
    own: CorpusConfig, tmp_path: Path
) -> None:
    out = tmp_path / "corpus"
    build(own, out)
    before = files(out)
    with open(own.paths[0], "a") as file:
        file.write("{broken\n")
    with pytest.raises(UserError, match=r"own\.jsonl:201: not JSON"):
        build(own, out)
    assert files(out) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 256}, "vocab_size 256: .* at least 257"),
        ({"vocab_size": 10**12}, "vocab_size 1000000000000: at most 1048576"),
        ({"val_fraction": 0.0}, "val_fraction 0.0: must lie between 0 and 1"),
        ({"val_fraction": 1.0}, "val_fraction 1.0: must lie between 0 and 1"),
        ({"train_bytes": -1}, "train_bytes -1: must be positive"),
        ({"paths": (), "train_bytes": 0}, "train_bytes 0: must be positive"),
        ({"val_fraction": 1e-9}, r"no val documents \(200 train, 0 val\)"),
    ],
)
def test_bad_configurations(own: CorpusConfig, tmp_path: Path, changes: dict, message: str) -> None:
    out = tmp_path / "corpus"
    with pytest.raises(UserError, match=message):
        build(replace(own, **changes), out)
    assert not out.exists() or files(out) == {}


def test_short_text_gives_a_smaller_vocabulary_and_says_so(
    own: CorpusConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(replace(own, vocab_size=5_000), tmp_path / "corpus", Reporter())
    corpus = load_corpus(tmp_path / "corpus")
    assert 257 < corpus.vocab_size < 5_000
    assert f"the text supports {corpus.vocab_size} tokens" in capsys.readouterr().err


def test_ignored_files_are_recorded(own: CorpusConfig, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    shutil.copy(own.paths[0], folder)
    (folder / "image.png").write_bytes(b"")
    build(replace(own, paths=(str(folder),)), tmp_path / "corpus")
    manifest = load_corpus(tmp_path / "corpus").manifest
    assert manifest["ignored_files"] == [f"{folder}/image.png"]
    assert manifest["domains"] == ["texts"]


def test_damage_is_found(own: CorpusConfig, tmp_path: Path) -> None:
    build(own, tmp_path / "whole")

    def damaged(name: str) -> Path:
        folder = tmp_path / name.replace("/", "_")
        shutil.copytree(tmp_path / "whole", folder)
        return folder

    folder = damaged("val.bin")
    raw = bytearray((folder / "val.bin").read_bytes())
    raw[3] ^= 1
    (folder / "val.bin").write_bytes(raw)
    with pytest.raises(UserError, match=r"val\.bin: is not what the manifest describes"):
        load_corpus(folder)
    folder = damaged("ngrams/order3.keys.npy")
    (folder / "ngrams/order3.keys.npy").unlink()
    with pytest.raises(UserError, match="missing from the corpus"):
        load_corpus(folder)
    folder = damaged("manifest.json")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(UserError, match="schema 99"):
        load_corpus(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        load_corpus(folder)
    with pytest.raises(UserError, match=r"unknown split 'vall'.*did you mean 'val'"):
        load_corpus(tmp_path / "whole").tokens("vall")


def test_fingerprint_follows_the_text_and_not_its_place(own: CorpusConfig, tmp_path: Path) -> None:
    first = corpus_fingerprint(own)
    moved = tmp_path / "elsewhere" / "own.jsonl"
    moved.parent.mkdir()
    shutil.copy(own.paths[0], moved)
    assert corpus_fingerprint(replace(own, paths=(str(moved),))) == first
    with open(moved, "a") as file:
        file.write('{"text": "more"}\n')
    assert corpus_fingerprint(replace(own, paths=(str(moved),))) != first
    assert set(corpus_fingerprint(CorpusConfig())) == {"python", "stdlib", "tables"}
    with pytest.raises(UserError, match="no such file"):
        corpus_fingerprint(replace(own, paths=("missing.txt",)))


def test_documents_refuse_what_cannot_be() -> None:
    with pytest.raises(UserError, match="split 'test'; allowed: train, val"):
        Document("x", "d", "n", "test")
    with pytest.raises(UserError, match="lies outside its text"):
        Document("x", "d", "n", answers=(Answer(0, 2, 1.0, 0.0),))
