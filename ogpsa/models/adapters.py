"""Adapters of a finished stage, and their way back into the weights."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ogpsa.models.load import load_model


def merged_model(start: Path, adapter: Path) -> PreTrainedModel:
    """The model in ``start`` with the adapter in ``adapter`` added to its weights, in fp32 on the CPU.

    It reads files alone, so it does not depend on how the stage's own model is spread over processes.
    """
    model, _ = load_model(start, torch.float32)
    merged: PreTrainedModel = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return merged
