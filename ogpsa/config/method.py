"""What a method is: its keys, and the hooks by which it takes part in a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from ogpsa.config.section import Section
from ogpsa.config.stage import StageName
from ogpsa.utils.errors import closest_match

if TYPE_CHECKING:
    from ogpsa.config.run import Config
    from ogpsa.subspace.settings import ProjectionSettings


Value = TypeVar("Value")


@dataclass(frozen=True)
class AdapterSettings:
    """The LoRA adapters of one stage.

    Attributes:
        rank: inner dimension of an adapter.
        alpha: an adapter's output counts ``alpha / rank`` times.
        dropout: share of an adapter's inputs that training leaves out.
        target_modules: names of the linear layers that get one, or ``all-linear`` for all but the output head.
    """

    rank: int
    alpha: int
    dropout: float
    target_modules: str | tuple[str, ...]


@dataclass(frozen=True)
class SetUse:
    """What a method takes of one reference set in one stage.

    Attributes:
        name: the set's name.
        rows: how many of its rows, drawn by the run's seed.
        key: the method's key that decides on them.
        trained_on: they are mixed into the safety rows; else they give reference gradients.
    """

    name: str
    rows: int
    key: str
    trained_on: bool = False


class MethodSettings(Section):
    """Base of every method's settings; the defaults describe a method that changes nothing.

    ``recipe_rate`` says which of a model's two learning rates ``conf/stage`` takes as the default.
    """

    name: str
    recipe_rate: Literal["learning_rate", "adapter_learning_rate"] = "learning_rate"

    def check(self, config: "Config") -> list[str]:
        """Problems that only the whole configuration shows, one line each."""
        return []

    def projection(self, stage: StageName) -> "ProjectionSettings | None":
        """The projection that this method applies in ``stage``, or None."""
        return None

    def adapter(self, stage: StageName) -> AdapterSettings | None:
        """The adapters that this method trains in ``stage`` instead of the weights, or None."""
        return None

    def anchor_strength(self, stage: StageName) -> float | None:
        """How strongly (λ) each step of ``stage`` is followed by a pull towards its starting weights, or None."""
        return None

    def set_uses(self, stage: StageName, safety_rows: int) -> list[SetUse]:
        """The reference sets that this method reads in ``stage``, beside so many safety rows, and what for."""
        projection = self.projection(stage)
        if projection is None:
            return []
        return [SetUse(name, projection.samples, "samples") for name in projection.reference_sets]

    def merge_weight(self, last: bool) -> float | None:
        """Share of a stage's weights in their average with the untuned model's, or None where they stay.

        ``last`` says that the stage ends the pipeline; after any other, the next starts from the average.
        """
        return None


def set_name_problems(key: str, names: Sequence[str], stage: StageName, config: "Config") -> list[str]:
    """What is wrong with the names of reference sets in ``method.<key>`` for ``stage``, one line each."""
    known = config.data.reference_set_names
    problems = [
        f"method.{key}: '{name}' is not among data={config.data.name}'s sets for {stage}; "
        f"allowed: {', '.join(known) or 'none'}{closest_match(name, known)}"
        for name in names
        if name not in known
    ]
    if len(set(names)) < len(names):
        problems.append(f"method.{key}: a set is named twice for {stage}: give each once")
    return problems


def value_for_stage(value: Value | Mapping[StageName, Value | None] | None, stage: StageName, default: Value) -> Value:
    """A method key's value in one stage: a scalar holds for all, a mapping by name, null is the default."""
    found = value.get(stage) if isinstance(value, Mapping) else value
    return default if found is None else found
