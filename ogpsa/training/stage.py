"""One stage: a TRL trainer over its training rows, with what the method adds, from checkpoint to checkpoint."""

import logging
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from ogpsa.config import Config, DPOSettings, SFTSettings
from ogpsa.data.rows import Data, Row
from ogpsa.distributed import processes
from ogpsa.distributed.arguments import mode_arguments, save_weights, shared_rows, summing_in_fp32
from ogpsa.distributed.launch import accumulation_steps
from ogpsa.models.adapters import lora_config, merged_model
from ogpsa.models.load import load_model
from ogpsa.runs.directory import HISTORY_FILE
from ogpsa.runs.tracking import Tracker
from ogpsa.training.anchoring import AnchorCallback
from ogpsa.training.resume import CompletionCallback, InterruptionCallback, last_complete_checkpoint
from ogpsa.training.seam import ProjectionMixin
from ogpsa.utils.errors import EXIT_REQUEUE, UserError
from ogpsa.utils.files import COMPLETE_FILE, is_complete, mark_complete, read_json, write_jsonl
from ogpsa.utils.progress import Progress
from ogpsa.utils.signals import Interruption

log = logging.getLogger(__name__)
step_log = logging.getLogger("ogpsa.steps")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# transformers' names.
OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit", "sgd": "sgd"}


class StageTrainer(ProjectionMixin):
    """What both stages' trainers leave out."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card beside each checkpoint: the run directory says what it is."""


class ProjectedSFTTrainer(StageTrainer, SFTTrainer):
    """Supervised fine-tuning with the projection."""


class ProjectedDPOTrainer(StageTrainer, DPOTrainer):
    """Direct preference optimization with the projection."""


def run_stage(
    config: Config,
    stage: SFTSettings | DPOSettings,
    start: Path,
    data: Data,
    folder: Path,
    interruption: Interruption,
    tracker: Tracker,
) -> None:
    """Train one stage from ``start`` into ``folder``; goes on from the last whole checkpoint in it.

    Raises:
        SystemExit: code 85, after saving, when a signal asked for it.
    """
    checkpoints = folder / "checkpoints"
    if processes.broadcast(is_complete(folder)):
        if processes.is_main():
            shutil.rmtree(checkpoints, ignore_errors=True)
        return
    model, tokenizer = processes.on_all_processes(
        lambda: load_model(start, DTYPES[config.model.dtype], config.model.attention)
    )
    trainer = build_trainer(config, stage, model, tokenizer, data, checkpoints)
    trainer.add_callback(_ReportCallback(stage.name, tracker))
    trainer.add_callback(InterruptionCallback(interruption))
    # Last, so that whatever a callback adds to a checkpoint is in it before it is called whole.
    trainer.add_callback(CompletionCallback(trainer))
    checkpoint = last_complete_checkpoint(checkpoints)
    if checkpoint is not None:
        log.info("%s: going on from %s", stage.name, checkpoint.name)
        # TRL counts them, but a checkpoint of the trainer does not hold them.
        trainer._total_train_tokens = read_json(checkpoint / COMPLETE_FILE)["train_tokens"]
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.state.global_step < trainer.state.max_steps:
        log.info("%s: saved at step %d and left, as a signal asked", stage.name, trainer.state.global_step)
        raise SystemExit(EXIT_REQUEUE)
    adapter = None if config.method.adapter(stage.name) is None else checkpoints / "adapter"
    save_weights(trainer, adapter or folder)
    # Left behind by ZeRO-3, it would spread the next model that is loaded over processes that do not take part.
    unset_hf_deepspeed_config()

    def finish() -> None:
        if adapter is not None:
            merged_model(start, adapter).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_jsonl(folder / HISTORY_FILE, trainer.state.log_history)
        mark_complete(folder, {"stage": stage.name, "steps": trainer.state.global_step})
        shutil.rmtree(checkpoints)

    processes.on_main_process(finish)


