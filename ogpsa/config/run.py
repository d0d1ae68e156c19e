"""One run, completely."""

from typing import Any, Literal

from pydantic import Field, SerializeAsAny

from ogpsa.config.data import Data, TestbedData
from ogpsa.config.distributed import Distributed
from ogpsa.config.eval import Evaluation
from ogpsa.config.identity import identity_key, identity_name, identity_of
from ogpsa.config.method import Method
from ogpsa.config.model import BaseTraining, Model
from ogpsa.config.reward import Reward
from ogpsa.config.section import PathText, Section
from ogpsa.config.stage import GRPOSettings, OneStage, Stage, StageName, stages_of
from ogpsa.config.tracker import Tracker
from ogpsa.utils.errors import UserError


class Config(Section):
    """The whole configuration of one run, which ``key()`` identifies."""

    seed: int = Field(ge=0, lt=2**32)
    model: Model
    stage: Stage
    method: SerializeAsAny[Method]
    # Only GRPO has one.
    reward: SerializeAsAny[Reward] | None = None
    data: Data
    eval: Evaluation
    distributed: Distributed
    tracker: Tracker
    cache_dir: PathText
    stage_store: PathText | None
    lock_wait: int = Field(default=0, ge=0)
    accept_changed: list[Literal["code", "libraries"]] = Field(default_factory=list)
    preflight: bool

    @property
    def stages(self) -> list[OneStage]:
        """The stages in the order in which they run."""
        return stages_of(self.stage)

    @property
    def plugins(self) -> list[Method | Reward]:
        """Sections with code of their own: the method, and the reward where a stage has one."""
        return [self.method, *([self.reward] if self.reward is not None and self.rolls_out else [])]

    @property
    def rolls_out(self) -> bool:
        """Whether a stage learns from the model's own completions."""
        return any(isinstance(stage, GRPOSettings) for stage in self.stages)

    def stage_key(self, name: StageName) -> str:
        """The key of one stage's settings: ``stage``, or ``stage.dpo`` in a pipeline of several."""
        return "stage" if self.stage.name == name else f"stage.{name}"

    def testbed_base(self) -> tuple[TestbedData, BaseTraining]:
        """The world and the recipe of the base that ``model.path: null`` stands for.

        Raises:
            UserError: the data are not the testbed's.
        """
        if not isinstance(self.data, TestbedData) or self.model.base is None:
            raise UserError(f"model.path: null is the base of data=testbed, but data={self.data.name}; give a path")
        return self.data, self.model.base

    def identity(self) -> dict[str, Any]:
        """The configuration without what cannot change a result."""
        return identity_of(self.model_dump(mode="json"))

    def key(self) -> str:
        """Twelve hexadecimal digits that name this configuration."""
        return identity_key(self.identity())

    def run_name(self) -> str:
        """The default run directory's name: ``<model>-<stage>-<method>-seed<n>-<hash>``."""
        return identity_name(self.identity())
