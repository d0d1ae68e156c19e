"""OGPSA with each step followed by a pull towards the stage's starting weights (ours); the pull is not projected."""

from typing import TYPE_CHECKING, Literal

from ogpsa.methods import anchor, ogpsa

if TYPE_CHECKING:
    from ogpsa.config import Config


class Settings(ogpsa.Settings, anchor.AnchorKeys):
    name: Literal["ogpsa_anchor"]  # type: ignore[assignment]

    def check(self, config: "Config") -> list[str]:
        return [*ogpsa.Settings.check(self, config), *anchor.AnchorKeys.check(self, config)]
