"""What each linear probe asks, in one line."""

from collections.abc import Mapping

TASKS: Mapping[str, str] = {
    "ngram_ended": "which of two 3-grams that share their last two tokens has just ended",
    "entity": "which of several people who share last names was just named",
    "attribute_value": "at which firm a person works, where the answer must come next",
    "addition_carry": "whether the last digits of a sum carry, at the end of the problem",
    "addition_result": "the first digit of a sum, at the end of the problem",
    "recall_key": "which key stood before the value that was just read, in a list of pairs",
    "recall_value": "which value belongs to the key that is asked for",
    "previous_token_kind": "which kind of token stood before: word, number, symbol, space, ...",
    "next_token_kind": "which kind of token comes next",
    "code_token_kind": "what a token of Python code is: name, operator, number, ...",
    "bracket_depth": "how many brackets are open after a token of Python code",
}
