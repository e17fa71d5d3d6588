"""``engram-eval trace``: one text's way through the memory."""

import argparse
import json
import shutil
import sys
from pathlib import Path

from engram_eval.errors import UserError, check_seed, check_text
from engram_eval.model_folder import check_text_model
from engram_eval.verbs.verb import Verb


def _trace_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", help="a sentence")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a model's folder")
    parser.add_argument("--random", action="store_true", help="an untrained model instead")
    parser.add_argument("--seed", type=int, help="of the untrained model (default: 0)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page, too")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _trace(arguments: argparse.Namespace) -> int:
    if (arguments.model is None) == (not arguments.random):
        raise UserError("trace needs either --model DIR or --random")
    if arguments.model is not None and arguments.seed is not None:
        raise UserError(f"--seed {arguments.seed}: is for --random; a trained model draws nothing")
    check_text(arguments.text)
    check_seed("--seed", arguments.seed or 0)
    if arguments.model is not None:
        check_text_model(arguments.model)
    from engram_eval.files import write_atomic
    from engram_eval.tracing.page import trace_html
    from engram_eval.tracing.trace import trace_folder, trace_random
    from engram_eval.tracing.view import trace_data, trace_text

    if arguments.random:
        traced = trace_random(arguments.text, arguments.seed or 0)
    else:
        traced = trace_folder(arguments.text, arguments.model)
    data = json.dumps(trace_data(traced), indent=1, ensure_ascii=False)
    width = min(shutil.get_terminal_size((100, 0)).columns, 160)
    print(data if arguments.json else trace_text(traced, width))
    if arguments.html is not None:
        write_atomic(arguments.html, trace_html(traced))
        print(arguments.html, file=sys.stderr if arguments.json else sys.stdout)
    return 0


TRACE = Verb("follow a text through the memory", _trace_arguments, _trace)
