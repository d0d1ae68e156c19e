"""Complete checkpoints: a training saves them at step boundaries and resumes only from these."""

import logging
import shutil
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ogpsa.config import Config, GRPOSettings, OneStage
from ogpsa.distributed import processes
from ogpsa.training.seam import checkpoint_folder
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import COMPLETE_FILE, find_damage, is_complete, mark_complete, read_json
from ogpsa.utils.signals import Interruption

log = logging.getLogger(__name__)
# What a checkpoint of the trainer does not hold: TRL's count of tokens, and the sum of the losses that were logged.
COUNTERS = {"train_tokens": "_total_train_tokens", "total_loss": "_total_loss_scalar"}


class CompletionCallback(TrainerCallback):
    """Marks a checkpoint whole, as the last callback of a save, and gives a resumed trainer its counters back.

    Args:
        checkpoint: the one that the trainer resumes from.
    """

    def __init__(self, trainer: Trainer, checkpoint: Path | None = None) -> None:
        self.trainer = trainer
        self.checkpoint = checkpoint

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if self.checkpoint is not None:
            facts = read_json(self.checkpoint / COMPLETE_FILE)
            # One of an earlier revision holds fewer.
            vars(self.trainer).update({attribute: facts[name] for name, attribute in COUNTERS.items() if name in facts})
            if self.trainer.args.load_best_model_at_end and self.trainer.state.best_global_step:
                # Noted with its whole path, and the run's directory may have moved.
                best = self.checkpoint.with_name(f"checkpoint-{self.trainer.state.best_global_step}")
                damage = find_damage(best, contents=True) if is_complete(best) else "is missing or not whole"
                if damage is not None:
                    raise UserError(f"{best}: the best checkpoint so far: {damage}; delete {best.parent} to start over")
                self.trainer.state.best_model_checkpoint = str(best)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Values that are not logged yet are in no checkpoint, so none may be left at a save.
        control.should_log = control.should_log or control.should_save

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        facts = {"step": state.global_step, "processes": args.world_size}
        facts |= {name: vars(self.trainer)[attribute] for name, attribute in COUNTERS.items()}
        processes.barrier()
        processes.on_main_process(lambda: mark_complete(checkpoint_folder(args, state), facts))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        logs: dict[str, float] = event["logs"]
        # The trainer divides by the steps since it was resumed.
        if "train_loss" in logs:
            total = vars(self.trainer)[COUNTERS["total_loss"]]
            logs["train_loss"] = state.log_history[-1]["train_loss"] = total / state.global_step


class InterruptionCallback(TrainerCallback):
    """Saves and stops at the next step that may be resumed from, once a signal asked for it.

    Args:
        every: a training may be resumed from the steps that this divides.
    """

    def __init__(self, interruption: Interruption, every: int = 1) -> None:
        self.interruption = interruption
        self.every = every

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # A signal may have reached one process alone.
        if state.global_step % self.every == 0 and processes.any_process(self.interruption.requested):
            self.interruption.requested = True
            control.should_save = control.should_training_stop = True


def last_complete_checkpoint(folder: Path, config: Config, stage: OneStage) -> Path | None:
    """The newest whole checkpoint in ``folder``, from which the stage is resumed.

    Raises:
        UserError: it was saved by another number of processes, and the stage is bound to that.
    """
    newest = newest_whole(folder)
    if newest is not None:
        saved_by, here = read_json(newest / COMPLETE_FILE)["processes"], processes.world_size()
        if saved_by != here and (why := _bound_to_processes(config, stage)) is not None:
            raise UserError(
                f"distributed.processes: {newest} was saved by {saved_by} processes, this run has {here}, and {why}; "
                f"start {saved_by}, or delete {folder} to train the stage from its beginning"
            )
        if saved_by != here:
            log.info(
                "%s: %s was saved by %d processes and is resumed by %d: the batch stays %d, sums round differently, "
                "and of an epoch's last batch, if it is not full, other rows are repeated",
                stage.name, newest.name, saved_by, here, stage.batch_size,
            )  # fmt: skip
    return newest


def _bound_to_processes(config: Config, stage: OneStage) -> str | None:
    """Why a stage's checkpoint needs as many processes as saved it; None if it does not."""
    mode, projection = config.distributed.name, config.method.projection(stage.name)
    if mode in ("zero2", "zero3"):
        return f"{mode} keeps a part of the optimizer's state per process"
    if isinstance(stage, GRPOSettings):
        return "grpo draws completions per process"
    if mode == "fsdp2" and projection is not None and projection.basis_dtype == "int8":
        return "the scales of an int8 basis are those of its shards"
    return None


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder`` whose save was not interrupted and whose files are as they were saved.

    Newer, incomplete ones are deleted: overwritten, one would keep its old mark next to new files that are half
    written.
    """
    return processes.on_main_process(lambda: _newest_whole(folder))


def _newest_whole(folder: Path) -> Path | None:
    by_age = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in reversed(by_age):
        damage = find_damage(path, contents=True) if is_complete(path) else "its save was interrupted"
        if damage is None:
            return path
        log.info("%s is not whole and is left out: %s", path.name, damage)
        shutil.rmtree(path)
    return None
