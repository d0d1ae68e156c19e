"""Naive tuning: the stage's trainer as it is (the paper's "naive" row)."""

from typing import Literal

from ogpsa.config import MethodSettings


class Settings(MethodSettings):
    name: Literal["baseline"]
