"""SafeDPO: DPO with a margin between a safe and an unsafe answer (arXiv 2505.20065).

Its loss of a pair of a safe chosen and an unsafe rejected answer is ``softplus(Δ - β h)``, with h the difference of the
two answers' log-ratios to the reference policy. The method's other half swaps or drops pairs by their safety labels; it
would not change the safety set, whose chosen answers are safe and whose rejected ones are not. The trainer logs the
chosen answers' rewards, and the margins, less Δ. Held-out rows are measured by DPO's loss, without Δ.
"""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ogpsa.config import Method, StageName

if TYPE_CHECKING:
    from transformers import Trainer

    from ogpsa.config import Config


class SafeDPO(Method):
    """``margin`` is Δ, by which the safe answer's reward must lead for the loss that equal rewards have in DPO."""

    margin: float = Field(ge=0)

    def problems(self, config: "Config") -> list[str]:
        stages = {stage.name: stage for stage in config.stages}
        dpo = stages.get("dpo")
        if dpo is None:
            return [f"method: safedpo is a loss of dpo, and stage={config.stage.name} has none; allowed: dpo, sft_dpo"]
        found: Any = dpo.model_dump()["loss"]
        if found not in ("sigmoid", {"sigmoid": 1.0}):
            return [f"{config.stage_key('dpo')}.loss: safedpo's is sigmoid with a margin; found {found}"]
        return []

    def attach(self, trainer: "Trainer", stage: StageName, seed: int) -> None:
        if stage != "dpo" or not self.margin:
            return
        # A reference policy that finds the safe answer likelier by Δ / β asks the policy for as much more.
        data: Any = trainer.train_dataset
        beta: float = vars(trainer.args)["beta"]
        trainer.train_dataset = data.map(
            lambda row: {"ref_chosen_logps": row["ref_chosen_logps"] + self.margin / beta}, load_from_cache_file=False
        )

    def training_key(self, stage: StageName) -> dict[str, Any]:
        # Before DPO it trains as the baseline does.
        return {"margin": self.margin} if stage == "dpo" and self.margin else {}


METHOD = SafeDPO
