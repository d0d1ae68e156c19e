"""Replay: general rows are trained on among the safety rows (the paper's "general data" row).

They are drawn by the run's seed, anew for each stage and without repetition within it, from the reference sets. What
is shared: OGPSA takes its references from the same sets, so that both see the same general data; within a replay run
nothing else reads them. Two stages that name one set may draw the same row, and two sets may hold the same prompt (on
the testbed all prompts of ``preference`` are in ``helpfulness`` or ``truthfulness`` as well). The testbed's evaluation
rows are in none of them.

The paper does not publish the ratio; its general data is UltraFeedback (appendix).
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ogpsa.config import MethodSettings, SetUse, StageName, set_name_problems, value_for_stage
from ogpsa.methods.ogpsa import PAPER_REFERENCE_SETS, SetNames

if TYPE_CHECKING:
    from ogpsa.config import Config

# Not published. Of 0.05, 0.1, 0.2 and 0.3, the one with the most utility at naive tuning's safety on the testbed
# (experiments/rivals); with its own sets the testbed allows 0.64 in SFT and 0.32 in DPO.
DEFAULT_RATIO = 0.3

Ratio = Annotated[float, Field(ge=0)]


class Settings(MethodSettings):
    """Each key of its own is one value for all stages, a mapping by stage, or null for the default."""

    name: Literal["replay"]
    ratio: Ratio | dict[StageName, Ratio | None] | None
    general_sets: SetNames | dict[StageName, SetNames | None] | None

    def set_uses(self, stage: StageName, safety_rows: int) -> list[SetUse]:
        sets = self._sets(stage)
        wanted = round(value_for_stage(self.ratio, stage, DEFAULT_RATIO) * safety_rows)
        even, more = divmod(wanted, len(sets))
        return [SetUse(name, even + (position < more), "ratio", trained_on=True) for position, name in enumerate(sets)]

    def check(self, config: "Config") -> list[str]:
        return [
            problem
            for stage in config.stages
            for problem in set_name_problems("general_sets", self._sets(stage.name), stage.name, config)
        ]

    def _sets(self, stage: StageName) -> list[str]:
        return value_for_stage(self.general_sets, stage, list(PAPER_REFERENCE_SETS[stage]))
