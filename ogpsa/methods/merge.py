"""Merge: train as the baseline, then average the weights with the untuned model's (the paper's "merged" row)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ogpsa.config import Method, StageName

if TYPE_CHECKING:
    from ogpsa.runs.run import Run


class Merge(Method):
    """``weight`` is the share of the tuned weights; the average of ``02-dpo`` lies in ``02-dpo-merged``."""

    weight: float = Field(ge=0, le=1)
    merge_after: Literal["pipeline", "stage"]

    def after_stage(self, stage: StageName, base: Path, checkpoint: Path, run: "Run") -> Path:
        if self.merge_after == "pipeline" and stage != run.config.stages[-1].name:
            return checkpoint
        from ogpsa.training.merging import merge

        target = checkpoint.with_name(f"{checkpoint.name}-merged")
        run.on_main_process(lambda: merge(base, checkpoint, target, self.weight, run.safe_point))
        return target

    def results(self, stages: Sequence[StageName]) -> int:
        return len(stages) + (1 if self.merge_after == "pipeline" else len(stages))

    def training_key(self, stage: StageName) -> dict[str, Any]:
        # What comes after a stage shows in the weights that the next one starts from.
        return {}


METHOD = Merge
