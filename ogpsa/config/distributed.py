"""The ``distributed`` group."""

from typing import Literal

from pydantic import Field

from ogpsa.config.section import Section

Mode = Literal["single", "ddp", "fsdp2", "zero2", "zero3"]


class Distributed(Section):
    """Distribution of the work over the processes that torchrun starts (``ogpsa/distributed/launch.py``)."""

    name: Mode
    processes: int | None = Field(ge=1)
