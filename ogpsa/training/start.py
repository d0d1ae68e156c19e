"""The policy that a stage starts from, kept beside the one that trains."""

import copy
from typing import Any

from accelerate.utils import fsdp2_prepare_model
from torch import nn
from transformers import Trainer


def frozen_copy(trainer: Trainer) -> nn.Module:
    """A copy of the trainer's model as it is now, which does not train; ``prepared`` before it is called."""
    model: Any = trainer.model
    start: nn.Module = copy.deepcopy(model).eval().requires_grad_(False)
    return start


def prepared(trainer: Trainer, start: nn.Module) -> nn.Module:
    """The copy on the trainer's device and in its precision, under FSDP2 sharded: every process calls it."""
    accelerator: Any = trainer.accelerator
    ready: nn.Module = (
        fsdp2_prepare_model(accelerator, start)
        if accelerator.is_fsdp2
        else accelerator.prepare_model(start, evaluation_mode=True)
    )
    return ready
