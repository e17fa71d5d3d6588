import ast
import sys
from pathlib import Path

import pytest

from engram_eval.corpus.document import hash_fraction
from engram_eval.corpus.stdlib import (
    docstring_prose,
    stdlib_documents,
    stdlib_fingerprint,
    stdlib_modules,
    strip_docstrings,
)
from engram_eval.errors import UserError

SOURCE = '''\
#!/usr/bin/env python3
"""Module words."""

import os  # kept comment


class Thing:
    """A thing

    with a line
      further in.
    """

    def one(self): "é in one line"; return 1

    def only(self):
        """Nothing but this."""

    async def two(self):

        """Two."""   # trailing comment
        return """not a docstring"""
'''
STRIPPED = '''\
#!/usr/bin/env python3
import os  # kept comment


class Thing:
    def one(self): pass; return 1

    def only(self):
        pass

    async def two(self):

           # trailing comment
        return """not a docstring"""
'''


def without_docstrings(source: str) -> str:
    """The independent truth: drop docstrings from the tree and unparse."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            while ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])
                break
    return ast.unparse(tree)


def test_docstrings_go_and_the_rest_stays() -> None:
    result = strip_docstrings(SOURCE, ast.parse(SOURCE))
    assert result == STRIPPED
    namespace: dict = {}
    exec(result, namespace)
    assert namespace["Thing"]().one() == 1 and namespace["Thing"]().only() is None


@pytest.mark.parametrize("module", ["textwrap", "argparse", "dataclasses", "asyncio.events"])
def test_real_modules_keep_their_program(module: str) -> None:
    path = {m.name: m.path for m in stdlib_modules()}[module]
    source = path.read_text(encoding="utf-8")
    stripped = strip_docstrings(source, ast.parse(source))
    assert ast.unparse(ast.parse(stripped)) == without_docstrings(source)
    assert "#" in stripped and len(stripped) < len(source)


def test_prose_names_what_it_documents() -> None:
    assert docstring_prose(ast.parse(SOURCE), "pkg.mod") == (
        "pkg.mod\n\nModule words.\n\n"
        "pkg.mod.Thing\n\nA thing\n\nwith a line\n  further in.\n\n"
        "pkg.mod.Thing.one\n\né in one line\n\n"
        "pkg.mod.Thing.only\n\nNothing but this.\n\n"
        "pkg.mod.Thing.two\n\nTwo.\n"
    )


def test_only_the_librarys_own_modules() -> None:
    names = [module.name for module in stdlib_modules()]
    assert len(names) == len(set(names)) > 300
    assert {"json", "json.decoder", "textwrap"} <= set(names)
    top = {name.partition(".")[0] for name in names}
    assert not top & {"site", "test", "idlelib", "lib2to3", "encodings", "pydoc_data"} - {"site"}
    assert top <= set(sys.stdlib_module_names)


def test_held_out_modules_never_train() -> None:
    documents = list(stdlib_documents(0.08))
    modules: dict[str, set] = {"train": set(), "val": set()}
    for document in documents:
        modules[document.split].add(document.name.partition(":")[2])
    assert not modules["train"] & modules["val"]
    assert {d.domain for d in documents if d.split == "val"} == {"code", "docs"}
    assert 0.04 < len(modules["val"]) / len(modules["train"] | modules["val"]) < 0.13
    # The rule is the name's hash alone, so another Python version holds out the same modules.
    assert all(hash_fraction(name) < 0.08 for name in modules["val"])


def test_order_and_split_depend_on_names_only(tmp_path: Path) -> None:
    body = "x = 1\n" * 100
    for name in ("alpha", "beta", "gamma"):
        (tmp_path / f"{name}.py").write_text(body)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "never.py").write_text(body)
    (tmp_path / "not-a-name.py").write_text(body)
    before = [d.name for d in stdlib_documents(0.5, tmp_path)]
    assert sorted(before) == ["code:alpha", "code:beta", "code:gamma"]
    (tmp_path / "delta.py").write_text(body)
    after = [d.name for d in stdlib_documents(0.5, tmp_path)]
    assert [name for name in after if name != "code:delta"] == before


def test_fingerprint_sees_every_change(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    first = stdlib_fingerprint(tmp_path)
    assert stdlib_fingerprint(tmp_path) == first
    (tmp_path / "a.py").write_text("x = 2\n")
    second = stdlib_fingerprint(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, stdlib_fingerprint(tmp_path)}) == 3


def test_a_library_without_sources_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no Python source"):
        stdlib_modules(tmp_path)
