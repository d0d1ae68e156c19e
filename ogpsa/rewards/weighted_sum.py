"""A weighted sum of other rewards."""

from collections.abc import Sequence

from pydantic import Field, SerializeAsAny, model_validator

from ogpsa.config import Reward, RewardServices, Rollout, Scorer
from ogpsa.utils.errors import Problems


class WeightedSum(Reward):
    """Where a part has no reward, neither has the sum."""

    parts: dict[str, SerializeAsAny[Reward]] = Field(min_length=1)
    weights: dict[str, float]

    @model_validator(mode="after")
    def _each_part_has_a_weight(self) -> "WeightedSum":
        if self.weights.keys() != self.parts.keys():
            raise ValueError(
                f"weights has {', '.join(sorted(self.weights)) or 'none'}; expected one for each of parts: "
                f"{', '.join(sorted(self.parts))}"
            )
        return self

    def scorer(self, services: RewardServices) -> Scorer:
        problems, scorers = Problems(), dict[str, Scorer]()
        for name, part in self.parts.items():
            with problems.kept():
                scorers[name] = part.scorer(services.within(f"parts.{name}"))
        problems.tell()

        def score(rollouts: Sequence[Rollout]) -> list[float | None]:
            columns = [
                [None if value is None else self.weights[name] * value for value in scorer(rollouts)]
                for name, scorer in scorers.items()
            ]
            return [_total(values) for values in zip(*columns, strict=True)]

        return score


def _total(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) if len(found) == len(values) else None


REWARD = WeightedSum
