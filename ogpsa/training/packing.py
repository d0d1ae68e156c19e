"""Whether the rows of a pack are apart, asked of the model as it is trained.

Masks follow the rows, windows of attention too. What a model carries from token to token by other ways (recurrent
states, ALiBi) may not, and some kernels keep apart what others do not.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from ogpsa.distributed import processes
from ogpsa.utils.errors import UserError

ROW = 8
# Of the norm of a row's logits. Of forty kinds of models those whose rows are apart change by 1.4e-7 at most (all but
# mixtures of experts by 0), the others by 7e-4 at least.
TOLERANCE = 1e-5


def check_rows_apart(trainer: Trainer, key: str, **event: Any) -> None:
    """Refuse a model in which the first row of a pack changes the logits of the second one.

    Every process makes the two forward passes, over sixteen tokens.

    Args:
        key: the full key that asks for packs.

    Raises:
        UserError: names the kind of model.
    """
    model: Any = trainer.model_wrapped
    training = model.training
    model.eval()
    found = None
    try:
        one, other = (_second_row(trainer, model, first) for first in ([0] * ROW, [1] * ROW))
        # Logits that are not finite are no proof either.
        if not (change := float((one - other).norm() / one.norm())) <= TOLERANCE:
            found = f"a row of a pack changes the logits of the next one by {change:.1e} of their norm"
    except ValueError as error:
        # transformers knows of some kernels that they mix rows.
        found = f"transformers finds: {error}"
    model.train(training)

    def refuse() -> None:
        if found is not None:
            unwrapped: Any = trainer.accelerator.unwrap_model(model)
            raise UserError(f"{key}: packed rows of a {unwrapped.config.model_type} model mix ({found}); allowed: null")

    processes.on_all_processes(refuse)


@torch.no_grad()
def _second_row(trainer: Trainer, model: Any, first: list[int]) -> Tensor:
    """The logits of a pack's second row, which is always the same, behind the row ``first``."""
    pack = {"input_ids": [*first, *[0, 1] * (ROW // 2)], "seq_lengths": [ROW, ROW]}
    batch = dict(trainer._prepare_inputs(trainer.data_collator([pack])))
    del batch["labels"]
    with trainer.compute_loss_context_manager():
        logits: Tensor = model(**batch, use_cache=False).logits[0, ROW:].float()
    return logits
