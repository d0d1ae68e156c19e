"""Naive tuning: the stage's trainer as it is (the paper's "naive" row)."""

from typing import Any

from ogpsa.config import Method, StageName


class Baseline(Method):
    """No hook: nothing is added to TRL's trainer."""

    def training_key(self, stage: StageName) -> dict[str, Any]:
        return {}


METHOD = Baseline
