"""Rewards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Rollout:
    prompt: str
    response: str
    harmful: bool
    target: str | None
    finished: bool


class Scorer(Protocol):
    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]: ...
