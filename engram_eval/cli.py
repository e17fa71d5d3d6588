"""The command line: ``engram-eval VERB ...``.

A mistake of the user is one line on stderr and exit code 2; a failed stage or mismatch is exit
code 1.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from engram_eval.errors import UserError, nearest
from engram_eval.quiet import settle_libraries
from engram_eval.verbs.registry import VERBS

INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Turn argparse's complaint into a ``UserError``."""
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is left over here, where the options are known that it may be meant for."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            meant = nearest(rest[0].partition("=")[0], self._option_string_actions)
            self.error(f"unknown argument {rest[0]!r}{meant}")
        return found, rest


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
