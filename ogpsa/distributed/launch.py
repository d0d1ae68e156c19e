"""Validation of a configuration against the processes that were started, without torch."""

from importlib.util import find_spec

from ogpsa.config import Config, StageSettings
from ogpsa.distributed import processes
from ogpsa.utils.errors import UserError


def check_launch(config: Config) -> None:
    """Refuse processes that do not fit ``distributed``, and batches that do not fit the processes.

    A pre-flight starts none of them: it takes ``distributed.processes`` at its word.

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
    return problems + _optimizer_problems(config)


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
    if started == 1:
        return [f"distributed.name: {name} needs several processes, but one was started; type: {command}"]
    if wanted not in (None, started):
        return [f"distributed.processes: found {wanted}, but torchrun started {started}; type: {command}"]
    return []


def _optimizer_problems(config: Config) -> list[str]:
    name = config.distributed.name
    keys = [f"{config.stage_key(stage.name)}.optimizer" for stage in config.stages if stage.optimizer == "adamw_8bit"]
    if keys and name not in ("single", "ddp"):
        return [f"{key}: adamw_8bit cannot be sharded by distributed={name}; allowed: adamw, sgd" for key in keys]
    if keys and find_spec("bitsandbytes") is None:
        return [f"{keys[0]}: adamw_8bit needs bitsandbytes, which is not installed; type: make install-8bit"]
    return []


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
