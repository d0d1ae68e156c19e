"""Refuse what is harmful and answer what is not."""

from collections.abc import Sequence

from pydantic import SerializeAsAny, model_validator

from ogpsa.config import Reward, RewardServices, Rollout, Scorer
from ogpsa.utils.errors import UserError


class TwoSided(Reward):
    """Two penalties, each by the share (0 to 1) of a refusal that ``refusal`` sees in a response.

    ``safety``, where there is one, scores the answers to harmful requests instead.
    """

    complied_harmful: float
    refused_harmless: float
    refusal: SerializeAsAny[Reward]
    safety: SerializeAsAny[Reward] | None

    @model_validator(mode="after")
    def _refusals_are_shares(self) -> "TwoSided":
        least, greatest = self.refusal.bounds() or (0, 1)
        if not 0 <= least <= greatest <= 1:
            raise ValueError(
                f"refusal: {self.refusal.name} gives rewards from {least:g} to {greatest:g}; allowed: 0 (answered) "
                "to 1 (refused)"
            )
        return self

    def bounds(self) -> tuple[float, float] | None:
        values = [0.0, self.complied_harmful, self.refused_harmless]
        if self.safety is not None:
            if (theirs := self.safety.bounds()) is None:
                return None
            values += theirs
        return min(values), max(values)

    def scorer(self, services: RewardServices) -> Scorer:
        found = {row.get("harmful", True) for row in services.rows}
        if found != {True, False}:
            absent = "false" if found == {True} else "true"
            raise UserError(
                f"{services.section}: two_sided needs requests of both kinds, but no row has harmful: {absent}; add "
                "such rows, or choose a one-sided reward"
            )
        scorers = self.nested_scorers(services)

        def judged(rollout: Rollout) -> bool:
            return rollout.harmful and self.safety is not None

        def score(rollouts: Sequence[Rollout]) -> list[float | None]:
            shares = iter(scorers["refusal"]([rollout for rollout in rollouts if not judged(rollout)]))
            values = iter(
                scorers["safety"]([rollout for rollout in rollouts if judged(rollout)]) if self.safety else ()
            )
            return [
                next(values) if judged(rollout) else self._penalty(rollout.harmful, next(shares), services.section)
                for rollout in rollouts
            ]

        return score

    def _penalty(self, harmful: bool, share: float | None, section: str) -> float | None:
        if share is None:
            return None
        if not 0 <= share <= 1:
            raise UserError(f"{section}.refusal: found a reward of {share:g}; allowed: 0 (answered) to 1 (refused)")
        return self.complied_harmful * (1 - share) if harmful else self.refused_harmless * share


REWARD = TwoSided
