"""The ``data`` group."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ogpsa.config.section import PathText, Section

# Before the names of the held-out sets among the trainer's evaluation sets, which hold the reference sets as well.
HELD_OUT = "held_out_"


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

    @property
    def held_out_names(self) -> list[str]:
        return ["safety", "general"]


class FileData(Section):
    """The user's own rows, one JSON object a line; ``ogpsa/data/rows.py`` states the columns."""

    name: Literal["files", "nspo", "paper", "small"]
    seed: int = Field(ge=0)
    safety: PathText
    reference_sets: dict[str, PathText]
    held_out: dict[str, PathText] = Field(default_factory=dict)

    @field_validator("reference_sets")
    @classmethod
    def _names_are_free(cls, sets: dict[str, str]) -> dict[str, str]:
        for name in sets:
            if name == "training" or name.startswith(HELD_OUT):
                raise ValueError(f"'{name}' is what a trainer calls rows of its own; name the set otherwise")
        return sets

    @property
    def reference_set_names(self) -> list[str]:
        return list(self.reference_sets)

    @property
    def held_out_names(self) -> list[str]:
        return list(self.held_out)


Data = Annotated[TestbedData | FileData, Field(discriminator="name")]
