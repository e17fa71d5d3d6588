"""The standard library of the running interpreter: real code and real English, on every machine.

Each module gives two documents: its source without docstrings (``code``) and its docstrings as
prose (``docs``). A module is held out, in both, by the hash of its dotted name, so the same
modules are held out whatever the Python version.
"""

import ast
import hashlib
import re
import sys
import sysconfig
import tokenize
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from engram_eval.corpus.document import SPLITS, Document, hash_fraction
from engram_eval.errors import UserError

# Left out: what is not the library (tests, demos, installed packages) and what is data written as
# Python (character tables, the text of the manual), which would teach tables instead of code.
SKIPPED = frozenset(
    {"__pycache__", "dist-packages", "encodings", "idle_test", "idlelib", "lib2to3"}
)
SKIPPED |= {"pydoc_data", "site-packages", "test", "tests", "turtledemo"}
SKIPPED_MODULES = frozenset({"html.entities"})
MIN_CHARS = 200
MAX_CHARS = 150_000

# Where statements hold statements, in source order; expressions hold no definitions.
_BLOCKS = ("body", "handlers", "cases", "orelse", "finalbody")
_Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Module(NamedTuple):
    """A module's dotted name and its source file."""

    name: str
    path: Path


def stdlib_modules(root: Path | None = None) -> list[Module]:
    """List the library's own modules in the order of their names' hashes.

    The order mixes packages, so that any leading part is a fair sample.

    Args:
        root: folder of the library; None means that of the running interpreter.

    Raises:
        UserError: no source files there, as in interpreters that ship compiled files only.
    """
    modules = list(_walk(root or Path(sysconfig.get_paths()["stdlib"]), ()))
    if root is None:
        # Distributions put modules of their own there, such as sitecustomize.
        modules = [m for m in modules if m.name.partition(".")[0] in sys.stdlib_module_names]
    if not modules:
        raise UserError(
            f"{root or sys.prefix}: no Python source; the pocket corpus needs the library's own .py"
        )
    return sorted(modules, key=lambda module: (hash_fraction(module.name), module.name))


def _walk(folder: Path, package: tuple[str, ...]) -> Iterator[Module]:
    """Yield the modules below a folder; names that cannot be imported are no modules."""
    for path in folder.iterdir():
        if path.name in SKIPPED or not path.stem.isidentifier():
            continue
        if path.is_dir():
            yield from _walk(path, (*package, path.name))
        elif path.suffix == ".py" and not path.name.startswith("_sysconfigdata"):
            name = ".".join(package if path.stem == "__init__" else (*package, path.stem))
            if name and name not in SKIPPED_MODULES:
                yield Module(name, path)


def stdlib_documents(
    val_fraction: float, root: Path | None = None, splits: Collection[str] = SPLITS
) -> Iterator[Document]:
    """Yield a ``code`` and a ``docs`` document per module, with the split fixed.

    Texts shorter than ``MIN_CHARS`` are left out, and so are the few modules so long that one of
    them would be the whole of a domain's validation text.

    Args:
        val_fraction: share of modules that validate.
        root: folder of the library; None means that of the running interpreter.
        splits: those that are wanted; others are not even read.
    """
    for module in stdlib_modules(root):
        split = "val" if hash_fraction(module.name) < val_fraction else "train"
        if split not in splits:
            continue
        with tokenize.open(module.path) as handle:
            source = handle.read()
        tree = ast.parse(source)
        texts = {"code": strip_docstrings(source, tree), "docs": docstring_prose(tree, module.name)}
        for domain, text in texts.items():
            if MIN_CHARS <= len(text) <= MAX_CHARS:
                yield Document(text, domain, f"{domain}:{module.name}", split)


def stdlib_fingerprint(root: Path | None = None) -> str:
    """Hash the names and sources of all modules: sha256 in hex."""
    total = hashlib.sha256()
    for module in stdlib_modules(root):
        total.update(module.name.encode() + b"\0")
        total.update(hashlib.sha256(module.path.read_bytes()).digest())
    return total.hexdigest()


def _definitions(node: ast.AST, name: str) -> Iterator[tuple[_Definition, str]]:
    """Yield everything that may carry a docstring, with its dotted name, in source order."""
    if isinstance(node, _Definition):
        name = name if isinstance(node, ast.Module) else f"{name}.{node.name}"
        yield node, name
    for block in _BLOCKS:
        for child in getattr(node, block, ()):
            yield from _definitions(child, name)


def _docstring(node: _Definition) -> ast.Expr | None:
    """Return the statement that is a definition's docstring."""
    first = node.body[0] if node.body else None
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return first if is_text and isinstance(first.value.value, str) else None  # type: ignore


def strip_docstrings(source: str, tree: ast.Module) -> str:
    """Remove all docstrings; what remains is the same program, comments and layout kept.

    A body that was nothing but a docstring becomes ``pass``. ``tree`` is what ``source`` parses to.
    """
    lines = source.encode().splitlines(keepends=True)
    for node, _ in _definitions(tree, ""):
        statement = _docstring(node)
        if statement is not None:
            needed = len(node.body) == 1 and not isinstance(node, ast.Module)
            _blank(lines, statement, b"pass" if needed else b"")
    return b"".join(lines).decode().strip("\n") + "\n"


def _blank(lines: list[bytes], statement: ast.Expr, replacement: bytes) -> None:
    """Replace a statement in place; a line that becomes empty goes, and blank lines after it.

    Lines keep their numbers (they become empty bytes), so that positions of others stay valid.
    Positions are in UTF-8 bytes, as the parser counts them.
    """
    first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
    before = lines[first][: statement.col_offset]
    after = lines[last][statement.end_col_offset :]
    if not replacement and (before.strip() or after.strip().startswith(b";")):
        replacement = b"pass"  # it shares its line with other statements
    lines[first : last + 1] = [b""] * (last - first + 1)
    if replacement or after.strip():
        lines[first] = before + replacement + after
        return
    following = last + 1
    while following < len(lines) and not lines[following].strip():
        lines[following] = b""
        following += 1


def docstring_prose(tree: ast.Module, module: str) -> str:
    """Join a module's docstrings: each under the dotted name of what it documents."""
    parts = []
    for node, name in _definitions(tree, module):
        text = (ast.get_docstring(node) or "").strip()
        if text:
            lines = "\n".join(line.rstrip() for line in text.splitlines())
            parts.append(f"{name}\n\n{lines}\n")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts))
