"""The base of every method: its keys, and the hooks by which it takes part in a run.

A method is one file in ``ogpsa/methods`` and one YAML in ``conf/method``. It overrides the hooks it needs; each default
changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

from ogpsa.config.distributed import Mode
from ogpsa.config.section import Section
from ogpsa.config.stage import StageName
from ogpsa.utils.errors import closest_match

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, Trainer

    from ogpsa.config.run import Config
    from ogpsa.runs.run import Run
    from ogpsa.subspace.settings import ProjectionSettings

Value = TypeVar("Value")
# bitsandbytes' names of ways to store a weight in 4 bits.
Quantization = Literal["nf4"]


@dataclass(frozen=True)
class SetUse:
    """A method's use of one reference set in one stage.

    Attributes:
        name: the set's name.
        rows: number of its rows, drawn by the run's seed.
        key: the method's key that sets this number.
        trained_on: they are mixed into the safety rows; otherwise the trainer gets the set as an evaluation set.
    """

    name: str
    rows: int
    key: str
    trained_on: bool = False


def mixed_in(names: Sequence[str], rows: float, key: str) -> list[SetUse]:
    """Uses that train on about ``rows`` rows, spread evenly over the sets."""
    even, more = divmod(round(rows), max(1, len(names)))
    return [SetUse(name, even + (position < more), key, trained_on=True) for position, name in enumerate(names)]


@dataclass(frozen=True)
class ExtraMemory:
    """Memory that a method takes in addition to the baseline's, for the pre-flight: on a device unless said otherwise.

    Attributes:
        bytes_per_weight: for each trained weight, sharded as the weights are.
        whole_bytes: whole on every process; ``host_bytes``: the same in its host memory.
        frozen_copy: whether a copy of the stage's starting model is kept beside it.
        answers_first: whether cross-entropy on given answers begins each step of GRPO, so that gradients are held while
            completions are generated.
    """

    bytes_per_weight: float = 0.0
    whole_bytes: float = 0.0
    host_bytes: float = 0.0
    frozen_copy: bool = False
    answers_first: bool = False


class Method(Section):
    """Base of every method. Its file declares ``METHOD``, the subclass.

    Imports nothing heavy: torch and transformers are imported inside the hooks that need them.

    Attributes:
        name: the option of ``conf/method``.
        recipe_rate: which of a model's two learning rates ``conf/stage`` takes as the default.
        trains_adapters: whether ``adapter`` returns one; known before torch is imported.
    """

    trains_adapters: ClassVar[bool] = False

    name: str
    recipe_rate: Literal["learning_rate", "adapter_learning_rate"] = "learning_rate"

    def problems(self, config: "Config") -> list[str]:
        """Problems that only the whole configuration shows, one line each."""
        return []

    def set_uses(self, stage: StageName, safety_rows: int) -> list[SetUse]:
        """The reference sets that the method reads in ``stage``, in addition to ``safety_rows`` safety rows."""
        return []

    def prepared_from(self) -> list[SetUse]:
        """The reference sets that ``prepare`` reads: prompts and chosen answers."""
        return []

    def prepare(self, base: Path, run: "Run") -> None:
        """Compute what the stages need of the untuned model; every process calls it before the first stage.

        Args:
            base: folder of the untuned model.
        """

    def projection(self, stage: StageName) -> "ProjectionSettings | None":
        """The projection of the stage's gradients, which the pre-flight and the tables report on."""
        return None

    def adapter(self, model: "PreTrainedModel", stage: StageName) -> "PeftConfig | None":
        """The adapters that the stage trains instead of the weights of ``model``; merged after the stage."""
        return None

    def freeze(self, model: "PreTrainedModel", stage: StageName) -> None:
        """Take weights of ``model``, which may be on the meta device, out of training."""

    def quantization(self, stage: StageName) -> Quantization | None:
        """How the linear layers under the adapters are stored; None: in ``model.dtype``."""
        return None

    def trainer_class(self, base: type["Trainer"], stage: StageName) -> type["Trainer"]:
        """The stage's trainer: TRL's, or a subclass of it with a loss of its own."""
        return base

    def attach(self, trainer: "Trainer", stage: StageName, seed: int) -> None:
        """Add the method's part of training to the stage's otherwise complete trainer."""

    def after_stage(self, stage: StageName, base: Path, checkpoint: Path, run: "Run") -> Path:
        """The checkpoint that the next stage starts from; every process calls it.

        Args:
            base: folder of the untuned model.
            checkpoint: folder of the stage's result.
        """
        return checkpoint

    def results(self, stages: Sequence[StageName]) -> int:
        """The number of models that a run of ``stages`` leaves, each of them evaluated."""
        return len(stages)

    def training_key(self, stage: StageName) -> dict[str, Any]:
        """The method's part of the stage's cache key, in addition to rows and settings.

        By default all of the method's keys, so that it shares stages with no other method. A method that trains as
        another one does may return fewer.
        """
        return self.model_dump(mode="json")

    def memory(self, model: "PreTrainedModel", stage: StageName) -> ExtraMemory:
        """Memory in addition to that of weights, gradients, optimizer states, adapters and basis; ``model`` is on the
        meta device, without adapters, frozen as ``freeze`` does.
        """
        return ExtraMemory()

    def preflight(self, model: "PreTrainedModel") -> list[str]:
        """Lines of the pre-flight on the cost of ``prepare``; ``model`` is on the meta device."""
        return []


