"""Settings of the libraries below, made before they are imported."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

SETTINGS = {
    # Stages run side by side, one thread each: the numbers do not depend on the cores at hand.
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def settle_libraries() -> None:
    """Choose one thread and no chatter, except where the user's environment says otherwise."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


@contextmanager
def no_bars() -> Iterator[None]:
    """Keep transformers' own progress bars out of ours, while it loads or saves."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
