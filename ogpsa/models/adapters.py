"""Adapters of a finished stage, and their way back into the weights."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from ogpsa.models.load import load_model


def merged_model(start: Path, adapter: Path, instead: Iterable[tuple[str, Tensor]] = ()) -> PreTrainedModel:
    """The model in ``start`` with the adapter in ``adapter`` added to its weights, in fp32 on the CPU.

    It reads files alone, so it does not depend on how the stage's own model is spread over processes.

    Args:
        instead: names and weights that replace those in ``start``: the ``dequantized`` ones of the trained model.
    """
    model, _ = load_model(start, torch.float32)
    for name, weight in instead:
        model.get_parameter(name).data.copy_(weight)
    merged: PreTrainedModel = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return merged


def dequantized(trained: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """The weights that the model under the adapters holds in 4 bits, by the model's own names, unpacked one by one."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Params4bit

    for name, weight in trained.get_base_model().named_parameters():
        if isinstance(weight, Params4bit):
            yield name.replace(".base_layer.", "."), dequantize_4bit(weight.data, weight.quant_state)


def keep_in_fp32(model: nn.Module) -> None:
    """Undo TRL's cast of adapters over a quantized base to bf16, in which a step at these rates would vanish."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