def stage_value(value: Value | Mapping[StageName, Value], stage: StageName) -> Value:
    """A key's value in one stage: a scalar holds for all stages, a mapping names them."""
    return value[stage] if isinstance(value, Mapping) else value


def missing_stage_values(method: Method, stages: Sequence[StageName]) -> list[str]:
    """One line for each key that is a mapping by stage and has no value for one of ``stages``."""
    problems = []
    for key, value in method.model_dump(mode="json").items():
        if isinstance(value, dict) and value.keys() <= set(get_args(StageName)):
            absent = [stage for stage in stages if stage not in value]
            given = ", ".join(f"{stage}: {_typed(one)}" for stage, one in value.items())
            problems += [
                f"method.{key}: found {{{given}}}, which has no value for {stage}; write {{{given}, {stage}: ...}}"
                for stage in absent
            ]
    return problems


def _typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def set_name_problems(key: str, names: Sequence[str], stage: StageName, config: "Config") -> list[str]:
    """Unknown and repeated names of reference sets in ``key``, the full key, for ``stage``, one line each."""
    known = config.data.reference_set_names
    way = f"none yet; name its rows: '+data.reference_sets={{{', '.join(f'{name}: FILE' for name in names)}}}'"
    problems = [
        f"{key}: '{name}' is not among data={config.data.name}'s sets for {stage}; "
        f"allowed: {', '.join(known) or way}{closest_match(name, [other for other in known if other not in names])}"
        for name in names
        if name not in known
    ]
    if len(set(names)) < len(names):
        problems.append(f"{key}: a set is named twice for {stage}: give each once")
    return problems


def mode_problems(config: "Config", why: str, allowed: Sequence[Mode] = ("single", "ddp", "fsdp2")) -> list[str]:
    """A way of distributing that the method does not support, and ``why``: a clause that follows its name."""
    mode = config.distributed.name
    if mode in allowed:
        return []
    return [
        f"distributed: {mode} is not supported with method={config.method.name}, {why}; allowed: {', '.join(allowed)}"
    ]


def sample_problems(samples: int, config: "Config", purpose: str = "") -> list[str]:
    """More ``method.samples`` than a testbed's sets hold; the rows of files are counted where they are read."""
    if config.data.name != "testbed" or samples <= config.data.reference_rows:
        return []
    return [
        f"method.samples: {samples} rows wanted{purpose}, but each testbed set holds "
        f"data.reference_rows={config.data.reference_rows}; lower the one or raise the other"
    ]
