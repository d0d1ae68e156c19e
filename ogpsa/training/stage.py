"""One stage of training, from checkpoint to checkpoint."""

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from ogpsa.config import GRPOSettings, OneStage
from ogpsa.distributed import processes
from ogpsa.distributed.arguments import save_weights
from ogpsa.models.adapters import dequantized, merged_model
from ogpsa.models.load import load_model
from ogpsa.runs.directory import HISTORY_FILE, REWARDS
from ogpsa.runs.run import Run
from ogpsa.training.callbacks import ReportCallback
from ogpsa.training.resume import CompletionCallback, InterruptionCallback, last_complete_checkpoint
from ogpsa.training.trainer import build_trainer
from ogpsa.utils.errors import EXIT_REQUEUE, UserError
from ogpsa.utils.files import CHECKPOINTS, find_damage, is_complete, mark_complete, write_jsonl

log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def train_stage(run: Run, stage: OneStage, start: Path, folder: Path) -> None:
    """Train one stage from ``start`` into ``folder``, resuming from the last whole checkpoint in it.

    Raises:
        UserError: the stage was finished, and a file of it has changed since.
        SystemExit: code 85, after saving, when a signal asked for it.
    """
    _train_stage(run, stage, start, folder)
    # Trainer and model refer to each other, and hold the device's memory until they are collected.
    clear_device_cache(garbage_collection=True)


def _train_stage(run: Run, stage: OneStage, start: Path, folder: Path) -> None:
    config, checkpoints = run.config, folder / CHECKPOINTS
    quantization = config.method.quantization(stage.name)
    if processes.on_main_process(lambda: _is_trained(folder)):
        return
    model, tokenizer = processes.on_all_processes(
        lambda: load_model(
            start,
            DTYPES[config.model.dtype],
            config.model.attention,
            config.model.template_kwargs,
            DTYPES[config.model.precision] if quantization else None,
        )
    )
    # TRL notes the tokenizer's padding there, and the next stage's embedding would leave out the token that pads.
    settings = model.config.get_text_config()
    padding, generation = settings.pad_token_id, model.generation_config
    # Not inside the checkpoints, which are deleted at the end: what was paid for stays with the result.
    scorer = run.scorer(stage, folder / REWARDS)
    trainer = build_trainer(config, stage, model, tokenizer, run.data, checkpoints, run.interruption, scorer)
    trainer.add_callback(ReportCallback(stage.name, run.tracker))
    every = stage.updates_per_generation if isinstance(stage, GRPOSettings) else 1
    trainer.add_callback(InterruptionCallback(run.interruption, every))
    checkpoint = last_complete_checkpoint(checkpoints, config, stage)
    if checkpoint is not None:
        log.info("%s: resumes from %s", stage.name, checkpoint.name)
    # Last, so that whatever a callback adds to a checkpoint is in it before it is called whole.
    trainer.add_callback(CompletionCallback(trainer, checkpoint))
    began = time.process_time()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    spent = time.process_time() - began
    resumed_at = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    if trainer.state.global_step < trainer.state.max_steps:
        log.info("%s: saved at step %d and stopped, as a signal asked", stage.name, trainer.state.global_step)
        raise SystemExit(EXIT_REQUEUE)
    settings.pad_token_id, model.generation_config = padding, generation
    adapter = checkpoints / "adapter"
    save_weights(trainer, adapter if config.method.trains_adapters else folder)
    # Left behind by ZeRO-3, it would spread the next model that is loaded over processes that do not take part.
    unset_hf_deepspeed_config()

    def finish() -> None:
        facts: dict[str, Any] = {}
        if config.method.trains_adapters:
            facts["merged_on"] = "the stage's start" + (f" in {quantization}, dequantized" if quantization else "")
            log.info("%s: the adapter is merged with %s", stage.name, facts["merged_on"])
            trained = trainer.accelerator.unwrap_model(trainer.model)
            merged_model(start, adapter, dequantized(trained) if quantization else ()).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_jsonl(folder / HISTORY_FILE, trainer.state.log_history)
        facts |= {"stage": stage.name, "steps": trainer.state.global_step}
        # Of the last session. CPU time, unlike wall-clock time, leaves out the work of other processes.
        facts |= {"session_steps": trainer.state.global_step - resumed_at, "cpu_seconds": round(spent, 3)}
        if stage.keep == "best":
            facts["best_step"] = trainer.state.best_global_step
        mark_complete(folder, facts)
        shutil.rmtree(checkpoints)

    processes.on_main_process(finish)


def _is_trained(folder: Path) -> bool:
    if not is_complete(folder):
        return False
    damage = find_damage(folder, contents=True)
    if damage is not None:
        raise UserError(f"{folder}: {damage}; delete the folder to have the stage trained again")
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return True
