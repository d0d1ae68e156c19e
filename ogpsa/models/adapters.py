"""Adapters of a finished stage, and their way back into the weights."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ogpsa.models.load import load_model


def merged_model(start: Path, adapter: Path, quantized: bool = False) -> PreTrainedModel:
    """The model in ``start`` with the adapter in ``adapter`` added to its weights, in fp32.

    It reads files alone, so it does not depend on how the stage's own model is spread over processes.

    Args:
        quantized: the adapter was trained on weights in 4 bits, and is added to what these stand for.
    """
    model, _ = load_model(start, torch.float32, quantized=quantized)
    if quantized:
        whole: Any = model
        model = whole.dequantize(torch.float32)
    merged: PreTrainedModel = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return merged
