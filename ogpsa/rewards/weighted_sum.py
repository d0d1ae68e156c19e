"""A weighted sum of other rewards."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, SerializeAsAny, model_validator

from ogpsa.config import Reward, RewardServices, Rollout, Scorer

# It names a file.
PartName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class WeightedSum(Reward):
    """The weighted sum; None where a part has no reward."""

    parts: dict[PartName, SerializeAsAny[Reward]] = Field(min_length=1)
    weights: dict[str, float]

    @model_validator(mode="after")
    def _each_part_has_a_weight(self) -> "WeightedSum":
        if self.weights.keys() != self.parts.keys():
            raise ValueError(
                f"weights has {', '.join(sorted(self.weights)) or 'none'}; expected one for each of parts: "
                f"{', '.join(sorted(self.parts))}"
            )
        return self

    def bounds(self) -> tuple[float, float] | None:
        ends = [(self.weights[name], part.bounds()) for name, part in self.parts.items()]
        known = [sorted(weight * end for end in both) for weight, both in ends if both is not None]
        return (sum(low for low, _ in known), sum(high for _, high in known)) if len(known) == len(ends) else None

    def scorer(self, services: RewardServices) -> Scorer:
        scorers = self.nested_scorers(services)

        def score(rollouts: Sequence[Rollout]) -> list[float | None]:
            columns = [
                [None if value is None else weight * value for value in scorers[f"parts.{name}"](rollouts)]
                for name, weight in self.weights.items()
            ]
            return [_total(values) for values in zip(*columns, strict=True)]

        return score


def _total(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) if len(found) == len(values) else None


REWARD = WeightedSum
