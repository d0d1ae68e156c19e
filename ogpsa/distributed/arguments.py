"""Transformers' arguments for each distributed mode, and the gathering of sharded weights."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ogpsa.config import Config
from ogpsa.distributed import processes

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def mode_arguments(config: Config, model: PreTrainedModel) -> dict[str, Any]:
    """Arguments of ``TrainingArguments`` for ``distributed``.

    Raises:
        UserError: DeepSpeed is of another release than the one we know.
    """
    precision = config.model.precision
    match config.distributed.name:
        case "ddp":
            # Every parameter takes part in the loss, and a model's buffers are constants.
            return {"ddp_find_unused_parameters": False, "ddp_broadcast_buffers": False}
        case "fsdp2":
            # Checkpointing activations is left to transformers: accelerate's way of it for FSDP2 would draw other
            # dropout masks in the recomputation.
            settings = {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}
            # Of the layers that the model's kind names; accelerate refuses those of a part that this one lacks.
            present = {type(module).__name__ for module in model.modules()}
            layers = sorted(present.intersection(model._no_split_modules or ()))
            named = {"transformer_layer_cls_to_wrap": layers} if layers else {}
            return {"fsdp": True, "fsdp_config": settings | named}
        case "zero2" | "zero3" as name:
            from ogpsa.distributed.deepspeed import check_deepspeed, deepspeed_config

            check_deepspeed()
            settings = deepspeed_config(2 if name == "zero2" else 3, precision)
            # bf16=True would make the weights bf16, and with use_cpu=True accelerate would leave DeepSpeed out.
            return {"deepspeed": settings, "bf16": False, "use_cpu": False}
        case _:
            return {}


def one_gpu_and_fp32_sums(arguments: Arguments) -> Arguments:
    """The arguments with two settings that have no key: one GPU a process, and FSDP2's gradients summed in fp32."""
    # transformers would spread a process over all GPUs that it sees, which TRL refuses.
    arguments._n_gpu = min(1, arguments.n_gpu)
    if arguments.fsdp and arguments.bf16:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        arguments.fsdp_plugin_args = {**(arguments.fsdp_plugin_args or {}), "mixed_precision_policy": policy}
    return arguments


def shared_rows(rows: Dataset, folder: Path) -> Dataset:
    """The rows from a file that every process reads.

    TRL keeps reference log-probabilities beside the file, and looks for those of rows that are only in memory
    where no other process finds them.
    """
    if processes.world_size() == 1:
        return rows
    processes.on_main_process(lambda: rows.save_to_disk(folder))
    return Dataset.load_from_disk(str(folder))


def save_weights(trainer: Trainer, folder: Path) -> None:
    """Write the trained model, or its adapter, as one process would; every process calls it.

    Raises:
        RuntimeError: what was gathered from the processes lacks a trained weight.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    state = None
    if processes.world_size() > 1:
        # Of the wrapped model: DeepSpeed's engine gathers what ZeRO-3 shards.
        gathered = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        # Gathering copies a tied weight once for each of its names; save_pretrained keeps the first.
        kept = {name for named in (model.named_parameters(), model.named_buffers()) for name, _ in named}
        # A compiled model names its weights below its own.
        plain = {name.removeprefix("_orig_mod."): tensor for name, tensor in (gathered or {}).items()}
        state = {name: tensor for name, tensor in plain.items() if name in kept}
    if processes.is_main():
        trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
        if state is not None and (lost := [name for name in trained if name not in state]):
            raise RuntimeError(f"{len(lost)} of {len(trained)} trained weights were not gathered, the first {lost[0]}")
        model.save_pretrained(folder, state_dict=state)
