"""engram-eval: the referee for conditional memory.

The Python face is small and lazy, so that importing the package costs nothing:

    from engram_eval import Study, corpus_of, run, load_model, load_run, open_model
"""

import importlib
from typing import Any

_FACE = {
    "Study": "engram_eval.config:StudyConfig",
    "corpus_of": "engram_eval.corpus.texts:corpus_of",
    "run": "engram_eval.api:run",
    "load_model": "engram_eval.adapters.load:load_model",
    "load_run": "engram_eval.api:load_run",
    "open_model": "engram_eval.adapters.load:open_model",
}

__all__ = ["Study", "corpus_of", "load_model", "load_run", "open_model", "run"]


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'engram_eval' has no attribute {name!r}")
    module, _, attribute = _FACE[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
