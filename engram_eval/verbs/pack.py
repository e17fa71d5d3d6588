"""``engram-eval pack``: a study's text, tokenised, to carry to another machine."""

import argparse
from pathlib import Path

from engram_eval.errors import UserError
from engram_eval.verbs.study import STUDY_HELP, TOKENIZER_HELP
from engram_eval.verbs.verb import MANY, Verb


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", help=STUDY_HELP)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the packed corpus")
    parser.add_argument("--scale", help="as of the run that will read it")
    parser.add_argument("--corpus", **MANY, metavar="PATH", help="your own text")
    parser.add_argument("--tokenizer", metavar="WHERE", help=TOKENIZER_HELP)
    parser.add_argument("--set", **MANY, metavar="KEY=VALUE", help="overrides")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _pack(arguments: argparse.Namespace) -> int:
    import tempfile

    from engram_eval.corpus.build import build_corpus
    from engram_eval.corpus.packed import check_room, is_packed, pack_corpus
    from engram_eval.corpus.store import load_corpus
    from engram_eval.progress import Reporter
    from engram_eval.studies.registry import find_study

    study = find_study(
        arguments.study,
        arguments.scale,
        arguments.set,
        arguments.corpus,
        tokenizer=arguments.tokenizer,
    )
    if is_packed(study.corpus.paths):
        raise UserError(f"{study.corpus.paths[0]}: is packed already")
    check_room(arguments.out)
    report = Reporter(quiet=arguments.quiet)
    arguments.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.out.absolute().parent) as work:
        build_corpus({}, study.corpus, None, Path(work), report)
        size = pack_corpus(load_corpus(Path(work)), arguments.out)
    report.say(f"{size / 1e6:,.1f} MB; elsewhere: --corpus {arguments.out.name}")
    print(arguments.out)
    return 0


PACK = Verb("tokenise a study's text, to carry it to another machine", _arguments, _pack)
