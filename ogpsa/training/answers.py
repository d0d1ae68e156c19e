"""Cross-entropy on given answers in a trainer whose own loss is on rollouts."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

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
    begun = map(common_beginning, prompts, wholes)
    labels = [[IGNORED] * start + whole[start:] for start, whole in zip(begun, wholes, strict=True)]
    pad: Any = DataCollatorForLanguageModeling(cast(int, tokenizer.pad_token_id))
    padded = zip(wholes, labels, strict=True)
    batch: dict[str, Tensor] = pad([{"input_ids": tokens, "labels": learned} for tokens, learned in padded])
    return batch


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
