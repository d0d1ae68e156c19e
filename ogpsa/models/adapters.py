"""LoRA adapters on a stage's model, and their way back into its weights (LoRA: arXiv 2106.09685)."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel

from ogpsa.config import AdapterSettings
from ogpsa.models.load import load_model
from ogpsa.utils.errors import UserError, closest_match


def lora_config(settings: AdapterSettings, model: PreTrainedModel) -> LoraConfig:
    """peft's configuration of ``settings`` for ``model``.

    Raises:
        UserError: a target module is no linear layer of the model.
    """
    head = model.get_output_embeddings()
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    linear = {name.rpartition(".")[2] for name in layers}
    if not isinstance(settings.target_modules, str):
        problems = [
            f"method.lora_target_modules: '{name}' is no linear layer of the model; "
            f"allowed: all-linear, or some of {', '.join(sorted(linear))}{closest_match(name, linear)}"
            for name in settings.target_modules
            if name not in linear
        ]
        if problems:
            raise UserError(*problems)
    modules = settings.target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
    )


def merged_model(start: Path, adapter: Path) -> PreTrainedModel:
    """The model in ``start`` with the adapter in ``adapter`` added to its weights, in fp32 on the CPU.

    It reads files alone, so it does not depend on how the stage's own model is spread over processes.
    """
    model, _ = load_model(start, torch.float32)
    merged: PreTrainedModel = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return merged
