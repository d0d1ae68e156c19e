"""Validation of a configuration against the processes that were started, without torch."""

import os
from importlib.util import find_spec
from shutil import which

from ogpsa.config import Config, StageSettings
from ogpsa.distributed import processes
from ogpsa.utils.errors import UserError


def check_launch(config: Config) -> None:
    """Refuse processes that do not fit ``distributed``, and batches that do not fit the processes.

    A pre-flight starts no processes and trusts ``distributed.processes``.

    Raises:
        UserError: one line per problem.
    """
    if config.preflight:
        problems = batch_problems(config, config.distributed.processes or processes.world_size())
    else:
        problems = launch_problems(config, processes.world_size())
    if problems:
        raise UserError(*problems)


def launch_problems(config: Config, started: int) -> list[str]:
    """One line for each way in which ``started`` processes could not run this configuration."""
    problems = _process_problems(config, started) or batch_problems(config, started)
    return [*problems, *saving_problems(config), *_package_problems(config)]


def _process_problems(config: Config, started: int) -> list[str]:
    name, wanted = config.distributed.name, config.distributed.processes
    command = f"torchrun --nproc-per-node {wanted or 2} train.py distributed={name} ..."
    if name == "single":
        if started > 1:
            return [
                f"distributed.name: found single, but torchrun started {started} processes; "
                "allowed: ddp, fsdp2, zero2, zero3"
            ]
        if wanted not in (None, 1):
            return [f"distributed.processes: found {wanted} with distributed=single; allowed: 1 or null"]
        return []
    if name in ("zero2", "zero3") and find_spec("deepspeed") is None:
        return [f"distributed.name: {name} needs DeepSpeed, which is not installed; type: make install-deepspeed"]
    # One process of torchrun may resume a ddp run of several.
    if started == 1 and not (name == "ddp" and processes.launched()):
        return [f"distributed.name: {name} needs several processes, but one was started; type: {command}"]
    if wanted not in (None, started):
        return [f"distributed.processes: found {wanted}, but torchrun started {started}; type: {command}"]
    return []


def _eight_bit_optimizers(config: Config) -> dict[str, str]:
    """The keys that ask for moments in 8 bits, with their values."""
    optimizers = {f"{config.stage_key(stage.name)}.optimizer": stage.optimizer for stage in config.stages}
    return {key: name for key, name in optimizers.items() if name in ("adamw_8bit", "paged_adamw_8bit")}


def saving_problems(config: Config) -> list[str]:
    """Savings of memory that the mode or a stage does not support, one line each."""
    name, model = config.distributed.name, config.model
    problems = []
    if name not in ("single", "ddp"):
        found = _eight_bit_optimizers(config).items()
        problems += [f"{key}: {one} cannot be sharded by distributed={name}; allowed: adamw, sgd" for key, one in found]
    if any(config.method.quantization(stage.name) for stage in config.stages):
        if name != "single":
            problems.append(
                f"method.lora_quantize: nf4 is for one process, and found distributed={name}; allowed: null"
            )
        if model.compile:
            problems.append("model.compile: true is not tested with method.lora_quantize=nf4; allowed: false")
    for key, wanted in (("activation_offload", model.activation_offload), ("compile", model.compile)):
        if not wanted:
            continue
        if name not in ("single", "ddp"):
            problems.append(f"model.{key}: true is not tested with distributed={name}; allowed: false")
        if config.rolls_out:
            problems.append(f"model.{key}: true is not supported in grpo, which also generates; allowed: false")
    if model.activation_offload and model.compile:
        problems.append("model.compile: true with model.activation_offload=true, whose hooks it would leave out")
    return problems


def _package_problems(config: Config) -> list[str]:
    """Packages and tools that the configuration needs and that are not installed."""
    model, problems = config.model, []
    wanted = _eight_bit_optimizers(config)
    if any(config.method.quantization(stage.name) for stage in config.stages):
        wanted["method.lora_quantize"] = "nf4"
    if wanted and find_spec("bitsandbytes") is None:
        key, value = next(iter(wanted.items()))
        problems.append(f"{key}: {value} needs bitsandbytes, which is not installed; type: make install-8bit")
    if model.attention == "flash_attention_2":
        if find_spec("flash_attn") is None and find_spec("kernels") is None:
            problems.append(
                "model.attention: flash_attention_2 needs flash_attn or kernels, which are not installed; type: "
                "pip install flash-attn"
            )
        if model.precision == "fp32" and model.dtype == "fp32":
            problems.append("model.attention: flash_attention_2 computes in bf16 alone, and found model.precision=fp32")
    if model.attention.startswith("kernels-community/") and find_spec("kernels") is None:
        problems.append(
            f"model.attention: {model.attention} needs kernels, which is not installed; type: pip install kernels"
        )
    if model.compile and not any(which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        problems.append("model.compile: true needs a C++ compiler; install g++ or clang++, or write false")
    return problems


def check_device(config: Config) -> None:
    """Refuse settings that only affect a GPU where there is none; imports torch.

    Raises:
        UserError: one line per key.
    """
    import torch

    if torch.cuda.is_available():
        return
    problems = [
        f"{config.stage_key(stage.name)}.optimizer: paged_adamw_8bit keeps moments in host memory instead of a GPU's, "
        "and there is no GPU; allowed: adamw, adamw_8bit, sgd"
        for stage in config.stages
        if stage.optimizer == "paged_adamw_8bit"
    ]
    if config.model.activation_offload:
        problems.append(
            "model.activation_offload: true keeps activations in host memory instead of a GPU's, and there is no GPU; "
            "allowed: false"
        )
    if problems:
        raise UserError(*problems)


def batch_problems(config: Config, processes: int) -> list[str]:
    """One line for each stage whose global batch the processes cannot share in whole micro-batches."""
    problems = []
    for stage in config.stages:
        share = stage.micro_batch_size * processes
        if stage.batch_size % share:
            below, above = stage.batch_size // share * share, -(-stage.batch_size // share) * share
            key = config.stage_key(stage.name)
            problems.append(
                f"{key}.batch_size: found {stage.batch_size}; allowed is a multiple of {share} = micro_batch_size "
                f"{stage.micro_batch_size} × {processes} processes; nearest: {f'{below}, ' if below else ''}{above}"
                f"{_smaller_micro_batch(stage, key, processes)}"
            )
    return problems


def _smaller_micro_batch(stage: StageSettings, key: str, processes: int) -> str:
    """The micro-batch that keeps the batch, if there is one."""
    mine = stage.batch_size // processes
    if stage.batch_size % processes:
        return ""
    largest = max(size for size in range(1, stage.micro_batch_size + 1) if mine % size == 0)
    return f", or keep it with {key}.micro_batch_size={largest}"


def accumulation_steps(stage: StageSettings, processes: int) -> int:
    """Micro-batches that one process adds up for each optimizer step: the global batch is the same for any number."""
    return stage.batch_size // (stage.micro_batch_size * processes)
