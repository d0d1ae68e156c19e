"""OGPSA whose reference rows are chosen by gradient conflict instead of drawn (``ogpsa/subspace/selection.py``)."""

from dataclasses import replace
from typing import Literal

from ogpsa.config import StageName, value_for_stage
from ogpsa.methods import ogpsa
from ogpsa.subspace.settings import ProjectionSettings, Selection


class Settings(ogpsa.Settings):
    name: Literal["ogpsa_selected"]  # type: ignore[assignment]
    selection: Selection | dict[StageName, Selection | None] | None

    def projection(self, stage: StageName) -> ProjectionSettings:
        return replace(super().projection(stage), selection=value_for_stage(self.selection, stage, "conflict"))
