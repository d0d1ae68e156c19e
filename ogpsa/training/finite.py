"""Steps with a gradient that is not finite: refused before the optimizer takes them, naming the rows at fault."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from ogpsa.distributed import processes
from ogpsa.utils.errors import UserError, first_few


class FiniteTrainer(Trainer):
    """Mixed in before TRL's trainer; knows the columns of its data set.

    Attributes:
        row_place: where a row of the data set stands, for messages to the user.
    """

    row_place: Callable[[int], str] = staticmethod(lambda row: f"training row {row + 1}")
    _batches: Sequence[Mapping[str, Any]] = ()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        found = super().get_batch_samples(*args, **kwargs)
        self._batches = found[0]
        return found

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        trainer: Any = super()
        norm = trainer._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(norm):
            processes.on_all_processes(lambda: self._refuse(float(norm)))
        return norm

    def _refuse(self, norm: float) -> None:
        rows = self._rows_of_the_step()
        found = f"the gradient's norm is {norm} at step {self.state.global_step + 1}"
        # Alone, where no other process has to take part.
        alone = [row for row in rows if self._is_bad(row)] if processes.world_size() == 1 else []
        named = [self.row_place(row) for row in (alone or rows)]
        shown = first_few(named)
        if 0 < len(alone) < len(rows):
            raise UserError(
                f"{found}: so it is of {shown} alone; take the rows out, or look for what their tokens have in common"
            )
        if not named:
            raise UserError(f"{found}; lower the learning rate, or train in fp32")
        raise UserError(
            f"{found}, from {shown}; look at these rows, or, where none is at fault, lower the learning rate or train "
            "in fp32"
        )

    def _rows_of_the_step(self) -> list[int]:
        """The data set's rows that this process took the step on, found by their tokens; none of packs of rows."""
        tokens = {
            tuple(ids[mask.bool()].tolist())
            for batch in self._batches
            if "attention_mask" in batch
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        }
        data: Any = self.train_dataset
        return [row for row, one in enumerate(data) if tuple(self._collated(one)) in tokens]

    def _collated(self, row: Mapping[str, Any]) -> list[int]:
        """A row's tokens, of a pair those of the chosen answer, as far as a batch holds them."""
        ids: list[int] = row["input_ids"] if "input_ids" in row else row["prompt_ids"] + row["chosen_ids"]
        limit: Any = vars(self.args).get("max_length")
        return ids[:limit]

    def _is_bad(self, row: int) -> bool:
        """Whether the norm of one row's own gradient is not finite; the gradients of the step are lost."""
        data: Any = self.train_dataset
        inputs = self._prepare_inputs(self.data_collator([data[row]]))
        model: Any = self.model
        model.zero_grad()
        with self.compute_loss_context_manager():
            loss: Any = self.compute_loss(model, inputs)
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return not math.isfinite(torch.nn.utils.get_total_norm(gradients))
