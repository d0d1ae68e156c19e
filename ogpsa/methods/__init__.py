"""The methods under study, one file each; a file's name is the name in ``conf/method``.

A method file declares ``Settings``, its keys. Nothing here imports torch: settings are validated
before it is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict

from ogpsa.utils.errors import UserError, closest_match

if TYPE_CHECKING:
    from ogpsa.config import Config

StageName = Literal["sft", "dpo"]
Scope = Literal["global", "tensor"]
Sided = Literal["two", "conflict"]
Target = Literal["gradient", "gradient+momentum", "update"]
BasisDtype = Literal["auto", "fp32", "bf16", "int8"]
BasisDevice = Literal["device", "host"]
Selection = Literal["random", "conflict"]
# The paper's ablations go as far, and so do the GPU's kernels.
MAX_RANK = 32
# Rows whose mean gradient is the safety gradient that reference rows are chosen by.
SAFETY_SAMPLE = 64
Value = TypeVar("Value")


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are read-only once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


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
class ProjectionSettings:
    """What the projection needs to know in one stage; the paper's symbols in brackets.

    Attributes:
        reference_sets: names of the reference sets, one per capability dimension (M of them).
        rank: columns of the basis U (r); 0 runs the reference passes and removes nothing.
        samples: rows drawn from each set (N).
        refresh_every: optimizer steps between two estimates (K); None estimates once.
        scope: ``global`` projects the whole trainable vector, ``tensor`` each parameter on its own.
        sided: ``two`` removes the whole component, ``conflict`` only what would raise a reference loss.
        target: what is projected: the ``gradient``, ``gradient+momentum`` (the optimizer's first moment as well)
            or the ``update``, the optimizer's finished step in place of the gradient.
        streaming: spend 1/K of the samples at every step instead of all of them every K steps.
        basis_dtype: how the basis is stored; ``auto`` is fp32 on the CPU and bf16 on a GPU.
        basis_device: where it is stored: beside the gradients, or on the ``host`` and fetched block by block.
        refresh_after_first_step: estimate once more after the first step that moves the weights, for adapters:
            before it LoRA's B is zero, and with it every gradient of A.
        selection: which rows of each set: drawn at ``random``, or those in the sharpest ``conflict`` with the safety
            gradient at the stage's starting weights.
    """

    reference_sets: tuple[str, ...]
    rank: int
    samples: int
    refresh_every: int | None
    scope: Scope = "global"
    sided: Sided = "two"
    target: Target = "gradient"
    streaming: bool = False
    basis_dtype: BasisDtype = "auto"
    basis_device: BasisDevice = "device"
    refresh_after_first_step: bool = False
    selection: Selection = "random"

    @property
    def chunks(self) -> int:
        """Reference gradients per set, ``ceil(r / M)``; at least one, so that rank 0 runs its pass."""
        return max(1, -(-self.rank // len(self.reference_sets)))

    def problems(self) -> list[str]:
        """What contradicts itself, one line each."""
        found = []
        if not 0 <= self.rank <= MAX_RANK:
            found.append(f"method.rank: found {self.rank}; allowed: 0 to {MAX_RANK}")
        for key, kinds in (("scope", Scope), ("sided", Sided), ("target", Target), ("basis_dtype", BasisDtype),
                           ("basis_device", BasisDevice), ("selection", Selection)):  # fmt: skip
            value = vars(self)[key]
            if value not in get_args(kinds):
                allowed = ", ".join(get_args(kinds))
                found.append(
                    f"method.{key}: found '{value}'; allowed: {allowed}{closest_match(value, get_args(kinds))}"
                )
        if self.chunks > self.samples:
            most = len(self.reference_sets) * self.samples
            found.append(
                f"method.rank: {self.rank} needs {self.chunks} chunks a set, but method.samples={self.samples} rows "
                f"can be cut into {self.samples}; allowed: 0 to {most}"
            )
        elif self.streaming and self.refresh_every is None:
            found.append("method.streaming: needs a number of steps in method.refresh_every, not never")
        elif self.streaming and self.refresh_every and self.samples // self.chunks < self.refresh_every:
            found.append(
                f"method.streaming: chunks of {self.samples // self.chunks} rows (method.samples={self.samples}) "
                f"cannot be spread over method.refresh_every={self.refresh_every} steps; allowed: at most "
                f"{self.samples // self.chunks} steps, or more samples"
            )
        if self.target == "gradient+momentum" and self.sided == "conflict":
            found.append(
                "method.target: 'gradient+momentum' is not supported with method.sided=conflict: AdamW would divide "
                "what is added to its first moment by second moments that never saw it; allowed: gradient, update, or "
                "sided=two"
            )
        return found


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

    def projection(self, stage: StageName) -> ProjectionSettings | None:
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


def method_names() -> list[str]:
    return sorted(module.name for module in iter_modules(__path__))


def method_settings(name: str) -> type[MethodSettings]:
    """The settings class of the method called ``name``.

    Raises:
        UserError: no method has that name.
    """
    if name not in method_names():
        allowed = ", ".join(method_names())
        raise UserError(f"method.name: '{name}' is no method; allowed: {allowed}{closest_match(name, method_names())}")
    settings: type[MethodSettings] = import_module(f"{__name__}.{name}").Settings
    return settings


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
