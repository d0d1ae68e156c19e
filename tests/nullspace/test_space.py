"""Null spaces as pure functions: which directions a rule takes, that both sides are one projection, the control."""

import pytest
import torch
from torch import Tensor

from ogpsa.nullspace.settings import Rule
from ogpsa.nullspace.space import fitting_thresholds, null_space, random_space

EIGENVALUES = [0.0, 1e-6, 0.02, 0.07, 0.91, 99.0]


def moments(eigenvalues: list[float]) -> Tensor:
    """A symmetric matrix with these eigenvalues."""
    width = len(eigenvalues)
    axes, _ = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)).double())
    return axes @ torch.diag(torch.tensor(eigenvalues).double()) @ axes.T


@pytest.mark.parametrize(
    ("rule", "threshold", "dimension"),
    [
        ("relative", 1e-12, 1),
        ("relative", 5e-5, 2),
        ("relative", 1e-3, 4),
        ("relative", 1.0, 5),
        ("energy", 1e-9, 1),
        ("energy", 1e-7, 2),
        # 0.09 of 100 are held by the four smallest, 1.0 by five.
        ("energy", 9.1e-4, 4),
        ("energy", 9.9e-3, 4),
        ("energy", 1.1e-2, 5),
        ("energy", 1.0, 6),
    ],
)
def test_directions_that_a_rule_takes(rule: Rule, threshold: float, dimension: int) -> None:
    space, levels = null_space(moments(EIGENVALUES), rule, threshold)
    assert space.dimension == dimension and space.share == dimension / 6
    assert space.basis.shape[1] == min(dimension, 6 - dimension)
    assert levels[dimension - 1] <= threshold and all(level >= threshold for level in levels[dimension:])
    # This share alone: between the level of the last null direction and the next one.
    low, high = fitting_thresholds(levels, space.share, space.share)
    assert low <= threshold <= high
    assert low == levels[dimension - 1] and high == (levels[dimension] if dimension < 6 else 1)
    assert fitting_thresholds(levels, 0, 1) == (0, 1)
    low, high = fitting_thresholds(levels, 0.4, 0.45)
    assert low == high


@pytest.mark.parametrize("dimension", range(1, 6))
def test_either_side_is_the_same_projection(dimension: int) -> None:
    matrix = moments(EIGENVALUES)
    space, _ = null_space(matrix, "relative", (EIGENVALUES[dimension - 1] * 1.5 + 1e-9) / EIGENVALUES[-1])
    assert space.dimension == dimension
    null = torch.linalg.eigh(matrix).eigenvectors[:, :dimension]
    rows = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    found = space.project(rows)
    torch.testing.assert_close(found, (rows.double() @ null @ null.T).float())
    torch.testing.assert_close(space.project(found), found)
    torch.testing.assert_close(space.outside(rows), rows - found)


@pytest.mark.parametrize("threshold", [0.001, 0.01, 0.1, 0.5])
def test_a_step_in_the_null_space_holds_at_most_the_thresholds_energy(threshold: float) -> None:
    inputs = torch.randn(16, 400, generator=torch.Generator().manual_seed(2)) * torch.logspace(-2, 1, 16)[:, None]
    space, _ = null_space(inputs @ inputs.T, "energy", threshold)
    assert space.project(inputs.T).square().sum() <= threshold * (1 + 1e-5) * inputs.square().sum()


def test_all_directions_are_null_bit_for_bit() -> None:
    space, _ = null_space(moments(EIGENVALUES), "energy", 1.0)
    rows = torch.randn(9, 6)
    assert torch.equal(space.project(rows), rows)
    assert not space.outside(rows).any()


def test_the_control_is_of_equal_dimension() -> None:
    space, _ = null_space(moments(EIGENVALUES), "energy", 9.1e-4)
    one, again, other = (random_space(space, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert one.dimension == space.dimension == 4
    assert torch.equal(one.basis, again.basis) and not torch.equal(one.basis, other.basis)
    torch.testing.assert_close(one.basis.T @ one.basis, torch.eye(2))
