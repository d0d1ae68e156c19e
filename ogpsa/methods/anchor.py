"""Anchor: train as the baseline, each step followed by a pull towards the stage's starting weights (ours).

L2-SP (Li et al. 2018, arXiv 1802.01483), decoupled from the gradient as AdamW's weight decay is:
``w ← w - lr · λ · (w - w_start)``, with lr the learning rate of the step just taken.
"""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ogpsa.config import ExtraMemory, Method, StageName, mode_problems, stage_value

if TYPE_CHECKING:
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer
    from transformers import PreTrainedModel, Trainer

    from ogpsa.config import Config

Strength = Annotated[float, Field(ge=0)]


class Anchor(Method):
    """``strength`` (λ) is one value, or a mapping by stage."""

    strength: Strength | dict[StageName, Strength]

    def problems(self, config: "Config") -> list[str]:
        problems = mode_problems(config, "since DeepSpeed keeps the weights that it updates to itself")
        for stage in config.stages:
            strength = stage_value(self.strength, stage.name)
            if strength * stage.learning_rate > 1:
                problems.append(
                    f"method.strength: {strength:g} pulls past the starting weights of {stage.name}, whose "
                    f"{config.stage_key(stage.name)}.learning_rate is {stage.learning_rate:g}; allowed: 0 to "
                    f"{1 / stage.learning_rate:g}"
                )
        return problems

    def attach(self, trainer: "Trainer", stage: StageName, seed: int) -> None:
        from ogpsa.training.callbacks import StepCallback

        pull = Pull(trainer.model, stage_value(self.strength, stage))
        trainer.add_callback(StepCallback(on_train_begin=pull.begin, on_optimizer_step=pull.apply))

    def memory(self, model: "PreTrainedModel", stage: StageName) -> ExtraMemory:
        # A copy of the starting weights in fp32.
        return ExtraMemory(bytes_per_weight=4)


class Pull:
    """Pulls with ``strength`` (λ) towards the weights that ``model`` has now, before a checkpoint is loaded into it.

    For one process, DDP and FSDP2. Keeps one copy of the trained weights, sharded as they are.
    """

    def __init__(self, model: Any, strength: float) -> None:
        self._strength = strength
        self._start = [weight.detach().clone() for weight in _trained(model)]

    def begin(self, model: "Module", **event: Any) -> None:
        """Shard the copy as the weights are sharded now."""
        from ogpsa.subspace.shards import ParameterShards, shard_like

        self._weights = ParameterShards(model).weights
        self._start = [shard_like(weight, start) for weight, start in zip(_trained(model), self._start, strict=True)]

    def apply(self, optimizer: "Optimizer", **event: Any) -> None:
        """Move the weights ``lr · λ`` of the way back."""
        rate = optimizer.param_groups[0]["lr"]
        for weight, start in zip(self._weights(), self._start, strict=True):
            weight.lerp_(start, rate * self._strength)


def _trained(model: "Module") -> list["Parameter"]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


METHOD = Anchor
