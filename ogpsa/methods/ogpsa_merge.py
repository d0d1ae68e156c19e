"""OGPSA, its weights then averaged with the untuned model's (ours)."""

from typing import Literal

from ogpsa.methods import merge, ogpsa


class Settings(ogpsa.Settings, merge.Settings):
    name: Literal["ogpsa_merge"]  # type: ignore[assignment]
