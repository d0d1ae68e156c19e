"""Anchor: train as the baseline, each step followed by a pull towards the stage's starting weights (ours).

L2-SP (Li et al. 2018, arXiv 1802.01483) with a decoupled pull: ``ogpsa/training/anchoring.py``.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ogpsa.config import MethodSettings, StageName, value_for_stage

if TYPE_CHECKING:
    from ogpsa.config import Config

# About one over the learning rates summed over the testbed's steps; to be calibrated.
DEFAULT_STRENGTH: dict[StageName, float] = {"sft": 20.0, "dpo": 1000.0}

Strength = Annotated[float, Field(ge=0)]


class AnchorKeys(MethodSettings):
    """What a method with an anchor adds: one value, a mapping by stage, or null for the default."""

    strength: Strength | dict[StageName, Strength | None] | None

    def anchor_strength(self, stage: StageName) -> float:
        return value_for_stage(self.strength, stage, DEFAULT_STRENGTH[stage])

    def check(self, config: "Config") -> list[str]:
        problems = []
        if config.distributed.name in ("zero2", "zero3"):
            problems.append(
                f"distributed: {config.distributed.name} is not supported with method={config.method.name}, since "
                "DeepSpeed keeps the weights that it updates to itself; allowed: single, ddp, fsdp2"
            )
        for stage in config.stages:
            strength = self.anchor_strength(stage.name)
            if strength * stage.learning_rate > 1:
                problems.append(
                    f"method.strength: {strength:g} pulls past the starting weights of {stage.name}, whose "
                    f"{config.stage_key(stage.name)}.learning_rate is {stage.learning_rate:g}; allowed: 0 to "
                    f"{1 / stage.learning_rate:g}"
                )
        return problems


class Settings(AnchorKeys):
    name: Literal["anchor"]
