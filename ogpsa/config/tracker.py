"""The ``tracker`` group."""

from typing import Annotated, Literal

from pydantic import Field

from ogpsa.config.section import Section


class Tracker(Section):
    """The mirror of a run; the run directory stays authoritative. All keys but ``name`` apply to W&B alone."""

    name: Literal["wandb", "tensorboard", "none"]
    project: str = Field(pattern=r"^[^/\\#?%:]+$")
    entity: str | None
    group: str | None
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]]
    mode: Literal["auto", "online", "offline"]
