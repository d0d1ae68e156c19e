"""The ``data`` group."""

from typing import Annotated, Literal

from pydantic import Field

from ogpsa.config.section import PathText, Section


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

    name: Literal["files", "nspo", "paper", "small"]
    seed: int = Field(ge=0)
    safety: PathText
    reference_sets: dict[str, PathText]

    @property
    def reference_set_names(self) -> list[str]:
        return list(self.reference_sets)


Data = Annotated[TestbedData | FileData, Field(discriminator="name")]
