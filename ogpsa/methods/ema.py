"""EMA: train as the baseline and end with an exponential moving average of the weights.

Averaging in parameter space for safety: arXiv 2508.12531. Here the optimizer trains as in the baseline, and
``average ← decay · average + (1 - decay) · w`` follows each of its steps, from the stage's starting weights on.
Replacing the weights by the average at each step would only shorten the step to ``1 - decay`` of the optimizer's.
What is measured while a stage trains is measured of the optimizer's weights.
"""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ogpsa.config import ExtraMemory, Method, StageName, mode_problems, stage_value

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel, Trainer, TrainerState, TrainingArguments

    from ogpsa.config import Config

# Stem of the checkpoint's file, or of each process's, that holds the average.
STEM = "average"
Decay = Annotated[float, Field(ge=0, lt=1)]


class Ema(Method):
    """``decay`` is one value, or a mapping by stage."""

    decay: Decay | dict[StageName, Decay]

    def problems(self, config: "Config") -> list[str]:
        problems = mode_problems(config, "since DeepSpeed keeps the weights that it updates to itself")
        problems += [
            f"{config.stage_key(stage.name)}.keep: best takes one step's weights, and method=ema an average of all; "
            "allowed: last"
            for stage in config.stages
            if stage.keep == "best"
        ]
        return problems

    def attach(self, trainer: "Trainer", stage: StageName, seed: int) -> None:
        from ogpsa.training.callbacks import StepCallback

        average = Average(stage_value(self.decay, stage))
        trainer.add_callback(
            StepCallback(
                on_train_begin=average.begin,
                on_optimizer_step=average.update,
                on_save=average.save,
                on_train_end=average.take,
            )
        )

    def memory(self, model: "PreTrainedModel", stage: StageName) -> ExtraMemory:
        # The average in fp32.
        return ExtraMemory(bytes_per_weight=4)


class Average:
    """The average of the trained weights, saved in each checkpoint, which replaces them at the end.

    For one process, DDP and FSDP2, where each process averages its shards.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._average: list[Tensor] = []

    def begin(self, model: "Module", args: "TrainingArguments", state: "TrainerState", **event: object) -> None:
        """Start from the weights, or from the average in the checkpoint that the trainer resumed from."""
        from ogpsa.subspace.shards import ParameterShards, read_part
        from ogpsa.training.seam import checkpoint_folder

        self._shards = ParameterShards(model)
        self._average = [weight.clone() for weight in self._shards.weights()]
        if state.global_step:
            kept = read_part(checkpoint_folder(args, state), STEM, self._shards)
            for index, average in enumerate(self._average):
                average.copy_(kept[str(index)])

    def update(self, **event: object) -> None:
        """Move the average ``1 - decay`` of the way to the weights."""
        for average, weight in zip(self._average, self._shards.weights(), strict=True):
            average.lerp_(weight, 1 - self._decay)

    def save(self, args: "TrainingArguments", state: "TrainerState", **event: object) -> None:
        """Write the average into the checkpoint; every process calls it."""
        from safetensors.torch import save_file

        from ogpsa.subspace.shards import file_of
        from ogpsa.training.seam import checkpoint_folder

        if self._shards.sharded or args.process_index == 0:
            file = file_of(checkpoint_folder(args, state), STEM, self._shards)
            save_file({str(index): average for index, average in enumerate(self._average)}, file)

    def take(self, **event: object) -> None:
        """Replace the weights by the average."""
        for weight, average in zip(self._shards.weights(), self._average, strict=True):
            weight.copy_(average)


METHOD = Ema
