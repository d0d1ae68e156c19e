"""A judge of the evaluation as a reward."""

from collections.abc import Sequence

from ogpsa.config import ModelEndpoint, Reward, RewardServices, Rollout, Scorer


class Judge(Reward):
    """A value of the judge becomes a reward on the straight line through ``zero`` (at 0) and ``one`` (at 1)."""

    judge: str
    zero: float
    one: float
    endpoint: ModelEndpoint

    def scorer(self, services: RewardServices) -> Scorer:
        values_of = services.judge(self.judge, self.endpoint, services)

        def score(rollouts: Sequence[Rollout]) -> list[float | None]:
            values = values_of(rollouts)
            return [None if value is None else self.zero + value * (self.one - self.zero) for value in values]

        return score


REWARD = Judge
