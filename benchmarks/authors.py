"""The authors' procedure, re-implemented from its description, to compare with.

Each parameter tensor on its own, in a hook after every micro-batch's backward: the references are fetched from
host memory each time and the dot products run in the gradient's dtype. References are gradients of plain
cross-entropy, also for DPO. Where the description leaves a choice, the cheaper one is taken: the references are
made orthonormal at the refresh, not in the hook. Only the benchmarks use it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]


class AuthorsProcedure:
    """Projects the gradients of ``model`` from the first refresh on, while ``active``.

    Args:
        bf16: the training is bf16 autocast; references and dot products are then in bf16, as the authors' gradients.
    """

    def __init__(self, model: nn.Module, bf16: bool = False) -> None:
        self.model = model
        self.bf16 = bf16
        self.active = True
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Per parameter the orthonormal references, each flat, on the host in pageable memory.
        self.references: dict[Tensor, list[Tensor]] = {}
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._project)

    def refresh(self, sets: Sequence[Sequence[Batch]]) -> None:
        """Take the reference gradients at the current weights; no gradient may be in flight.

        Args:
            sets: per reference set its batches, each the model's inputs with ``labels``.
        """
        active, self.active = self.active, False
        found: dict[Tensor, list[Tensor]] = {parameter: [] for parameter in self.parameters}
        for batches in sets:
            for batch in batches:
                with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, enabled=self.bf16):
                    loss = self.model(**batch).loss / len(batches)
                loss.backward()
            for parameter in self.parameters:
                if parameter.grad is not None:
                    self._add(found[parameter], parameter.grad.flatten())
                    parameter.grad = None
        self.references = found
        self.active = active

    def _add(self, references: list[Tensor], gradient: Tensor) -> None:
        """Gram–Schmidt, one step, on the gradient's device; what is zero is left out."""
        row = gradient.bfloat16() if self.bf16 else gradient
        for reference in references:
            direction = reference.to(row.device)
            row = row - torch.dot(direction, row) * direction
        norm = row.norm()
        if norm > 0:
            references.append((row / norm).cpu())

    def _project(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        if self.active and gradient is not None:
            flat = gradient.view(-1)
            for reference in self.references.get(parameter, ()):
                direction = reference.to(gradient.device)
                flat.sub_(torch.dot(direction, flat.to(direction.dtype)) * direction)
