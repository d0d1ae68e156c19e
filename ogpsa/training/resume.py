"""Checkpoints that are whole: a training leaves them at step boundaries and is resumed from no other."""

import logging
import shutil
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ogpsa.distributed import processes
from ogpsa.models.files import is_whole
from ogpsa.training.seam import checkpoint_folder
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import COMPLETE_FILE, is_complete, mark_complete, read_json
from ogpsa.utils.signals import Interruption

log = logging.getLogger(__name__)
# TRL's count of tokens, which a checkpoint of the trainer does not hold.
TRAIN_TOKENS = "_total_train_tokens"


class CompletionCallback(TrainerCallback):
    """Marks a checkpoint whole, as the last callback of a save: a torn one is never resumed from."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # What has not been logged is in no checkpoint, so nothing may be left over at a save.
        control.should_log = control.should_log or control.should_save

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        facts = {
            "step": state.global_step,
            "train_tokens": vars(self.trainer)[TRAIN_TOKENS],
            "processes": args.world_size,
        }
        processes.barrier()
        if processes.is_main():
            mark_complete(checkpoint_folder(args, state), facts)
        processes.barrier()


class InterruptionCallback(TrainerCallback):
    """Saves and stops at the next step boundary once a signal asked for it."""

    def __init__(self, interruption: Interruption) -> None:
        self.interruption = interruption

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # A signal may have reached one process alone.
        if processes.any_process(self.interruption.requested):
            self.interruption.requested = True
            control.should_save = control.should_training_stop = True


def restore_counters(trainer: Trainer, checkpoint: Path) -> None:
    """Give the trainer back what TRL counts."""
    vars(trainer)[TRAIN_TOKENS] = read_json(checkpoint / COMPLETE_FILE)["train_tokens"]


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder`` whose save was not interrupted and whose weights are whole.

    What is not whole goes: saved over, it would keep an old mark beside files that are new and half there.

    Raises:
        UserError: it was saved by another number of processes.
    """
    newest = processes.broadcast(_newest_whole(folder) if processes.is_main() else None)
    if newest is not None:
        saved_by = read_json(newest / COMPLETE_FILE)["processes"]
        if saved_by != processes.world_size():
            raise UserError(
                f"distributed.processes: {newest} was saved by {saved_by} processes, this run has "
                f"{processes.world_size()}; "
                f"start {saved_by}, or delete {folder} to train the stage from its beginning"
            )
    return newest


def _newest_whole(folder: Path) -> Path | None:
    whole = []
    for path in folder.glob("checkpoint-*"):
        if is_complete(path) and all(is_whole(file) for file in path.glob("*.safetensors")):
            whole.append(path)
        else:
            log.info("%s is not whole and is left out", path.name)
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
