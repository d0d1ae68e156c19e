"""Any transformers or TRL trainer with the projection between backward and optimizer step.

The seam is the public ``training_step``: after the last micro-batch the gradients are accumulated, reduced over the
processes and not yet clipped. DeepSpeed steps inside backward, so there the engine's wrapper is the seam. A refresh
runs before a step, where no gradient is in flight.
"""

from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOTrainer, RLOOTrainer

from ogpsa.subspace.projector import DrawnRows, Projector, check_trained
from ogpsa.subspace.settings import ProjectionSettings
from ogpsa.subspace.shards import ParameterShards
from ogpsa.training.answers import answer_batch, answer_step
from ogpsa.utils.errors import SettingError, UserError


class ProjectedTrainer(Trainer):
    """Mixed in before a trainer's own class by ``protect``; ``projector`` is built when training begins."""

    model: PreTrainedModel
    projector: Projector
    resumed_from: Path | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; from a checkpoint the subspace is restored as well."""
        last = resume_from_checkpoint is True
        found = get_last_checkpoint(str(self.args.output_dir)) if last else resume_from_checkpoint
        self.resumed_from = Path(str(found)) if found else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients and not self.is_deepspeed_enabled:
            self.projector.project()
        return loss

    def reference_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor:
        """Backward of the loss on reference rows: the trainer's own training step, without the projection."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs | self.projector.recorder.means() if "loss" in logs else logs, start_time)


class ProjectedPolicyTrainer(ProjectedTrainer):
    """A trainer on rollouts: reference gradients are cross-entropy on reference answers.

    Its own training step would roll out the reference rows, and serve them to the next step as its own.
    """

    def reference_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor:
        return answer_step(self, model, inputs, num_items_in_batch)


def protect(trainer: Trainer, settings: ProjectionSettings, seed: int = 0) -> ProjectedTrainer:
    """Add the projection to a finished trainer, in place; its own class stays in charge of all else.

    Args:
        trainer: any ``transformers.Trainer``, a subclass or not, whose ``eval_dataset`` is a dict with the reference
            sets. The trainer thereby prepares them as it does its training rows; TRL's DPO trainer also computes their
            reference-policy log-probabilities. Of TRL's GRPO and RLOO trainers they hold ``prompt`` and ``completion``
            as messages, whose cross-entropy is taken.
        seed: draws ``settings.samples`` rows of each set, once.

    Raises:
        UserError: the settings contradict each other, the trainer projects already or trains weights that are not
            fp32, or a reference set is missing or too small.
    """
    if isinstance(trainer, ProjectedTrainer):
        raise UserError("protect: this trainer projects already; build a new one for other settings")
    if problems := settings.problems():
        raise SettingError(*problems)
    kind, added, loader = type(trainer), ProjectedTrainer, trainer.get_eval_dataloader
    if issubclass(kind, GRPOTrainer | RLOOTrainer):
        if settings.selection == "conflict":
            raise SettingError("selection: conflict needs answers to train on to compare with, and rollouts have none")
        added, loader = (
            ProjectedPolicyTrainer,
            partial(_answers, cast(PreTrainedTokenizerBase, trainer.processing_class)),
        )
    model: Any = trainer.model
    check_trained(trainer, ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad))
    rows = DrawnRows.draw(trainer, settings, seed, loader)
    trainer.__class__ = type(f"Projected{kind.__name__}", (added, kind), {})
    projected = cast(ProjectedTrainer, trainer)
    projected.add_callback(_ProjectionCallback(projected, settings, rows))
    return projected


def _answers(tokenizer: PreTrainedTokenizerBase, rows: Any) -> DataLoader[Any]:
    return DataLoader(rows, collate_fn=partial(answer_batch, tokenizer))


class _ProjectionCallback(TrainerCallback):
    """Builds the projector, and calls it at the moments between the trainer's own steps."""

    def __init__(self, trainer: ProjectedTrainer, settings: ProjectionSettings, rows: DrawnRows) -> None:
        self._trainer = trainer
        self._settings = settings
        self._rows = rows

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        trainer = self._trainer
        if not trainer.is_deepspeed_enabled:
            shards = ParameterShards(trainer.model)
            trainer.projector = Projector(trainer, self._settings, self._rows, shards, trainer.resumed_from)
            return
        from ogpsa.distributed.deepspeed import SteppedEngine, ZeroShards

        engine = trainer.accelerator.deepspeed_engine_wrapped.engine
        pieces = ZeroShards(engine)

        def before_engine_steps() -> None:
            trainer.projector.project()
            trainer.projector.before_step()

        # First, since building the projector may take reference passes.
        trainer.accelerator.deepspeed_engine_wrapped = SteppedEngine(
            engine, pieces, before_engine_steps, lambda: trainer.projector.after_step()
        )
        trainer.projector = Projector(trainer, self._settings, self._rows, pieces, trainer.resumed_from)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._trainer.projector.refresh_if_due()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        # DeepSpeed has stepped by now.
        if not self._trainer.is_deepspeed_enabled:
            self._trainer.projector.before_step()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        if not self._trainer.is_deepspeed_enabled:
            self._trainer.projector.after_step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._trainer.projector.save(checkpoint_folder(args, state))


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder that the trainer saves to at this step."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
