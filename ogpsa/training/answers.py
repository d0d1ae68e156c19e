"""Cross-entropy on given answers in a trainer whose own loss is on rollouts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer

from ogpsa.models.tokenizer import common_beginning, conversation_tokens

IGNORED = -100
Message = dict[str, str]


def answer_batch(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Sequence[Message]]]
) -> dict[str, Tensor]:
    """Tokens, mask and labels [rows, length] of conversations, padded on the right; labels of the answers alone.

    Args:
        rows: ``prompt`` and ``completion`` as messages.
    """
    prompts = conversation_tokens(tokenizer, [row["prompt"] for row in rows], ask=True)
    wholes = conversation_tokens(tokenizer, [[*row["prompt"], *row["completion"]] for row in rows])
    padding: Any = tokenizer.pad_token_id
    shape = len(rows), max(map(len, wholes))
    tokens, labels = torch.full(shape, padding), torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, (prompt, whole) in enumerate(zip(prompts, wholes, strict=True)):
        begun = common_beginning(prompt, whole)
        tokens[row, : len(whole)] = torch.tensor(whole)
        labels[row, begun : len(whole)] = tokens[row, begun : len(whole)]
        mask[row, : len(whole)] = 1
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def answer_step(trainer: Trainer, model: nn.Module, batch: dict[str, Tensor], items: Any) -> Tensor:
    """Backward of a batch's summed cross-entropy over ``items`` tokens, or of its mean where nothing counts tokens.

    Touches nothing of the trainer but the gradients, which are averaged over the processes as always. Returns the loss
    of this process.
    """
    # Comes before the trainer's own step, which sets the mode: checkpointing is for models in training alone.
    model.train()
    device = trainer.args.device
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    counted = {} if items is None else {"num_items_in_batch": items}
    with trainer.compute_loss_context_manager():
        loss: Tensor = model(**inputs, use_cache=False, **counted).loss
    loss = loss * trainer.args.world_size if counted else loss / trainer.current_gradient_accumulation_steps
    trainer.accelerator.backward(loss)
    return loss.detach()