def build_trainer(
    config: Config,
    stage: SFTSettings | DPOSettings,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    output: Path,
) -> ProjectionMixin:
    """The stage's TRL trainer over its training rows, projecting if the method says so."""
    training = data.training(stage.name)
    projection = config.method.projection(stage.name)
    sets = {name: data.reference_sets[name] for name in projection.reference_sets} if projection else {}
    rows = {name: _conversations(part, stage.name) for name, part in {"": training, **sets}.items()}
    arguments: dict[str, Any] = {
        "output_dir": str(output),
        "seed": config.seed,
        "learning_rate": stage.learning_rate,
        "num_train_epochs": stage.epochs,
        "max_steps": stage.max_steps or -1,
        "per_device_train_batch_size": stage.micro_batch_size,
        "per_device_eval_batch_size": stage.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(stage, processes.world_size()),
        "max_length": stage.max_length,
        "warmup_steps": stage.warmup_ratio,
        "lr_scheduler_type": stage.scheduler,
        "weight_decay": stage.weight_decay,
        "max_grad_norm": stage.max_grad_norm,
        "optim": OPTIMIZERS[stage.optimizer],
        "bf16": config.model.precision == "bf16",
        "use_cpu": not torch.cuda.is_available(),
        "activation_checkpointing": config.model.gradient_checkpointing,
        "logging_steps": stage.log_every,
        "logging_nan_inf_filter": False,
        "save_steps": stage.save_every,
        "save_total_limit": 2,
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level_replica": "error",
        "dataloader_pin_memory": torch.cuda.is_available(),
    } | mode_arguments(config)
    if stage.name == "dpo":
        rows = {name: shared_rows(part, output / "rows" / name) for name, part in rows.items()}
    adapter = config.method.adapter(stage.name)
    common: dict[str, Any] = {
        "model": model,
        "peft_config": None if adapter is None else processes.on_all_processes(lambda: lora_config(adapter, model)),
        "processing_class": tokenizer,
        "train_dataset": rows.pop(""),
        "eval_dataset": rows or None,
    }
    trainer: ProjectionMixin
    if isinstance(stage, DPOSettings):
        # Precomputed log-probabilities spare the second model and work for one that is only in memory.
        arguments |= {"beta": stage.beta, "loss_type": ["sigmoid"], "precompute_ref_log_probs": True}
        if adapter is not None and config.distributed.name == "fsdp2" and torch.cuda.is_available():
            # TRL computes them on the GPU with this model, which FSDP brings there only when training begins.
            model.to("cuda")
        trainer = ProjectedDPOTrainer(args=summing_in_fp32(DPOConfig(**arguments)), **common)
    else:
        trainer = ProjectedSFTTrainer(args=summing_in_fp32(SFTConfig(**arguments)), **common)
    trainer.remove_callback(PrinterCallback)

    def complete() -> None:
        _check_nothing_dropped(
            f"{config.stage_key(stage.name)}.max_length", stage.max_length, trainer, {"training": training, **sets}
        )
        if projection is not None:
            trainer.install_projection(projection, config.seed)
        strength = config.method.anchor_strength(stage.name)
        if strength is not None:
            trainer.add_callback(AnchorCallback(trainer, strength))

    processes.on_all_processes(complete)
    # Preparing the sets draws from the generators, more or less by method.
    set_seed(config.seed)
    return trainer


def _check_nothing_dropped(key: str, tokens: int, trainer: ProjectionMixin, rows: Mapping[str, Sequence[Row]]) -> None:
    """TRL leaves out rows that ``max_length`` cuts before the answer, without a word."""
    sets: Any = trainer.eval_dataset or {}
    prepared: dict[str, Any] = {"training": trainer.train_dataset, **sets}
    problems = [
        f"{key}: {len(rows[name]) - len(kept)} of the {len(rows[name])} rows of the {name} set hold no answer within "
        f"{tokens} tokens; raise it or take the rows out"
        for name, kept in prepared.items()
        if len(kept) < len(rows[name])
    ]
    if problems:
        raise UserError(*problems)


def _conversations(rows: Sequence[Row], stage: str) -> Dataset:
    """Rows in TRL's conversational form: loss on the answer alone."""

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    answers = {"completion": "chosen"} if stage == "sft" else {"chosen": "chosen", "rejected": "rejected"}
    return Dataset.from_list(
        [
            {"prompt": turn("user", row["prompt"])}
            | {column: turn("assistant", row[source]) for column, source in answers.items()}
            for row in rows
        ]
    )


class _ReportCallback(TrainerCallback):
    """Training's numbers to the log and the tracker; on a terminal a bar shows them instead of lines."""

    def __init__(self, stage: str, tracker: Tracker) -> None:
        self.stage = stage
        self.tracker = tracker
        self.progress = Progress(1, stage)
        self.latest = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.progress = Progress(state.max_steps, self.stage, start=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if processes.is_main() and sys.stderr.isatty():
            self.progress.show(state.global_step, self.latest)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise FloatingPointError(f"{self.stage}: {name} is {logs[name]} at step {state.global_step}")
        shown = ", ".join(f"{key} {logs[key]:.4g}" for key in ("loss", "grad_norm", "learning_rate") if key in logs)
        self.latest = f", {shown}"
        left = self.progress.time_left(state.global_step)
        step_log.info("%s %d/%d: %s, %s", self.stage, state.global_step, state.max_steps, shown, left)
        numbers = {f"{self.stage}/{key}": value for key, value in logs.items() if math.isfinite(value)}
        self.tracker.log({"train/global_step": state.global_step, "train/stage": self.stage, **numbers})
