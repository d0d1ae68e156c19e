"""The typed schema of ``recipes/<name>.yaml``, which says how ``python -m ogpsa.data build`` makes a data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from ogpsa.config import EndpointSettings, Section, describe
from ogpsa.utils.errors import UserError, closest_match

FOLDER = Path(__file__).with_name("recipes")


class Source(Section):
    """Where the published rows are: a hub id, a folder laid out like one, or a file."""

    path: str = Field(min_length=1)
    config: str | None
    split: str
    revision: str | None
    licence: str


class DataSet(Section):
    """What every data set's settings say."""

    name: str
    source: Source
    output: str = Field(min_length=1)
    seed: int = Field(ge=0)
    parts: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], Annotated[int, Field(ge=1)]] = Field(min_length=1)
    max_characters: int | None = Field(ge=1)
    exclude: list[str]
    similarity: float = Field(gt=0, le=1)


class Endpoint(EndpointSettings):
    """What writes the refusals behind an address that speaks OpenAI's protocol."""

    model: str
    max_calls: int | None = Field(ge=0)


class Checkpoint(Section):
    """What writes the refusals in this process."""

    path: str | None
    batch_size: int = Field(ge=1)


class Refusals(Section):
    """Who writes the safe answers, and how it is asked."""

    way: Literal["endpoint", "model", "templates"]
    system_prompt: str = Field(min_length=1)
    max_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0)
    endpoint: Endpoint
    model: Checkpoint
    templates: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)


class SafeRLHF(DataSet):
    min_severity: int = Field(ge=0, le=3)
    harmful_answers: int = Field(ge=0)
    refusals: Refusals


class UltraFeedback(DataSet):
    score: Literal["overall_score", "fine-grained_score"]
    min_gap: float = Field(ge=0)
    skip_sources: list[str]


class HaluEval(DataSet):
    """Nothing beside what every data set says."""


class GSM8K(DataSet):
    calculator_annotations: bool


class MMLU(DataSet):
    """Nothing beside what every data set says."""


SCHEMAS: dict[str, type[DataSet]] = {
    "safe_rlhf": SafeRLHF,
    "ultrafeedback": UltraFeedback,
    "halueval": HaluEval,
    "gsm8k": GSM8K,
    "mmlu": MMLU,
}


def load_settings(name: str, overrides: Sequence[str] = ()) -> DataSet:
    """The settings of the data set called ``name``, with ``KEY=VALUE`` overrides.

    Raises:
        UserError: no such data set, a key that is not there, or a value out of range; one line a problem.
    """
    if name not in SCHEMAS:
        raise UserError(f"'{name}' is no data set; allowed: {', '.join(SCHEMAS)}{closest_match(name, SCHEMAS)}")
    tree: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    for override in overrides:
        _apply(tree, override)
    try:
        return SCHEMAS[name].model_validate(tree)
    except ValidationError as error:
        raise UserError(*describe(error, tree)) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"'{override}': expected KEY=VALUE")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{key}: '{text}' is not readable as a value in YAML; quote it") from None
    *parents, last = key.split(".")
    here = tree
    for depth, part in enumerate(parents, start=1):
        inner = here.get(part)
        if not isinstance(inner, dict):
            above = ".".join(parents[:depth])
            sections = [name for name, value in here.items() if isinstance(value, dict)]
            allowed = ", ".join(sections) or "none"
            raise UserError(f"{above}: no section; allowed: {allowed}{closest_match(part, sections)}")
        here = inner
    here[last] = value
