"""The typed schema of a run. Imports nothing heavy: it answers before torch is loaded.

The YAML groups under ``conf/`` hold the values and say where they come from; the classes here say
which keys exist and what they may hold. A method's own keys live beside the method
(``ogpsa/methods/<name>.py``: ``Settings``), so that a new method touches no file but its own.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidationError, model_validator
from pydantic_core import ErrorDetails

from ogpsa.methods import MethodSettings, Section, StageName, method_settings
from ogpsa.utils.errors import UserError, closest_match

# Where to log and cache, whether to run at all, how an endpoint is reached: no part of what makes two runs the same.
INERT_SECTIONS = (
    "tracker", "cache_dir", "stage_store", "lock_wait", "preflight", "eval.judge.max_calls",
    *(f"eval.{section}.{key}" for section in ("backend", "judge")
      for key in ("api_key_env", "concurrency", "timeout", "attempts")),
)  # fmt: skip


def without_inert(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration, or the section of it that ``prefix`` (``eval.``) names, without what cannot change a result."""
    return {
        key: without_inert(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if f"{prefix}{key}" not in INERT_SECTIONS
    }


class BaseTraining(Section):
    """How the testbed's base model is trained from scratch (``ogpsa/testbed/base.py``)."""

    hidden_size: int = Field(ge=8, multiple_of=4)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "BaseTraining":
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of twice heads={self.heads}")
        return self


class Training(Section):
    """What both a model's recipe and a stage's settings say."""

    learning_rate: float = Field(gt=0)
    epochs: float = Field(gt=0)
    batch_size: int = Field(ge=1)
    micro_batch_size: int = Field(ge=1)
    max_length: int = Field(ge=8)
    save_every: int = Field(ge=1)


class StageRecipe(Training):
    """One stage's training settings for one model; ``conf/stage`` reads them from here."""

    adapter_learning_rate: float = Field(gt=0)


class Recipe(Section):
    sft: StageRecipe
    dpo: StageRecipe


class Model(Section):
    """The model to align: a hub id or a local folder, or (``path: null``) the testbed's own base."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    path: str | None = Field(min_length=1)
    revision: str | None = Field(min_length=1)
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    precision: Literal["fp32", "bf16"]
    dtype: Literal["fp32", "bf16"]
    gradient_checkpointing: bool
    base: BaseTraining | None
    recipe: Recipe

    @model_validator(mode="after")
    def _has_a_source(self) -> "Model":
        if self.path is None and self.base is None:
            raise ValueError("model.path is null and model.base holds no recipe for a testbed base: give a path")
        return self


class StageSettings(Training):
    """Settings that SFT and DPO share."""

    warmup_ratio: float = Field(ge=0, lt=1)
    scheduler: Literal["cosine", "linear", "constant"]
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(ge=0)
    max_steps: int | None = Field(ge=1)
    log_every: int = Field(ge=1)
    optimizer: Literal["adamw", "adamw_8bit", "sgd"]

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> "StageSettings":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of micro_batch_size={self.micro_batch_size}"
            )
        return self


class SFTSettings(StageSettings):
    name: Literal["sft"]


class DPOSettings(StageSettings):
    name: Literal["dpo"]
    beta: float = Field(gt=0)


class SFTThenDPOSettings(Section):
    name: Literal["sft_dpo"]
    sft: SFTSettings
    dpo: DPOSettings


Stage = Annotated[SFTSettings | DPOSettings | SFTThenDPOSettings, Field(discriminator="name")]


class TestbedData(Section):
    """A synthetic world built from ``seed`` (``ogpsa/testbed/world.py``)."""

    __test__ = False  # pytest would otherwise collect the class by its name

    name: Literal["testbed"]
    seed: int = Field(ge=0)
    safety_rows: int = Field(ge=1)
    reference_rows: int = Field(ge=1)
    evaluation_rows: int = Field(ge=1)

    @property
    def reference_set_names(self) -> list[str]:
        return [
            "helpfulness", "truthfulness", "preference", "general", "mathematics", "knowledge", "harmful_answers",
        ]  # fmt: skip


class FileData(Section):
    """The user's own rows, one JSON object a line; ``ogpsa/data/rows.py`` states the columns."""

    name: Literal["files", "paper"]
    seed: int = Field(ge=0)
    safety: str
    reference_sets: dict[str, str]

    @property
    def reference_set_names(self) -> list[str]:
        return list(self.reference_sets)


Data = Annotated[TestbedData | FileData, Field(discriminator="name")]


class EndpointSettings(Section):
    """How an endpoint that speaks OpenAI's protocol is reached (``ogpsa/utils/endpoint.py``)."""

    base_url: str | None
    api_key_env: str
    concurrency: int = Field(ge=1)
    timeout: float = Field(gt=0)
    attempts: int = Field(ge=1)


class Backend(EndpointSettings):
    """What generates the responses: the checkpoint in this process or in vLLM, or a server that holds it."""

    name: Literal["model", "vllm", "server"]
    model: str | None

    @model_validator(mode="after")
    def _a_server_has_an_address(self) -> "Backend":
        if self.name == "server" and not (self.base_url and self.model):
            raise ValueError("backend.name=server needs backend.base_url and backend.model")
        return self


class PromptFiles(Section):
    """Files whose text takes the place of a judge's own prompt."""

    xstest_rubric: str | None
    strongreject_rubric: str | None
    simpleqa_grader: str | None


class JudgeWeights(Section):
    """Hub id or folder of the judges that run from local weights."""

    strongreject_finetuned: str
    wildguard: str


class JudgeSettings(EndpointSettings):
    """The judges' endpoint and weights (``eval/judging/judges``)."""

    model: str
    max_calls: int | None = Field(ge=0)
    prompt_file: PromptFiles
    weights: JudgeWeights
    batch_size: int = Field(ge=1)


class Evaluation(Section):
    """Which benchmarks run, who judges them, and which of them enter which average (``eval/``)."""

    name: str
    safety: list[str]
    utility: list[str]
    over_refusal: list[str]
    reported: list[str]
    composites: dict[str, Annotated[list[str], Field(min_length=1)]]
    judges: dict[str, str]
    limit: int | None = Field(ge=1)
    sample_seed: int | None = Field(ge=0)
    batch_size: int = Field(ge=1)
    data_dir: str | None
    backend: Backend
    judge: JudgeSettings

    @property
    def groups(self) -> dict[str, list[str]]:
        """The members of each average; what is only ``reported`` enters none."""
        averages = {"safety": self.safety, "utility": self.utility, "over_refusal": self.over_refusal}
        return averages | {"reported": self.reported}

    @property
    def benchmarks(self) -> list[str]:
        """All that is run, the parts in a composite's place."""
        return [part for group in self.groups.values() for part in self.parts(group)]

    def parts(self, names: Sequence[str]) -> list[str]:
        """The benchmarks behind names, some of them of composites."""
        return [part for name in names for part in self.composites.get(name, [name])]

    def key(self) -> str:
        """Eight hexadecimal digits that name these settings."""
        text = json.dumps(without_inert(self.model_dump(mode="json"), "eval."), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


class Distributed(Section):
    """How the work is spread over the processes that torchrun starts (``ogpsa/distributed/launch.py``)."""

    name: Literal["single", "ddp", "fsdp2", "zero2", "zero3"]
    processes: int | None = Field(ge=1)


class Tracker(Section):
    """The W&B mirror; the run directory stays the truth."""

    name: Literal["wandb", "none"]
    project: str = Field(pattern=r"^[^/\\#?%:]+$")
    entity: str | None
    group: str | None
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]]
    mode: Literal["auto", "online", "offline"]


