"""After each optimizer step the weights are pulled towards those that the stage started from.

L2-SP (Li et al. 2018, arXiv 1802.01483), decoupled from the gradient as AdamW's weight decay is:
``w ← w - lr · λ · (w - w_start)``, with lr the rate of the step before.
"""

from typing import Any

from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback

from ogpsa.subspace.shards import ParameterShards
from ogpsa.training.seam import ProjectionMixin


class AnchorCallback(TrainerCallback):
    """Pulls with ``strength`` (λ) towards the weights that the model has now, before a checkpoint is loaded into it.

    For one process, DDP and FSDP2. Keeps one copy of the trained weights, sharded as they are.
    """

    def __init__(self, trainer: ProjectionMixin, strength: float) -> None:
        self._trainer = trainer
        self._strength = strength
        self._start = [weight.detach().clone() for weight in trainer.model.parameters() if weight.requires_grad]

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        self._shards = ParameterShards(self._trainer.model)
        trained = [weight for weight in self._trainer.model.parameters() if weight.requires_grad]
        for index, (whole, weight) in enumerate(zip(self._start, trained, strict=True)):
            whole = whole.to(weight.device)
            if isinstance(weight, DTensor):
                # Every process holds the whole and keeps its own piece of it.
                mesh, placements = weight.device_mesh, weight.placements
                whole = distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local().clone()
            self._start[index] = whole.view(-1)

    def on_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
        assert self._trainer.optimizer is not None
        rate = self._trainer.optimizer.param_groups[0]["lr"]
        for weight, start in zip(self._shards.weights(), self._start, strict=True):
            weight.lerp_(start, rate * self._strength)
