"""Contributed rows: measured by others with this suite and sent in, one YAML each in ``community/``."""

from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import Field

from experiments.rows import SuiteName, experiment_names, validated
from ogpsa.config import Section
from ogpsa.utils.errors import UserError, closest_match
from ogpsa.utils.table import Table

FOLDER = Path(__file__).parent.parent / "community"
TEMPLATE = "template.yaml"
NOTE = (
    "Sent in by others (`community/`) and not run again here; ± is theirs, as their file says. Command and source of "
    "each are in its file."
)
Text = Annotated[str, Field(min_length=1)]
Percent = Annotated[float, Field(ge=0, le=100)]


class Measured(Section):
    """A mean over runs and half the width of its 95% interval, in percent; None where there is one run."""

    mean: Percent
    half_width: Percent | None = None


class Averages(Section):
    """A row's scores, as the tables have them."""

    safety: Measured
    utility: Measured | None = None
    over_refusal: Measured | None = None


class Contribution(Section):
    """``community/<name>.yaml``: one contributed row."""

    experiment: str
    suite: SuiteName
    model: Text
    pipeline: Text
    method: Text
    command: Text
    revision: Text
    seeds: int = Field(ge=1)
    scores: Averages
    who: Text
    date: date
    source: str | None = None


def contributions(folder: Path = FOLDER) -> dict[str, Contribution]:
    """All rows, by the names of their files.

    Raises:
        UserError: one line per problem of a file.
    """
    return {file.stem: read_contribution(file) for file in sorted(folder.glob("*.yaml")) if file.name != TEMPLATE}


def read_contribution(file: Path) -> Contribution:
    """One row.

    Raises:
        UserError: as ``contributions``.
    """
    row = validated(Contribution, file)
    known = experiment_names()
    if row.experiment not in known:
        raise UserError(
            f"{file}: experiment: found '{row.experiment}'; allowed: {', '.join(known)}"
            f"{closest_match(row.experiment, known)}"
        )
    return row


def community_tables(experiment: str, suite: str, folder: Path = FOLDER) -> list[Table]:
    """The contributed rows of an experiment in a suite; none where nobody has sent one."""
    rows = [row for row in contributions(folder).values() if (row.experiment, row.suite) == (experiment, suite)]
    if not rows:
        return []
    columns = ("model", "pipeline", "method", "seeds", "safety ↑", "utility ↑", "over-refusal ↓", "who", "revision")
    cells = [
        [row.model, row.pipeline, row.method, str(row.seeds), *map(_cell, _scores(row)), row.who, row.revision]
        for row in rows
    ]
    return [Table(columns, cells, "Rows of others", notes=[NOTE])]


def _scores(row: Contribution) -> tuple[Measured | None, ...]:
    return row.scores.safety, row.scores.utility, row.scores.over_refusal


def _cell(measured: Measured | None) -> str:
    if measured is None:
        return ""
    half_width = "–" if measured.half_width is None else f"{measured.half_width:.1f}"
    return f"{measured.mean:.1f} ± {half_width}"
