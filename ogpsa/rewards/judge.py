"""A judge of the evaluation as a reward."""

from collections.abc import Sequence
from dataclasses import replace

from ogpsa.config import ModelEndpoint, Reward, RewardServices, Rollout, Scorer


class Judge(Reward):
    """A value of the judge becomes a reward on the straight line through ``zero`` (at 0) and ``one`` (at 1).

    Without ``shows_request`` the judge is shown an empty text in the request's place.
    """

    judge: str
    zero: float
    one: float
    shows_request: bool
    endpoint: ModelEndpoint

    def judges(self) -> set[str]:
        return {self.judge}

    def scorer(self, services: RewardServices) -> Scorer:
        values_of = services.judge(self.judge, self.endpoint, services)

        def score(rollouts: Sequence[Rollout]) -> list[float | None]:
            shown = rollouts if self.shows_request else [replace(rollout, prompt="") for rollout in rollouts]
            values = values_of(shown)
            return [None if value is None else self.zero + value * (self.one - self.zero) for value in values]

        return score


REWARD = Judge
