"""Cross-entropy on given answers in a trainer whose own loss is of rollouts."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer

IGNORED = -100
Message = dict[str, str]


def answer_batch(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Sequence[Message]]]
) -> dict[str, Tensor]:
    """Tokens, mask and labels [rows, length] of conversations, padded on the right; labels of the answers alone.

    Args:
        rows: ``prompt`` and ``completion`` as messages.
    """
    asked = [tokenizer.apply_chat_template(list(row["prompt"]), add_generation_prompt=True, tokenize=False)
             for row in rows]  # fmt: skip
    told = [tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=False) for row in rows]
    prompts: list[list[int]] = tokenizer(asked, add_special_tokens=False)["input_ids"]
    wholes: list[list[int]] = tokenizer(told, add_special_tokens=False)["input_ids"]
    padding: Any = tokenizer.pad_token_id
    shape = len(rows), max(map(len, wholes))
    tokens, labels = torch.full(shape, padding), torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, (prompt, whole) in enumerate(zip(prompts, wholes, strict=True)):
        # As TRL counts a prompt's tokens: those with which prompt and conversation both begin.
        begun = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False))))
        tokens[row, : len(whole)] = torch.tensor(whole)
        labels[row, begun : len(whole)] = tokens[row, begun : len(whole)]
        mask[row, : len(whole)] = 1
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def answer_step(trainer: Trainer, model: nn.Module, batch: dict[str, Tensor], items: Any) -> Tensor:
    """Backward of a batch's summed cross-entropy over ``items`` tokens, or of its mean where nothing counts tokens.

    Touches nothing of the trainer but the gradients, which are averaged over the processes as always. Returns the loss
    of this process.
    """
    device = trainer.args.device
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    counted = {} if items is None else {"num_items_in_batch": items}
    with trainer.compute_loss_context_manager():
        loss: Tensor = model(**inputs, use_cache=False, **counted).loss
    loss = loss * trainer.args.world_size if counted else loss / trainer.current_gradient_accumulation_steps
    trainer.accelerator.backward(loss)
    return loss.detach()