class Config(Section):
    """One run, completely. ``key()`` is what makes two runs the same run."""

    seed: int = Field(ge=0, lt=2**32)
    model: Model
    stage: Stage
    method: SerializeAsAny[MethodSettings]
    data: Data
    eval: Evaluation
    distributed: Distributed
    tracker: Tracker
    cache_dir: str
    stage_store: str | None
    lock_wait: int = Field(default=0, ge=0)
    preflight: bool

    @property
    def stages(self) -> list[SFTSettings | DPOSettings]:
        """The stages in the order in which they run."""
        if isinstance(self.stage, SFTThenDPOSettings):
            return [self.stage.sft, self.stage.dpo]
        return [self.stage]

    def stage_key(self, name: StageName) -> str:
        """Where the settings of one stage stand: ``stage``, or ``stage.dpo`` in a pipeline of several."""
        return f"stage.{name}" if isinstance(self.stage, SFTThenDPOSettings) else "stage"

    def identity(self) -> dict[str, Any]:
        """The configuration without what cannot change a result."""
        return without_inert(self.model_dump(mode="json"))

    def key(self) -> str:
        """Twelve hexadecimal digits that name this configuration."""
        return identity_key(self.identity())

    def run_name(self) -> str:
        """The default run directory's name: ``<model>-<stage>-<method>-seed<n>-<hash>``."""
        return identity_name(self.identity())


