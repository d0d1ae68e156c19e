"""Callbacks of a stage's trainer: its numbers to log and tracker, and a method's functions at each event."""

import logging
import math
import sys
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ogpsa.distributed import processes
from ogpsa.runs.tracking import Tracker, held_out_losses, training_values
from ogpsa.utils.errors import UserError
from ogpsa.utils.progress import Progress

# Of a step, in the log.
SHOWN = ("loss", "reward", "grad_norm", "learning_rate")
step_log = logging.getLogger("ogpsa.steps")


def _nothing(**event: Any) -> None:
    """The default: nothing to do at this event."""


class StepCallback(TrainerCallback):
    """Plain functions as a callback, so that a method's file needs no class of transformers'.

    Each is called at one of the trainer's events, with what that gives by name: ``model``, ``optimizer``, …, and at
    ``on_train_begin`` and ``on_save`` also with ``args`` and ``state``.

    Args:
        on_train_begin: model and optimizer are wrapped; a checkpoint has been loaded.
        on_step_begin: no gradient is in flight.
        on_pre_optimizer_step: gradients are clipped; DeepSpeed has stepped already.
        on_optimizer_step: the optimizer has stepped, nothing has been saved.
        on_save: a checkpoint has been written, and is not yet called whole.
        on_train_end: the last step is taken and saved.
    """

    def __init__(
        self,
        on_train_begin: Callable[..., None] = _nothing,
        on_step_begin: Callable[..., None] = _nothing,
        on_pre_optimizer_step: Callable[..., None] = _nothing,
        on_optimizer_step: Callable[..., None] = _nothing,
        on_save: Callable[..., None] = _nothing,
        on_train_end: Callable[..., None] = _nothing,
    ) -> None:
        self._on_train_begin = on_train_begin
        self._on_step_begin = on_step_begin
        self._on_pre_optimizer_step = on_pre_optimizer_step
        self._on_optimizer_step = on_optimizer_step
        self._on_save = on_save
        self._on_train_end = on_train_end

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **event: Any) -> None:
        self._on_train_begin(args=args, state=state, **event)

    def on_step_begin(self, *_: Any, **event: Any) -> None:
        self._on_step_begin(**event)

    def on_pre_optimizer_step(self, *_: Any, **event: Any) -> None:
        self._on_pre_optimizer_step(**event)

    def on_optimizer_step(self, *_: Any, **event: Any) -> None:
        self._on_optimizer_step(**event)

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **event: Any) -> None:
        self._on_save(args=args, state=state, **event)

    def on_train_end(self, *_: Any, **event: Any) -> None:
        self._on_train_end(**event)


class ReportCallback(TrainerCallback):
    """Training's numbers to the log and the tracker; on a terminal a bar shows them instead of lines."""

    def __init__(self, stage: str, tracker: Tracker) -> None:
        self._stage = stage
        self._tracker = tracker
        self._progress = Progress(1, stage)
        self._latest = ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **event: Any) -> None:
        self._progress = Progress(state.max_steps, self._stage, start=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        if processes.is_main() and sys.stderr.isatty():
            self._progress.show(state.global_step, self._latest)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        found = held_out_losses(event["metrics"])
        shown = ", ".join(f"{name} {loss:.4g}" for name, loss in found.items())
        step_log.info("%s %d/%d: held-out loss: %s", self._stage, state.global_step, state.max_steps, shown)
        numbers = {f"held_out/{name}": loss for name, loss in found.items()}
        self._tracker.log(training_values(self._stage, state.global_step, numbers))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        logs: dict[str, float] = event["logs"]
        if "loss" not in logs:
            return
        # None is the mean of a metric that no row had.
        found = {name: value for name, value in logs.items() if value is not None}
        wrong = [f"{name} is {value}" for name, value in found.items() if not math.isfinite(value)]
        if wrong:
            at = f"{self._stage}: {', '.join(wrong)} at step {state.global_step}"
            remedy = "lower the learning rate, or train in fp32"
            if all(name.startswith("reward") for name in wrong):
                remedy = "a reward is a finite number, or None where there is none"
            raise UserError(f"{at}; {remedy}")
        shown = ", ".join(f"{key} {logs[key]:.4g}" for key in SHOWN if logs.get(key) is not None)
        self._latest = f", {shown}"
        left = self._progress.time_left(state.global_step)
        step_log.info("%s %d/%d: %s, %s", self._stage, state.global_step, state.max_steps, shown, left)
        self._tracker.log(training_values(self._stage, state.global_step, logs))
