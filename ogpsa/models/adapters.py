"""Adapters of a finished stage, and their way back into the weights."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from ogpsa.models.load import load_model


def merged_model(start: Path, adapter: Path, instead: Mapping[str, Tensor] = MappingProxyType({})) -> PreTrainedModel:
    """The model in ``start`` with the adapter in ``adapter`` added to its weights, in fp32 on the CPU.

    It reads files alone, so it does not depend on how the stage's own model is spread over processes.

    Args:
        instead: weights that replace those in ``start``: the ``dequantized`` ones of the trained model.
    """
    model, _ = load_model(start, torch.float32)
    for name, weight in instead.items():
        model.get_parameter(name).data.copy_(weight)
    merged: PreTrainedModel = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return merged


def dequantized(trained: PeftModel) -> dict[str, Tensor]:
    """The weights that the model under the adapters holds in 4 bits, by the model's own names: fp32, on the CPU."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Params4bit

    return {
        name.replace(".base_layer.", "."): dequantize_4bit(weight.data, weight.quant_state).float().cpu()
        for name, weight in trained.get_base_model().named_parameters()
        if isinstance(weight, Params4bit)
    }


def keep_in_fp32(model: nn.Module) -> None:
    """Undo TRL's cast of adapters over a quantized base to bf16, in which a step at these rates would vanish."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
