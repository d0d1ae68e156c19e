"""Merge: train as the baseline, then average the weights with the untuned model's (the paper's "merged" row)."""

from typing import Literal

from pydantic import Field

from ogpsa.config import MethodSettings


class Settings(MethodSettings):
    name: Literal["merge"]
    weight: float = Field(ge=0, le=1)
    merge_after: Literal["pipeline", "stage"]

    def merge_weight(self, last: bool) -> float | None:
        return self.weight if last or self.merge_after == "stage" else None
