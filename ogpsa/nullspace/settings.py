"""The settings of the null spaces. Imports nothing heavy: they are validated before torch is loaded."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ogpsa.utils.errors import UserError, closest_match

Rule = Literal["relative", "energy"]
Variant = Literal["paper", "code", "exact"]
# All linear layers but the output head; those with "mlp" in their name; or endings of names.
Modules = Literal["all-linear", "mlp"] | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


@dataclass(frozen=True)
class SpaceSettings:
    """Which directions of a layer's inputs count as null.

    Attributes:
        rule: ``relative`` takes the directions whose eigenvalue is below ``threshold`` times the largest, ``energy``
            the smallest ones that hold at most the share ``threshold`` of all energy.
        skip_first_token: leave out the first token of each row, whose activations are massive.
        max_length: tokens kept of a row.
    """

    rule: Rule
    threshold: float
    skip_first_token: bool
    max_length: int


def selected_layers(names: Iterable[str], modules: Modules) -> list[str]:
    """Those of the linear layers ``names`` that ``modules`` stands for.

    Raises:
        UserError: there is none, or an ending fits none.
    """
    known = list(names)
    if modules == "all-linear":
        return known
    fitting, kinds = meant(known, modules), last_parts(known)
    problems = [
        f"method.modules: '{ending}' fits no linear layer of the model; allowed: all-linear, mlp, or endings of "
        f"names, such as {', '.join(kinds)}{closest_match(ending, kinds)}"
        for ending, found in fitting.items()
        if not found
    ]
    if problems:
        raise UserError(*problems)
    chosen = {name for found in fitting.values() for name in found}
    return [name for name in known if name in chosen]


def meant(names: Iterable[str], modules: Modules) -> dict[str, list[str]]:
    """Those of ``names`` that each part of ``modules`` stands for."""
    if modules == "all-linear":
        return {modules: list(names)}
    if modules == "mlp":
        return {modules: [name for name in names if modules in name]}
    return {ending: [name for name in names if f".{name}".endswith(f".{ending}")] for ending in modules}


def last_parts(names: Iterable[str]) -> list[str]:
    """The names within a layer: ``down_proj``, …."""
    return sorted({name.rpartition(".")[2] for name in names})