def identity_key(identity: Mapping[str, Any]) -> str:
    """``Config.key()`` of a configuration that may be of another version of this schema."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def identity_name(identity: Mapping[str, Any]) -> str:
    """``Config.run_name()`` of a configuration that may be of another version of this schema."""
    model, stage, method = (identity[section]["name"] for section in ("model", "stage", "method"))
    return f"{model}-{stage}-{method}-seed{identity['seed']}-{identity_key(identity)}"


def load_config(raw: Mapping[str, Any]) -> Config:
    """Validate a composed configuration.

    Raises:
        UserError: every problem at once, one line each.
    """
    problems: list[str] = []
    sections = dict(raw)
    method = sections.get("method")
    name = str(method.get("name")) if isinstance(method, Mapping) else "baseline"
    try:
        sections["method"] = method_settings(name).model_validate(method)
    except ValidationError as error:
        problems += describe(error, raw, ("method",))
        sections["method"] = MethodSettings(name=name)
    try:
        config = Config.model_validate(sections)
    except ValidationError as error:
        raise UserError(*describe(error, raw), *problems) from None
    problems = problems or [*_dtype_problems(config), *config.method.check(config)]
    if problems:
        raise UserError(*problems)
    return config


def _dtype_problems(config: Config) -> list[str]:
    """bf16 is for weights that stay as they are: rounding swallows the steps that training makes."""
    if config.model.dtype == "fp32":
        return []
    if any(config.method.adapter(stage.name) is None for stage in config.stages):
        return [
            "model.dtype: weights stored in bf16 do not move at the learning rates of full fine-tuning, so "
            f"method={config.method.name} would not train; allowed: fp32 (model.precision=bf16 is autocast over it), "
            "or method=lora, ogpsa_lora"
        ]
    if config.model.precision == "fp32":
        return ["model.precision: fp32 with model.dtype=bf16; allowed: bf16, or model.dtype=fp32"]
    if config.distributed.name == "zero3":
        # TRL stores the adapters as the model under ZeRO-3.
        return ["model.dtype: bf16 makes distributed=zero3 train adapters in bf16, which would not move; allowed: fp32"]
    return []


def describe(error: ValidationError, raw: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> list[str]:
    """One line for each key at fault: the key, what was found, what is allowed."""
    found: dict[tuple[str, ...], list[ErrorDetails]] = {}
    siblings: dict[tuple[str, ...], list[str]] = {}
    for details in error.errors():
        path, beside = _locate((*prefix, *details["loc"]), raw, details["type"] == "missing")
        found.setdefault(tuple(path), []).append(details)
        siblings[tuple(path)] = beside
    # Where a union's branches all complain, the one that reached furthest is the one that was meant.
    furthest = [path for path in found if not any(other[: len(path)] == path != other for other in found)]
    return [_line(path, siblings[path], found[path]) for path in furthest]


def _line(path: tuple[str, ...], siblings: list[str], errors: list[ErrorDetails]) -> str:
    key, first = ".".join(path) or "configuration", errors[0]
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key; allowed: {', '.join(siblings)}{closest_match(path[-1], siblings)}"
    if first["type"] == "missing" or first["input"] == "???":
        return f"{key}: no value given, and it has no default"
    if first["type"] == "value_error":
        return f"{key}: {first['msg'].removeprefix('Value error, ')}"
    messages = dict.fromkeys(
        details["msg"].removeprefix("Input should be ").partition(", unable to")[0] for details in errors
    )
    options = [
        word
        for details in errors
        if details["type"] == "literal_error"
        for word in re.findall(r"'([^']*)'", details["ctx"]["expected"])
    ]
    hint = closest_match(str(first["input"]), options)
    if isinstance(first["input"], str) and any(details["type"] == "list_type" for details in errors):
        hint = f"; write [{first['input']}] for a list of one"
    return f"{key}: found {first['input']!r}; allowed is {', or '.join(messages)}{hint}"


def _locate(location: tuple[str | int, ...], raw: Mapping[str, Any], absent: bool) -> tuple[list[str], list[str]]:
    """The dotted path of an error and the keys beside it; union tags in ``location`` are no keys.

    ``absent`` says that the last part names a key that is not there.
    """
    path: list[str] = []
    siblings: list[str] = []
    here: Any = raw
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(here, Mapping) and (part in here or (last and absent)):
            siblings = [str(key) for key in here if key != part]
            path.append(str(part))
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            path.append(str(part))
            here = here[part]
    return path, siblings
