"""The ``eval`` group."""

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ogpsa.config.identity import without_inert
from ogpsa.config.section import PathText, Section


class EndpointSettings(Section):
    """Access to an endpoint that speaks OpenAI's protocol (``ogpsa/utils/endpoint.py``)."""

    base_url: str | None
    api_key_env: str
    concurrency: int = Field(ge=1)
    timeout: float = Field(gt=0)
    attempts: int = Field(ge=1)


class ModelEndpoint(EndpointSettings):
    """A model behind an endpoint that is paid for by the call."""

    model: str
    max_calls: int | None = Field(ge=0)


class Backend(EndpointSettings):
    """The generator of the responses: the checkpoint in this process or in vLLM, or a server that holds it."""

    name: Literal["model", "vllm", "server"]
    model: str | None

    @model_validator(mode="after")
    def _a_server_has_an_address(self) -> "Backend":
        if self.name == "server" and not (self.base_url and self.model):
            raise ValueError("backend.name=server needs backend.base_url and backend.model")
        return self


def _without_null(values: object) -> object:
    """A mapping without its null values, each of which stands for the judge's own default."""
    if not isinstance(values, dict):
        return values
    return {name: value for name, value in values.items() if value is not None}


class JudgeSettings(ModelEndpoint):
    """The judges' endpoint and weights (``eval/judging``).

    Attributes:
        dir: folder with the user's judges.
        prompt_file: files whose text replaces a judge's own prompt, by the judge's name.
        weights: hub id or folder in place of a judge's own weights, by the judge's name.
        members: judges in place of a panel's own members, by the panel's name.
    """

    dir: PathText | None = None
    prompt_file: Annotated[dict[str, PathText], BeforeValidator(_without_null)]
    weights: Annotated[dict[str, PathText], BeforeValidator(_without_null)]
    members: Annotated[dict[str, list[str]], BeforeValidator(_without_null)] = Field(default_factory=dict)
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
    limits: dict[str, Annotated[int, Field(ge=1)] | None] = Field(default_factory=dict)
    sample_seed: int | None = Field(ge=0)
    max_new_tokens: int | None = Field(default=None, ge=1)
    batch_size: int = Field(ge=1)
    batch_tokens: int = Field(default=131072, ge=1)
    data_dir: PathText | None
    task_dir: PathText | None = None
    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    backend: Backend
    judge: JudgeSettings

    @property
    def groups(self) -> dict[str, list[str]]:
        """The members of each average; benchmarks that are only ``reported`` are in none."""
        averages = {"safety": self.safety, "utility": self.utility, "over_refusal": self.over_refusal}
        return averages | {"reported": self.reported}

    @property
    def benchmarks(self) -> list[str]:
        """All benchmarks that run; a composite's parts replace it."""
        return [part for group in self.groups.values() for part in self.parts(group)]

    def parts(self, names: Sequence[str]) -> list[str]:
        """The single benchmarks that ``names`` stand for; a composite stands for its parts."""
        return [part for name in names for part in self.composites.get(name, [name])]

    def rows_of(self, benchmark: str) -> int | None:
        """Number of a benchmark's rows that are asked; None: all."""
        return self.limits.get(benchmark, self.limit)

    def key(self) -> str:
        """Eight hexadecimal digits that name these settings."""
        text = json.dumps(without_inert(self.model_dump(mode="json"), "eval."), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]
