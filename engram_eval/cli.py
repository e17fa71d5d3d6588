"""The command line: ``engram-eval VERB ...``.

A mistake of the user is one line on stderr and exit code 2; a failed stage or mismatch is exit
code 1.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from engram_eval.errors import UserError, nearest
from engram_eval.quiet import settle_libraries
from engram_eval.verbs.registry import VERBS

INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which takes no abbreviated options."""

    def __init__(self, *args: Any, **keys: Any) -> None:
        # ``--seed 1``, which other verbs have, would be taken for ``--seeds 1``.
        super().__init__(*args, **{**keys, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        """Turn argparse's complaint into a ``UserError``."""
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is unknown here, where the options are known that it may be meant for.

        Options are refused first: what they were meant for may then be missed as required.
        """
        if self._subparsers is None:
            self._refuse_unknown(word for word in _options(args or ()) if self._lacks(word))
        found, rest = super().parse_known_args(args, namespace)
        self._refuse_unknown(rest)
        return found, rest

    def _lacks(self, word: str) -> bool:
        return word.partition("=")[0] not in self._option_string_actions

    def _refuse_unknown(self, words: Iterable[str]) -> None:
        """Refuse the first of some words with the option that it begins, or is most like."""
        for word in words:
            given, known = word.partition("=")[0], self._option_string_actions
            begun = sorted((o for o in known if given and o.startswith(given)), key=len)
            meant = f" (did you mean {begun[0]!r}?)" if begun else nearest(given, known)
            self.error(f"unknown argument {word!r}{meant}")


def _options(words: Iterable[str]) -> Iterator[str]:
    """Yield what argparse reads as long options: up to ``--``, no words with blanks."""
    before = itertools.takewhile(lambda word: word != "--", words)
    return (word for word in before if word.startswith("--") and " " not in word)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    # Threads of libgomp wait by spinning, for milliseconds; on a busy machine that is taken from
    # the very thread they wait for. It is read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"engram-eval: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output has left (`| head`); there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"engram-eval: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("engram-eval: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def _dispatch(argv: list[str]) -> int:
    allowed = (*VERBS, "-h", "--help", "--version")
    if argv and argv[0] not in allowed:
        raise UserError(
            f"unknown verb {argv[0]!r}{nearest(argv[0], allowed)}; allowed: {', '.join(VERBS)}"
        )
    if argv[:1] == ["--version"]:
        from engram_eval.environment import versions

        print(f"engram-eval {versions()['engram-eval']}")
        return 0
    arguments = build_parser().parse_args(argv or ["--help"])
    if arguments.verb != "bench":
        settle_libraries()
    return VERBS[arguments.verb].action(arguments)


def build_parser() -> Parser:
    """Return the parser of all verbs; its errors are ``UserError``."""
    parser = Parser(prog="engram-eval", description="The referee for conditional memory.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        sub = verbs.add_parser(name, help=verb.about, description=verb.about)
        verb.arguments(sub)
    return parser


if __name__ == "__main__":
    sys.exit(main())
