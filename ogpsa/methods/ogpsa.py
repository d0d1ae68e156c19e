"""OGPSA: remove from every safety gradient its part in the capability subspace.

Paper: arXiv 2602.07892. The formula is ``ogpsa/projection.py``; ``ogpsa/training/seam.py`` is its place in a step.
"""

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from ogpsa.config import Method, SetUse, SFTSettings, StageName, sample_problems, set_name_problems, stage_value
from ogpsa.subspace.settings import (
    MAX_RANK,
    BasisDevice,
    BasisDtype,
    ProjectionSettings,
    Scope,
    Selection,
    Sided,
    Target,
)

if TYPE_CHECKING:
    from transformers import Trainer

    from ogpsa.config import Config

Rank = Annotated[int, Field(ge=0, le=MAX_RANK)] | Literal["per_set"]


def _percent(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?%", value):
        return value
    raise PydanticCustomError("share", "a share of the training's rows such as '10%'")


RefreshEvery = Annotated[int, Field(ge=1)] | Literal["never"] | Annotated[str, PlainValidator(_percent)]
Samples = Annotated[int, Field(ge=1)]
SetNames = Annotated[list[str], Field(min_length=1)]


class Ogpsa(Method):
    """Each key is one value for all stages, or a mapping by stage; ``ProjectionSettings`` says what they mean."""

    rank: Rank | dict[StageName, Rank]
    refresh_every: RefreshEvery | dict[StageName, RefreshEvery]
    samples: Samples | dict[StageName, Samples]
    reference_sets: SetNames | dict[StageName, SetNames]
    selection: Selection | dict[StageName, Selection]
    scope: Scope | dict[StageName, Scope]
    sided: Sided | dict[StageName, Sided]
    target: Target | dict[StageName, Target]
    streaming: bool | dict[StageName, bool]
    basis_dtype: BasisDtype | dict[StageName, BasisDtype]
    basis_device: BasisDevice | dict[StageName, BasisDevice]

    def problems(self, config: "Config") -> list[str]:
        problems = []
        for stage in config.stages:
            wanted = self.projection(stage.name)
            problems += set_name_problems("method.reference_sets", wanted.reference_sets, stage.name, config)
            problems += [f"method.{problem} (in {stage.name})" for problem in wanted.problems()]
            if stage.name == "grpo" and wanted.selection == "conflict":
                problems.append(
                    "method.selection: conflict compares with answers of the safety set, which grpo does not read; "
                    "allowed: random"
                )
            if wanted.share is not None and isinstance(stage, SFTSettings) and stage.packing is not None:
                share = stage_value(self.refresh_every, stage.name)
                problems.append(
                    f"method.refresh_every: {share} is a share of rows, of which a pack holds several "
                    f"({config.stage_key('sft')}.packing={stage.packing}); give a number of steps"
                )
            if wanted.selection == "conflict" and isinstance(stage, SFTSettings) and stage.packing is not None:
                problems.append(
                    "method.selection: conflict compares with the gradient of some safety rows, of which a pack holds "
                    f"several ({config.stage_key('sft')}.packing={stage.packing}); allowed: random"
                )
            problems += sample_problems(wanted.samples, config, f" for {stage.name}")
        return list(dict.fromkeys(problems))

    def set_uses(self, stage: StageName, safety_rows: int) -> list[SetUse]:
        projection = self.projection(stage)
        return [SetUse(name, projection.samples, "samples") for name in projection.reference_sets]

    def projection(self, stage: StageName) -> ProjectionSettings:
        sets = tuple(stage_value(self.reference_sets, stage))
        rank: int | Literal["per_set"] = stage_value(self.rank, stage)
        refresh_every: RefreshEvery = stage_value(self.refresh_every, stage)
        return ProjectionSettings(
            reference_sets=sets,
            rank=len(sets) if rank == "per_set" else rank,
            samples=stage_value(self.samples, stage),
            refresh_every=refresh_every if isinstance(refresh_every, int) else None,
            share=float(refresh_every[:-1]) / 100
            if isinstance(refresh_every, str) and refresh_every != "never"
            else None,
            selection=stage_value(self.selection, stage),
            scope=stage_value(self.scope, stage),
            sided=stage_value(self.sided, stage),
            target=stage_value(self.target, stage),
            streaming=stage_value(self.streaming, stage),
            basis_dtype=stage_value(self.basis_dtype, stage),
            basis_device=stage_value(self.basis_device, stage),
        )

    def attach(self, trainer: "Trainer", stage: StageName, seed: int) -> None:
        from ogpsa.training.seam import protect

        protect(trainer, self.projection(stage), seed)

    def training_key(self, stage: StageName) -> dict[str, Any]:
        return {"projection": asdict(self.projection(stage))}


METHOD = Ogpsa
