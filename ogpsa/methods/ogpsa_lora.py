"""OGPSA over LoRA adapters: the capability subspace is that of the adapters' own parameters."""

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from ogpsa.config import StageName
from ogpsa.methods import lora, ogpsa
from ogpsa.subspace.settings import ProjectionSettings

if TYPE_CHECKING:
    from ogpsa.config import Config


class Settings(ogpsa.Settings, lora.AdapterKeys):
    name: Literal["ogpsa_lora"]  # type: ignore[assignment]

    def projection(self, stage: StageName) -> ProjectionSettings:
        # A fresh adapter's B is zero, and so is every gradient of A: the first basis leaves A unprotected.
        return replace(super().projection(stage), refresh_after_first_step=True)

    def check(self, config: "Config") -> list[str]:
        return [*ogpsa.Settings.check(self, config), *lora.AdapterKeys.check(self, config)]
