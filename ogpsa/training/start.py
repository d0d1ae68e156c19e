"""The policy that a stage starts from, kept beside the one that trains."""

import copy
from typing import Any, cast

from accelerate.utils import fsdp2_prepare_model
from torch import nn
from transformers import Trainer


def frozen_copy(trainer: Trainer) -> nn.Module:
    """A copy of the model as it is now, which does not train; it computes in the trainer's precision, and FSDP2 shards
    it.
    """
    start: Any = copy.deepcopy(cast(nn.Module, trainer.model)).eval().requires_grad_(False)
    accelerator: Any = trainer.accelerator
    ready: nn.Module = (
        fsdp2_prepare_model(accelerator, start)
        if accelerator.is_fsdp2
        else accelerator.prepare_model(start, evaluation_mode=True)
    )
    return ready
