"""The base of every section of the configuration."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from ogpsa.utils.command_line import home_expanded

# A folder or file, or a hub id: ~ is the home folder.
PathText = Annotated[str, AfterValidator(home_expanded)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are read-only once validated.

    The YAML holds the values of a run. A key that runs of earlier revisions lack has a default: what they did.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())
