"""The typed schema of ``recipes/<name>.yaml``, which says how ``python -m ogpsa.data build`` makes a data set."""

from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from ogpsa.config import ModelEndpoint, PathText, Section, describe
from ogpsa.utils.command_line import read_pairs
from ogpsa.utils.errors import UserError, closest_match

FOLDER = Path(__file__).with_name("recipes")
# The data card.
CARD = "card.json"


class Source(Section):
    """The source of published rows: a hub id, a folder laid out like one, a file, or a JSON file at an address."""

    path: PathText = Field(min_length=1)
    config: str | None
    split: str
    revision: str | None
    licence: str
    # Only hh_rlhf names one.
    data_dir: str | None = None


class Fits(Section):
    """The models that rows must fit, as the check before a run measures it (``ogpsa/data/fit.py``)."""

    tokenizers: list[PathText] = Field(default_factory=list)
    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    max_tokens: int = Field(default=2048, ge=1)


class DataSet(Section):
    """Settings that all data sets share.

    Attributes:
        parts: by file, the rows drawn for it: their number, or a share of the eligible ones.
        about: by file, the number that a share comes to, for a plan that is made before it is drawn.
    """

    name: str
    output: PathText = Field(min_length=1)
    seed: int = Field(ge=0)
    parts: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")],
        Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)],
    ] = Field(min_length=1)
    about: dict[str, int] = Field(default_factory=dict)
    max_characters: int | None = Field(ge=1)
    # Absent from cards of earlier revisions.
    fits: Fits = Field(default_factory=Fits)
    exclude: list[PathText]
    similarity: float = Field(gt=0, le=1)

    def published(self) -> dict[str, tuple[str, Source]]:
        """By the name of what is published, ``gsm8k``: the key of its source, and the source."""
        raise NotImplementedError

    def sizes(self) -> dict[str, int]:
        """The rows of each file that a build writes, by the file's name; of a share about as many."""
        return {name: size if isinstance(size, int) else self.about[name] for name, size in self.parts.items()}


class OneSource(DataSet):
    """A data set made of one that is published."""

    source: Source

    def published(self) -> dict[str, tuple[str, Source]]:
        return {self.name: ("source", self.source)}


class Checkpoint(Section):
    """The model that writes answers in this process."""

    path: PathText | None
    batch_size: int = Field(ge=1)
    template_kwargs: dict[str, Any]


class Refusals(Section):
    """The writer of the safe answers, and the prompt that it gets."""

    way: Literal["endpoint", "model", "templates"]
    system_prompt: str = Field(min_length=1)
    max_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0)
    template_share: float = Field(ge=0, le=1)
    endpoint: ModelEndpoint
    model: Checkpoint
    templates: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)


class SafeRLHF(OneSource):
    min_severity: int = Field(ge=0, le=3)
    harmful_answers: int = Field(ge=0)
    refusals: Refusals

    def sizes(self) -> dict[str, int]:
        return super().sizes() | ({"harmful_answers": self.harmful_answers} if self.harmful_answers else {})


class SafeRLHFPrompts(OneSource):
    unsafe_answers: int = Field(ge=0, le=2)


class UltraFeedback(OneSource):
    score: Literal["overall_score", "fine-grained_score"]
    min_gap: float = Field(ge=0)
    skip_sources: list[str]


class GSM8K(OneSource):
    calculator_annotations: bool


class Rejected(Section):
    """The writer of the rejected answers."""

    way: Literal["model", "none"]
    parts: list[str]
    max_tokens: int = Field(ge=1)
    model: Checkpoint


class Answered(OneSource):
    """A data set of prompts with one answer each, to which a rejected one can be written."""

    rejected: Rejected


class HHRLHF(OneSource):
    several_turns: bool


class NSPOGeneral(DataSet):
    """Equal numbers of rows from each source."""

    sources: dict[Literal["alpaca", "gsm8k", "leetcode"], Source] = Field(min_length=1)
    calculator_annotations: bool

    def published(self) -> dict[str, tuple[str, Source]]:
        return {name: (f"sources.{name}", source) for name, source in self.sources.items()}


SCHEMAS: dict[str, type[DataSet]] = {
    "safe_rlhf": SafeRLHF,
    "ultrafeedback": UltraFeedback,
    "ultrafeedback_short": UltraFeedback,
    "halueval": OneSource,
    "gsm8k": GSM8K,
    "mmlu": OneSource,
    "safety_tuned_llamas": Answered,
    "hh_rlhf": HHRLHF,
    "alpaca": Answered,
    "safe_rlhf_prompts": SafeRLHFPrompts,
    "nspo_general": NSPOGeneral,
}


def recipe(name: str) -> str:
    """The text of ``recipes/<name>.yaml``: every key with its value and what it means.

    Raises:
        UserError: no such data set.
    """
    if name not in SCHEMAS:
        raise UserError(f"unknown data set '{name}'; allowed: {', '.join(SCHEMAS)}{closest_match(name, SCHEMAS)}")
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def load_settings(name: str, overrides: Sequence[str] = ()) -> DataSet:
    """The settings of the data set called ``name``, with ``KEY=VALUE`` overrides.

    Raises:
        UserError: no such data set, a key that is not there, or a value out of range; one line a problem.
    """
    tree: dict[str, Any] = yaml.safe_load(recipe(name))
    for key, value in read_pairs(overrides, {"*": _yaml_value}).items():
        *sections, last = key.split(".")
        here = tree
        for section in sections:
            if not isinstance(here.get(section), dict):
                here[section] = {}
            here = here[section]
        here[last] = value
    try:
        return SCHEMAS[name].model_validate(tree)
    except ValidationError as error:
        raise UserError(*describe(error, tree)) from None


def _yaml_value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ArgumentTypeError(f"'{text}' is not readable as a value in YAML; quote it") from None
