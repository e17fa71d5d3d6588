"""Items of the code tasks, from modules of the standard library that the corpus holds back.

Nothing is executed; the parser tells code from what is none. The items depend on the version of
the running Python, whose library they quote.

Dials: ``LIMIT`` items a task; ``CONTEXT_LINES`` lines that are read before the choices;
``PER_MODULE``, most items of one task from one module; ``MIN_NAME``, shortest name asked for.
"""

import ast
import io
import keyword
import re
import tokenize
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from engram_eval.config import CorpusConfig
from engram_eval.corpus.stdlib import stdlib_documents, stdlib_modules
from engram_eval.evaluation.choices import Draft, at_word_end, finish, near_length, task_rng

LIMIT = 200
CONTEXT_LINES = 4
PER_MODULE = 12
MIN_NAME = 4
LINE_CHARS = range(12, 66)

BRACKETS = "()[]{}"
SWAPS = {
    "if": "of",
    "for": "from",
    "in": "if",
    "return": "returns",
    "def": "class",
    "import": "def",
    "not": "is",
    "and": "an",
    "is": "as",
    "raise": "rise",
    "else": "elif",
    "except": "expect",
    "with": "while",
}
# What stands around a line so that it parses on its own, by its first word.
FRAMES = {
    "elif": "if x: pass\n",
    "else": "if x: pass\n",
    "except": "try: pass\n",
    "finally": "try: pass\n",
}


class Source(NamedTuple):
    """A held-out module: its lines, and the tokens of its names."""

    lines: list[str]
    names: list[tokenize.TokenInfo]


def items(config: CorpusConfig) -> dict[str, list[dict[str, Any]]]:
    """Return the items of each task for a corpus."""
    documents = stdlib_documents(config.val_fraction, splits=("val",))
    held_out = {d.name: _source(d.text) for d in documents if d.domain == "code"}
    attributes = _attributes_used()
    makers: dict[str, Callable[[Source, np.random.Generator], Iterator[Draft]]] = {
        "code_next_line": _next_lines,
        "code_syntax": _syntax,
        "code_names": _names,
        "code_attribute": lambda source, rng: _attributes(source, attributes, rng),
    }
    made = {}
    for task, maker in makers.items():
        rng = task_rng(config.seed, task)
        drafts = [
            draft._replace(source=name)
            for name, source in held_out.items()
            for draft in islice(maker(source, rng), PER_MODULE)
        ]
        mixed = [drafts[index] for index in rng.permutation(len(drafts))]
        made[task] = finish(task, mixed, rng, LIMIT)
    return made


def _attributes_used() -> dict[str, Counter[str]]:
    """Return what follows a dot after each name, anywhere in the library."""
    used: dict[str, Counter[str]] = {}
    for module in stdlib_modules():
        with tokenize.open(module.path) as handle:
            text = handle.read()
        for name, attribute in re.findall(r"\b([a-z_]\w+)\.([A-Za-z]\w+)", text):
            used.setdefault(name, Counter())[attribute] += 1
    return used


def _source(text: str) -> Source:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    names = [token for token in tokens if token.type == tokenize.NAME and _telling(token.string)]
    return Source(text.split("\n"), names)


def _telling(name: str) -> bool:
    """Tell whether a name is somebody's choice: not a keyword, nor one that is everywhere."""
    return len(name) >= MIN_NAME and name[0].isalpha() and name not in ("self", *keyword.kwlist)


def _before(source: Source, row: int, column: int = 0) -> str:
    """Return the lines before a row (0-based) and the row's first characters."""
    lines = source.lines[max(0, row - CONTEXT_LINES) : row]
    return "\n".join([*lines, source.lines[row][:column]]).lstrip("\n")


def _draft(query: str, choices: list[str], slices: dict[str, str]) -> Draft:
    """Build a draft whose first choice is the gold one, cut where a token surely ends."""
    query, (gold, *wrong) = at_word_end(query, choices)
    return Draft(query, gold, tuple(wrong), slices)


def _is_code_line(line: str) -> bool:
    text = line.strip()
    return len(text) in LINE_CHARS and not text.startswith("#") and any(map(str.isalpha, text))


def _next_lines(source: Source, rng: np.random.Generator) -> Iterator[Draft]:
    """Ask which line comes next; wrong choices are lines from elsewhere in the module.

    They get the gold line's indentation, so that its depth does not tell them apart.
    """
    rows = [row for row, line in enumerate(source.lines) if _is_code_line(line)]
    for row in map(int, rng.permutation(rows)):
        line = source.lines[row]
        window = source.lines[max(0, row - CONTEXT_LINES) : row]
        if row < CONTEXT_LINES or not source.lines[row - 1].strip():
            continue
        near = {text.strip() for text in window}
        pool = sorted({source.lines[r].strip() for r in rows} - near - {line.strip()})
        wrong = near_length(line.strip(), pool, rng)
        if wrong and line.strip() not in near:
            indent = line[: len(line) - len(line.lstrip())]
            choices = [f"{indent}{text}\n" for text in (line.strip(), *wrong)]
            yield _draft(_before(source, row), choices, {"depth": _depth(indent)})


