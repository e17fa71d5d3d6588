"""transformers' trainer and its collators, whose batches are read as texts of their own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from models_fixture import build, full, tokens
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from engram_eval.models.modeling_engram import EngramForCausalLM

RATE = 0.05
LENGTHS = (5, 9, 2, 7, 12, 4, 6, 3)


class Texts(Dataset):
    """Texts of different lengths; the second update sees the last four."""

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        return {"input_ids": tokens(1, LENGTHS[number], seed=number)[0].tolist()}


def by_hand(model: EngramForCausalLM) -> list[float]:
    """Take two steps by four texts each, which are read one by one; return their losses."""
    losses = []
    for texts in (range(0, 4), range(4, 8)):
        parts, predicted = [], sum(LENGTHS[number] - 1 for number in texts)
        for number in texts:
            ids = torch.tensor([Texts()[number]["input_ids"]])
            logits = model(ids, use_cache=False).logits[0, :-1]
            parts.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        loss = torch.stack(parts).sum() / predicted
        model.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
    return losses


@pytest.mark.parametrize(
    ("size", "pieces", "told"), [(4, 1, {}), (2, 2, {"return_flash_attn_kwargs": True})]
)
def test_a_trainer_learns_from_packed_texts(
    size: int, pieces: int, told: dict[str, bool], tmp_path: Path
) -> None:
    model, twin = full(), full()
    expected = by_hand(twin)
    steps = torch.optim.SGD(model.parameters(), lr=RATE)
    trainer = Trainer(
        model,
        TrainingArguments(
            str(tmp_path), max_steps=2, per_device_train_batch_size=size, save_strategy="no",
            gradient_accumulation_steps=pieces, logging_steps=1, max_grad_norm=0.0, use_cpu=True,
            report_to=[], disable_tqdm=True, train_sampling_strategy="sequential",
        ),
        data_collator=DataCollatorWithFlattening(return_seq_idx=True, **told),
        train_dataset=Texts(),
        optimizers=(steps, torch.optim.lr_scheduler.ConstantLR(steps, 1.0)),
    )  # fmt: skip
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert found == pytest.approx(expected, abs=1e-3)
    for (name, one), two in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5, msg=name)


def llama_like() -> tuple[EngramForCausalLM, LlamaForCausalLM]:
    ours = build()
    kept = {name: getattr(ours.config, name) for name in LlamaConfig().to_dict() if name in SHAPE}
    theirs = LlamaForCausalLM(LlamaConfig(**kept)).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


SHAPE = {
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "intermediate_size", "rms_norm_eps"),
}


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("items", [7, torch.tensor(7), None])
@pytest.mark.parametrize("shifted", [True, False])
def test_losses_are_llamas(plain: bool, items: Any, shifted: bool) -> None:
    ours, theirs = llama_like()
    if not plain:
        ours.lm_head.register_forward_hook(lambda *_: None)
    ids = tokens(2, 9)
    labels = ids.masked_fill(ids > 60, -100)
    given = {"labels": labels, "num_items_in_batch": items, "token_type_ids": torch.zeros(2, 9)}
    if shifted:
        given["shift_labels"] = labels.roll(3, 1)
    found, expected = ours(ids, **given).loss, theirs(ids, **given).loss
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("plain", [True, False])
def test_a_piece_without_labels_adds_nothing(plain: bool) -> None:
    """Of a batch in pieces, one may hold no label that counts."""
    model, ids = build(), tokens(1, 6)
    if not plain:
        model.lm_head.register_forward_hook(lambda *_: None)
    loss = model(ids, labels=torch.full_like(ids, -100), num_items_in_batch=5).loss
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def packed(**options: Any) -> dict[str, Tensor]:
    collate = DataCollatorWithFlattening(return_seq_idx=True, return_flash_attn_kwargs=True)
    batch: dict[str, Tensor] = collate([Texts()[number] for number in range(3)])
    return {**batch, **options}


@pytest.mark.parametrize(
    ("without", "message"),
    [
        (("position_ids",), "seq_idx without position_ids that begin anew"),
        (("position_ids", "seq_idx"), "cu_seq_lens_q of 3 texts without position_ids"),
    ],
)
def test_texts_that_positions_do_not_tell_apart(without: tuple[str, ...], message: str) -> None:
    batch = {name: value for name, value in packed().items() if name not in without}
    with pytest.raises(ValueError, match=message) as raised:
        full()(**batch)
    assert "\n" not in str(raised.value)


def test_what_has_no_effect_is_refused() -> None:
    with pytest.raises(TypeError, match="got cu_seqlens; beside its own arguments it takes"):
        full()(**packed(cu_seqlens=torch.tensor([0, 5, 14, 16])))
