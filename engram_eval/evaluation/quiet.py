"""Keeps lm-eval's own bars and notices off the terminal; progress is shown by ``Reporter``."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
from lm_eval.api import model as api_model
from lm_eval.api import task as api_task
from lm_eval.models import huggingface
from tqdm import tqdm


class _NoBar(tqdm):
    """A bar that is never drawn, whatever its caller asks for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Silence lm-eval while the block runs; its errors still come through.

    ``evaluate`` has no argument for its bars, so their class is replaced for the time.
    """
    modules = (api_model, api_task, huggingface)
    logger = logging.getLogger("lm_eval")
    level = logger.level
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    logger.setLevel(logging.ERROR)
    for module in modules:
        module.tqdm = _NoBar
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()
        for module in modules:
            module.tqdm = tqdm
