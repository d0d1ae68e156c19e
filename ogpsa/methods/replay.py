"""Replay: general rows mixed into the safety rows (the paper's "general data" row).

They are drawn by the run's seed from the reference sets, afresh for each stage, in SFT and DPO without repetition.
OGPSA takes its references from the same sets, so that both see the same general data; within a replay run nothing else
reads them. Two stages that name one set may draw the same row, and two sets may hold the same prompt (on the testbed
all prompts of ``preference`` are in ``helpfulness`` or ``truthfulness`` as well). The testbed's evaluation rows are in
none of them.

The paper does not publish the ratio; its general data is UltraFeedback (appendix).

In GRPO, where no answers are trained on, the cross-entropy of general rows is added to each step's loss, as PPO-ptx
does (arXiv 2203.02155).
"""

import random
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ogpsa.config import ExtraMemory, GRPOSettings, Method, SetUse, StageName, mixed_in, set_name_problems, stage_value

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

    from ogpsa.config import Config

Ratio = Annotated[float, Field(ge=0)]
SetNames = Annotated[list[str], Field(min_length=1)]


class Replay(Method):
    """Each key is one value for all stages, or a mapping by stage."""

    ratio: Ratio | dict[StageName, Ratio]
    general_sets: SetNames | dict[StageName, SetNames]
    weight: float = Field(ge=0)

    def problems(self, config: "Config") -> list[str]:
        problems = []
        for stage in config.stages:
            names, ratio = stage_value(self.general_sets, stage.name), stage_value(self.ratio, stage.name)
            problems += set_name_problems("method.general_sets", names, stage.name, config)
            if isinstance(stage, GRPOSettings):
                prompts = stage.batch_size // stage.num_generations
                if ratio and not round(ratio * prompts):
                    problems.append(
                        f"method.ratio: {ratio:g} of the {prompts} prompts of a step in grpo are no row; allowed: 0, "
                        f"or more than {0.5 / prompts:g}"
                    )
        return problems

    def set_uses(self, stage: StageName, safety_rows: int) -> list[SetUse]:
        sets, ratio = stage_value(self.general_sets, stage), stage_value(self.ratio, stage)
        if stage == "grpo":
            # Its steps take the sets' rows in turn, as often as they need them.
            return [SetUse(name, min(1, ceil(ratio)), "ratio") for name in sets]
        return mixed_in(sets, ratio * safety_rows, "ratio")

    def attach(self, trainer: "Trainer", stage: StageName, seed: int) -> None:
        if stage == "grpo":
            from ogpsa.training.callbacks import StepCallback

            replayed = ReplayedAnswers(trainer, self.weight, stage_value(self.ratio, stage), seed)
            trainer.add_callback(StepCallback(on_step_begin=replayed.add))

    def memory(self, model: "PreTrainedModel", stage: StageName) -> ExtraMemory:
        return ExtraMemory(answers_first=stage == "grpo" and stage_value(self.ratio, stage) > 0)

    def training_key(self, stage: StageName) -> dict[str, Any]:
        # The rows that are trained on are part of every key, and so are the sets that they are drawn from in GRPO.
        return {"ratio": stage_value(self.ratio, stage), "weight": self.weight} if stage == "grpo" else {}


class ReplayedAnswers:
    """Adds ``weight`` times the mean cross-entropy of the next general rows to each step's loss.

    The rows follow from the step alone: ``ratio`` for each prompt, in an order drawn once by ``seed``.
    """

    def __init__(self, trainer: "Trainer", weight: float, ratio: float, seed: int) -> None:
        sets: Any = trainer.eval_dataset or {}
        self._rows = [row for name in sorted(sets) for row in sets[name]]
        random.Random(f"{seed} replay").shuffle(self._rows)
        settings: Any = trainer.args
        completions = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * settings.world_size
        self._count = round(ratio * completions / settings.num_generations) if self._rows else 0
        self._trainer = trainer
        self._weight = weight

    def add(self, **event: Any) -> None:
        """Compute, before a step, the gradients to which the rollouts' own are added."""
        import torch

        from ogpsa.training.answers import IGNORED, answer_batch, answer_step

        trainer: Any = self._trainer
        count, size = self._count, trainer.args.per_device_train_batch_size
        first = trainer.state.global_step * count
        rows = [self._rows[(first + position) % len(self._rows)] for position in range(count)] if count else []
        labels = answer_batch(trainer.processing_class, rows)["labels"] if rows else torch.zeros(0)
        items = (labels != IGNORED).sum() / self._weight if self._weight else torch.tensor(torch.inf)
        mine = rows[trainer.args.process_index :: trainer.args.world_size]
        # All take part in each backward pass: a process without rows passes one whose labels are all ignored.
        most = -(-count // trainer.args.world_size)
        for start in range(0, most, size):
            batch = answer_batch(trainer.processing_class, mine[start : start + size] or rows[:1])
            if start >= len(mine):
                batch["labels"].fill_(IGNORED)
            answer_step(trainer, trainer.model_wrapped, batch, items.to(trainer.args.device))


METHOD = Replay
