"""A quick taste of a model: continue a prompt."""

import math
from pathlib import Path

import torch

from engram_eval.adapters.load import load_model
from engram_eval.corpus.tokenizer_file import opened
from engram_eval.environment import compute_device
from engram_eval.errors import UserError, check_seed, check_text
from engram_eval.model_folder import max_positions


def generate(folder: Path, prompt: str, tokens: int, temperature: float, seed: int) -> str:
    """Return the prompt and its continuation.

    Args:
        folder: a model's folder.
        prompt: the text to go on from.
        tokens: how many to add at most.
        temperature: 0 takes the likeliest token each time.
        seed: draws the tokens where the temperature is above 0.

    Raises:
        UserError: for a folder without a model, an empty prompt, impossible numbers, or more tokens
            than the model is made for.
    """
    if not prompt:
        raise UserError("the prompt is empty")
    check_text(prompt)
    check_seed("--seed", seed)
    if tokens < 1 or not 0 <= temperature < math.inf:
        raise UserError(f"--tokens {tokens} --temperature {temperature}: need >= 1 and >= 0")
    model = load_model(folder).to(compute_device())
    tokenizer = opened(folder)
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    most, read = max_positions(folder), inputs["input_ids"].shape[1]
    if most is not None and read + tokens > most:
        raise UserError(
            f"{read} tokens of prompt and --tokens {tokens}: {folder} is made for {most} in all"
        )
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        out = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=tokens,
            pad_token_id=tokenizer.pad_token_id,
            **({"do_sample": False} | sampling),
        )
    return str(tokenizer.decode(out[0]))
