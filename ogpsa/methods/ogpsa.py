"""OGPSA: remove from every safety gradient its part in the capability subspace.

Paper: arXiv 2602.07892; the projection itself is ``ogpsa/projection.py``.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ogpsa.config import MethodSettings, StageName, set_name_problems, value_for_stage
from ogpsa.subspace.settings import MAX_RANK, BasisDevice, BasisDtype, ProjectionSettings, Scope, Sided, Target

if TYPE_CHECKING:
    from ogpsa.config import Config, DPOSettings, SFTSettings

# The paper's settings per stage (appendix and the authors' README).
PAPER_REFRESH_EVERY: dict[StageName, int] = {"sft": 30, "dpo": 5}
PAPER_REFERENCE_SETS: dict[StageName, tuple[str, ...]] = {
    "sft": ("helpfulness", "truthfulness"),
    "dpo": ("preference",),
}
PAPER_SAMPLES = 200

Rank = Annotated[int, Field(ge=0, le=MAX_RANK)]
Samples = Annotated[int, Field(ge=1)]
RefreshEvery = Annotated[int, Field(ge=1)] | Literal["never"]
SetNames = Annotated[list[str], Field(min_length=1)]


class Settings(MethodSettings):
    """Every key but the first two is one value for all stages, a mapping by stage, or null for the paper's."""

    name: Literal["ogpsa"]
    rank: Rank | dict[StageName, Rank | None] | None
    refresh_every: RefreshEvery | dict[StageName, RefreshEvery | None] | None
    samples: Samples | dict[StageName, Samples | None] | None
    reference_sets: SetNames | dict[StageName, SetNames | None] | None
    scope: Scope | dict[StageName, Scope | None] | None
    sided: Sided | dict[StageName, Sided | None] | None
    target: Target | dict[StageName, Target | None] | None
    streaming: bool | dict[StageName, bool | None] | None
    basis_dtype: BasisDtype | dict[StageName, BasisDtype | None] | None
    basis_device: BasisDevice | dict[StageName, BasisDevice | None] | None

    def projection(self, stage: StageName) -> ProjectionSettings:
        sets = tuple(value_for_stage(self.reference_sets, stage, list(PAPER_REFERENCE_SETS[stage])))
        refresh_every: int | Literal["never"]
        refresh_every = value_for_stage(self.refresh_every, stage, PAPER_REFRESH_EVERY[stage])
        return ProjectionSettings(
            reference_sets=sets,
            rank=value_for_stage(self.rank, stage, len(sets)),
            samples=value_for_stage(self.samples, stage, PAPER_SAMPLES),
            refresh_every=None if refresh_every == "never" else refresh_every,
            scope=value_for_stage(self.scope, stage, "global"),
            sided=value_for_stage(self.sided, stage, "two"),
            target=value_for_stage(self.target, stage, "gradient"),
            streaming=value_for_stage(self.streaming, stage, False),
            basis_dtype=value_for_stage(self.basis_dtype, stage, "auto"),
            basis_device=value_for_stage(self.basis_device, stage, "device"),
        )

    def check(self, config: "Config") -> list[str]:
        problems = []
        for stage in config.stages:
            wanted = self.projection(stage.name)
            problems += set_name_problems("reference_sets", wanted.reference_sets, stage.name, config)
            problems += [f"{problem} (in {stage.name})" for problem in wanted.problems()]
            problems += _unsupported(wanted, config, stage)
            if config.data.name == "testbed" and wanted.samples > config.data.reference_rows:
                problems.append(
                    f"method.samples: {wanted.samples} rows wanted for {stage.name}, but each testbed set holds "
                    f"data.reference_rows={config.data.reference_rows}; lower the one or raise the other"
                )
        return list(dict.fromkeys(problems))


def _unsupported(wanted: ProjectionSettings, config: "Config", stage: "SFTSettings | DPOSettings") -> list[str]:
    """Combinations that cannot do what they say, one line each."""
    problems = []
    if wanted.target == "gradient+momentum" and config.distributed.name in ("zero2", "zero3"):
        problems.append(
            f"method.target: 'gradient+momentum' is not supported with distributed={config.distributed.name}, which "
            "keeps the first moments to itself; allowed: gradient, update, or distributed=fsdp2"
        )
    elif wanted.target == "gradient+momentum" and stage.optimizer != "adamw":
        problems.append(
            f"method.target: 'gradient+momentum' needs a first moment in full precision, but "
            f"{config.stage_key(stage.name)}.optimizer is {stage.optimizer}; allowed: gradient, update"
        )
    return problems
