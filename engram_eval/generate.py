"""A quick taste of a model: continue a prompt."""

from pathlib import Path

import torch

from engram_eval.adapters.load import load_model
from engram_eval.corpus.tokenizer_file import opened
from engram_eval.environment import compute_device
from engram_eval.errors import UserError


def generate(folder: Path, prompt: str, tokens: int, temperature: float, seed: int) -> str:
    """Return the prompt and its continuation.

    Args:
        folder: a model's folder.
        prompt: the text to go on from.
        tokens: how many to add at most.
        temperature: 0 takes the likeliest token each time.
        seed: draws the tokens where the temperature is above 0.

    Raises:
        UserError: for a folder without a model, an empty prompt or impossible numbers.
    """
    if not prompt:
        raise UserError("the prompt is empty")
    if tokens < 1 or temperature < 0:
        raise UserError(f"--tokens {tokens} --temperature {temperature}: need >= 1 and >= 0")
    model = load_model(folder).to(compute_device())
    tokenizer = opened(folder)
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
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
