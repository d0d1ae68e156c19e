"""Replay: general rows are trained on among the safety rows (the paper's "general data" row).

They are drawn by the run's seed, afresh for each stage and without repetition within it, from the reference sets. OGPSA
takes its references from the same sets, so that both see the same general data; within a replay run nothing else reads
them. Two stages that name one set may draw the same row, and two sets may hold the same prompt (on the testbed all
prompts of ``preference`` are in ``helpfulness`` or ``truthfulness`` as well). The testbed's evaluation rows are in none
of them.

The paper does not publish the ratio; its general data is UltraFeedback (appendix).
"""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ogpsa.config import Method, SetUse, StageName, mixed_in, set_name_problems, stage_value

if TYPE_CHECKING:
    from ogpsa.config import Config

Ratio = Annotated[float, Field(ge=0)]
SetNames = Annotated[list[str], Field(min_length=1)]


class Replay(Method):
    """Each key is one value for all stages, or a mapping by stage."""

    ratio: Ratio | dict[StageName, Ratio]
    general_sets: SetNames | dict[StageName, SetNames]

    def problems(self, config: "Config") -> list[str]:
        return [
            problem
            for stage in config.stages
            for problem in set_name_problems(
                "general_sets", stage_value(self.general_sets, stage.name), stage.name, config
            )
        ]

    def set_uses(self, stage: StageName, safety_rows: int) -> list[SetUse]:
        return mixed_in(stage_value(self.general_sets, stage), stage_value(self.ratio, stage) * safety_rows, "ratio")

    def training_key(self, stage: StageName) -> dict[str, Any]:
        # The rows that are trained on are part of every key.
        return {}


METHOD = Replay
