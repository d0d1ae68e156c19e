"""The base of every section of the configuration."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from ogpsa.utils.command_line import home_expanded

# A folder or file, or a hub id: ~ is the home folder.
PathText = Annotated[str, AfterValidator(home_expanded)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values are read-only once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())
