"""Whether an answer is a refusal, by rules in several languages (``ogpsa/utils/refusal_rules.py``)."""

from collections.abc import Sequence

from ogpsa.config import Reward, RewardServices, Rollout, Scorer
from ogpsa.utils.refusal_rules import declines


class RefusalRules(Reward):
    """Sees the answer alone; a response without an answer has no reward."""

    refused: float
    complied: float

    def bounds(self) -> tuple[float, float]:
        return min(self.refused, self.complied), max(self.refused, self.complied)

    def scorer(self, services: RewardServices) -> Scorer:
        return self._score

    def _score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        answers = [rollout.answer for rollout in rollouts]
        return [None if answer is None else self.refused if declines(answer) else self.complied for answer in answers]


REWARD = RefusalRules
