"""A judge of the evaluation as a reward."""

from collections.abc import Sequence
from dataclasses import replace

from ogpsa.config import ModelEndpoint, Reward, RewardServices, Rollout, Scorer


class Judge(Reward):
    """Maps the judge's value to a reward linearly, 0 to ``zero`` and 1 to ``one``.

    Without ``shows_request`` the judge sees an empty text instead of the request.
    """

    judge: str
    zero: float
    one: float
    shows_request: bool
    endpoint: ModelEndpoint

    def judges(self) -> set[str]:
        return {self.judge}

    def bounds(self) -> tuple[float, float]:
        return min(self.zero, self.one), max(self.zero, self.one)

    def scorer(self, services: RewardServices) -> Scorer:
        values_of = services.judge(self.judge, self.endpoint, services)

        def score(rollouts: Sequence[Rollout]) -> list[float | None]:
            shown = rollouts if self.shows_request else [replace(rollout, prompt="") for rollout in rollouts]
            values = values_of(shown)
            return [None if value is None else self.zero + value * (self.one - self.zero) for value in values]

        return score


REWARD = Judge
