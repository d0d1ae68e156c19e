"""OGPSA over LoRA adapters: the capability subspace is that of the adapters' own parameters."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ogpsa.config import StageName
from ogpsa.methods.lora import Lora
from ogpsa.methods.ogpsa import Ogpsa
from ogpsa.subspace.settings import ProjectionSettings

if TYPE_CHECKING:
    from ogpsa.config import Config


class OgpsaLora(Ogpsa, Lora):
    """The keys of both."""

    def problems(self, config: "Config") -> list[str]:
        return [*Ogpsa.problems(self, config), *Lora.problems(self, config)]

    def projection(self, stage: StageName) -> ProjectionSettings:
        # A fresh adapter's B is zero, and so is every gradient of A: the first basis leaves A unprotected.
        return replace(super().projection(stage), refresh_after_first_step=True)

    def training_key(self, stage: StageName) -> dict[str, Any]:
        return Ogpsa.training_key(self, stage) | Lora.training_key(self, stage)


METHOD = OgpsaLora
