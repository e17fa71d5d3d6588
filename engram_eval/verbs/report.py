"""``engram-eval report``: one study's report, or several studies side by side."""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from engram_eval.errors import UserError
from engram_eval.verbs.study import CHOICES, PLACES, STUDY_HELP, choice_arguments, find, one_stage
from engram_eval.verbs.verb import Verb

PAGE = ".html"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", nargs="+", metavar="RUN", help=STUDY_HELP)
    choice_arguments(parser)
    parser.add_argument("--workers", type=int, help="processes that draw (default: the cores)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="also save PNG, SVG, PDF, CSV")
    parser.add_argument("--figure", metavar="NAME", help="with --figures: only this one")
    parser.add_argument("--markdown", action="store_true", help="print the key results instead")
    # What runs a stage asks for them; nothing runs here.
    parser.set_defaults(
        **{"tensorboard": False, "skip_bad_batches": None, "launcher": "processes", "job": []},
        **{"model": None, "seed": None},
    )


def _report(arguments: argparse.Namespace) -> int:
    """Refresh a study's folder and its report; with ``--out FILE.html`` only draw what is there."""
    if arguments.figure is not None and arguments.figures is None:
        raise UserError(f"--figure {arguments.figure}: needs --figures DIR to save it in")
    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: at least 1 is needed")
    _check_choice(arguments)
    if len(arguments.study) > 1:
        return _side_by_side(arguments)
    (arguments.study,) = arguments.study
    if arguments.out is not None and arguments.out.suffix == PAGE:
        return _draw(arguments)
    code = one_stage(arguments) if not arguments.markdown else 0
    _, folder = find(arguments)
    _extras(folder, arguments)
    return code


def _check_choice(arguments: argparse.Namespace) -> None:
    """Refuse options that would make another study of folders that are there.

    What says where a folder's text and data lie now stays, unless it is drawn as it is.
    """
    page = arguments.out is not None and arguments.out.suffix == PAGE
    if page or len(arguments.study) > 1:
        refused: tuple[str, ...] = (*CHOICES, *PLACES)
    else:
        refused = CHOICES if Path(arguments.study[0]).is_dir() else ()
    given = [name for name in refused if getattr(arguments, name) not in (None, False, [])]
    if given:
        flags = " ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(
            f"report {' '.join(arguments.study)}: folders are reported as they are; leave {flags} "
            "out, or give the folder of the study that it makes"
        )


def _draw(arguments: argparse.Namespace) -> int:
    """Draw one folder as it is, such as a published one whose models are elsewhere."""
    from engram_eval.stages import REPORT, resolve

    page, folder = arguments.out, _folder(arguments.study)
    _extras(folder, arguments)
    print(resolve(REPORT)(folder, page))
    return 0


def _extras(folder: Path, arguments: argparse.Namespace) -> None:
    """Save figures and print the key results, where that is asked for."""
    from engram_eval.stages import MARKDOWN, resolve

    _figures(folder, arguments)
    if arguments.markdown:
        print(resolve(MARKDOWN)(folder), end="")


def _figures(folder: Path | Sequence[Path], arguments: argparse.Namespace) -> None:
    """Save the figures of one study's report, or of several studies', where that is asked for."""
    from engram_eval.environment import cores
    from engram_eval.stages import FIGURES, resolve

    if arguments.figures is not None:
        watch, workers = partial(_watched, arguments.quiet), arguments.workers or cores()
        options = {"only": arguments.figure, "watch": watch, "workers": workers}
        resolve(FIGURES)(folder, arguments.figures, **options)
        print(arguments.figures)


def _watched(quiet: bool, pictures: Sequence[Any]) -> Iterator[Any]:
    """Hand pictures on, and tell how many are drawn."""
    from engram_eval.progress import Reporter

    with Reporter(quiet=quiet).task("figures", len(pictures)) as task:
        for picture in pictures:
            yield picture
            task.advance(info=picture.stem)


def _side_by_side(arguments: argparse.Namespace) -> int:
    from engram_eval.stages import COMPARISON, resolve

    out = arguments.out or Path("comparison.html")
    if out.suffix != PAGE:
        raise UserError(f"--out {out}: several studies need a file that ends in {PAGE}")
    if arguments.markdown:
        raise UserError("--markdown takes one study, not several")
    folders = [_folder(name) for name in arguments.study]
    _figures(folders, arguments)
    print(resolve(COMPARISON)(folders, out))
    return 0


def _folder(name: str) -> Path:
    """Return a study's folder by its path, or by the name of a study that has run here."""
    from engram_eval.studies.registry import find_study, study_folder

    folder = Path(name)
    if not folder.is_dir():
        folder = study_folder(find_study(name), name)
    if not folder.is_dir():
        raise UserError(f"{name}: has not run here; `engram-eval run {name}` makes {folder}")
    if not any((folder / file).exists() for file in ("study.json", "metrics.jsonl")):
        raise UserError(f"{folder}: no study here; expected a study's folder, as runs/quick")
    return folder


REPORT_VERB = Verb("write the report of what is there", _arguments, _report)