def _depth(indent: str) -> str:
    return "top" if not indent else "nested"


def _syntax(source: Source, rng: np.random.Generator) -> Iterator[Draft]:
    """Ask which line is Python; wrong choices are the gold line with one thing spoilt."""
    for row in map(int, rng.permutation(len(source.lines))):
        line = source.lines[row]
        if row < CONTEXT_LINES or not _is_code_line(line) or not _parses(line, line):
            continue
        spoilt = {
            kind: [text for text in texts if text != line and not _parses(text, line)]
            for kind, texts in _corruptions(line).items()
        }
        kinds = [kind for kind, texts in spoilt.items() if texts]
        if len({text for kind in kinds for text in spoilt[kind]}) >= 3:
            wrong = _one_of_each(spoilt, kinds, rng)
            form = "block" if line.rstrip().endswith(":") else "simple"
            choices = [f"{text}\n" for text in (line, *wrong)]
            yield _draft(_before(source, row), choices, {"form": form})


def _one_of_each(
    spoilt: dict[str, list[str]], kinds: list[str], rng: np.random.Generator
) -> list[str]:
    """Draw three corruptions, of different kinds as far as there are."""
    queues = [list(rng.permutation(spoilt[kind])) for kind in rng.permutation(kinds)]
    longest = max(map(len, queues))
    rounds = [str(queue[i]) for i in range(longest) for queue in queues if i < len(queue)]
    return list(dict.fromkeys(rounds))[:3]


def _parses(line: str, like: str) -> bool:
    """Tell whether a line is valid where ``like`` stood."""
    head = like.strip()
    before = FRAMES.get(re.split(r"\W", head, maxsplit=1)[0], "")
    after = " pass" if head.endswith(":") else "\ndef f(): pass" if head.startswith("@") else ""
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(before + line.strip() + after)
    except (SyntaxError, ValueError):
        return False
    return True


def _corruptions(line: str) -> dict[str, list[str]]:
    """Spoil a line in several ways: one bracket, the colon, one keyword, one quote, one sign."""

    def replaced(pattern: str, new: Callable[[str], str]) -> list[str]:
        found = re.finditer(pattern, line)
        return [line[: m.start()] + new(m.group()) + line[m.end() :] for m in found]

    return {
        "bracket": replaced(r"[()\[\]{}]", lambda b: BRACKETS[(BRACKETS.index(b) + 2) % 6]),
        "missing": replaced(r"[()\[\]{}]", lambda b: ""),
        "colon": replaced(r":$", lambda b: "") + replaced(r":$", lambda b: ";"),
        "keyword": replaced(r"\b(" + "|".join(SWAPS) + r")\b", lambda word: SWAPS[word]),
        "quote": replaced(r"[\"']", lambda q: ""),
        "sign": replaced(r" (=|==|\+|-|<|>) ", lambda s: s + s.lstrip()),
        "comma": replaced(r", ", lambda c: " "),
    }


def _names(source: Source, rng: np.random.Generator) -> Iterator[Draft]:
    """Ask which name comes next, one that was just used; wrong choices were used as well."""
    for index in rng.permutation(len(source.names)):
        token = source.names[index]
        row, column = token.start[0] - 1, token.start[1]
        if row < CONTEXT_LINES:
            continue
        window = [t.string for t in source.names if _precedes(t, row, column)]
        pool = [name for name in window if name != token.string]
        wrong = near_length(token.string, pool, rng)
        if wrong and token.string in window:
            query = _before(source, row, column)
            kind = "attribute" if query.endswith(".") else "name"
            yield _draft(query, [token.string, *wrong], {"kind": kind})


def _precedes(token: tokenize.TokenInfo, row: int, column: int) -> bool:
    """Tell whether a token lies in the context of a position."""
    line, start = token.start[0] - 1, token.start[1]
    return row - CONTEXT_LINES <= line < row or (line == row and start < column)


def _attributes(
    source: Source, attributes: dict[str, Counter[str]], rng: np.random.Generator
) -> Iterator[Draft]:
    """Ask for what follows an imported module and a dot; wrong choices belong to other modules."""
    imported = sorted(_imported("\n".join(source.lines)))
    used = {module: attributes.get(module, Counter()) for module in imported}
    # Repeated as often as they are used, so that how common a name is gives nothing away.
    pool = [name for module in imported for name in used[module].elements()]
    for row in map(int, rng.permutation(len(source.lines))):
        line = source.lines[row]
        for match in re.finditer(r"(?<![\w.])([a-z_]\w+)\.([A-Za-z]\w+)", line):
            module, gold = match.groups()
            if row < 1 or module not in used or line.lstrip().startswith("#"):
                continue
            wrong = near_length(gold, [a for a in pool if a not in used[module]], rng)
            if wrong:
                query = _before(source, row, match.end(1))
                seen = "yes" if re.search(rf"\.{gold}\b", query) else "no"
                yield _draft(query, [f".{name}" for name in (gold, *wrong)], {"seen": seen})


def _imported(text: str) -> set[str]:
    """Return the modules that a source binds under their own names."""
    return {
        alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.asname is None and "." not in alias.name
    }
