"""How PopQA scores an answer: arXiv:2212.10511, the authors' ``run_model.py``."""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return 1.0 if the prediction contains a right answer as it is, in small, or capitalised."""
    prediction = results[0]
    answers = json.loads(doc["possible_answers"])
    right = any(
        form in prediction for text in answers for form in (text, text.lower(), text.capitalize())
    )
    return {"exact_match": float(right)}
