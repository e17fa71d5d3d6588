"""``engram-eval generate``: a quick taste of a model."""

import argparse
from pathlib import Path

from engram_eval.model_folder import check_text_model
from engram_eval.verbs.verb import Verb


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="DIR", help="a model's folder")
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=40, help="how many to add")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
    parser.add_argument("--seed", type=int, default=0)


def _generate(arguments: argparse.Namespace) -> int:
    check_text_model(arguments.model)
    from engram_eval.generate import generate

    print(
        generate(
            arguments.model,
            arguments.prompt,
            arguments.tokens,
            arguments.temperature,
            arguments.seed,
        )
    )
    return 0


GENERATE = Verb("a quick taste of a model", _generate_arguments, _generate)
