"""The projection's mathematics, against fp64 linear algebra and closed forms."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from ogpsa.projection import CHUNK, dots, feasible_coefficients, orthonormal_basis, project

SHAPES = [(30, 1), (200, 3), (1000, 8)]
# Relative; fp32 resolves 6e-8.
TOLERANCE = 1e-6


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def directions(references: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span by fp64 QR."""
    basis: Tensor = torch.linalg.qr(references.double()).Q
    return basis


def sine(basis: Tensor, others: Tensor) -> float:
    """Sine of the largest principal angle from ``basis`` to the span of the orthonormal ``others``, in fp64."""
    outside = basis.double() - others @ (others.T @ basis.double())
    return float(torch.linalg.matrix_norm(outside, 2))


def largest_cosine(vector: Tensor, columns: Tensor) -> float:
    """Largest |cosine| between the vector and a column, in fp64."""
    columns = columns.double()
    return float((columns.T @ vector.double()).div(columns.norm(dim=0) * vector.double().norm()).abs().max())


def assert_orthonormal(basis: Tensor, tolerance: float = 1e-5) -> None:
    gram = basis.double().T @ basis.double()
    torch.testing.assert_close(gram, torch.eye(basis.shape[1], dtype=torch.double), rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_basis_is_orthonormal_and_no_wider_than_rank_or_references(seed: int, shape: tuple[int, int]) -> None:
    references = random(seed, *shape)
    for rank in range(shape[1] + 3):
        basis = orthonormal_basis(references, rank)
        assert basis.shape == (shape[0], min(rank, shape[1]))
        assert basis.dtype == references.dtype
        assert_orthonormal(basis)


@pytest.mark.parametrize("seed", range(5))
def test_smaller_rank_keeps_the_leading_singular_directions(seed: int) -> None:
    scales = torch.tensor([1.0, 8.0, 0.5, 4.0, 2.0])
    references = random(seed, 400, 5) * scales
    singular = torch.linalg.svd(references.double(), full_matrices=False).U
    for rank in range(1, 5):
        assert sine(orthonormal_basis(references, rank), singular[:, :rank]) < 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_full_rank_spans_every_reference(seed: int) -> None:
    references = random(seed, 400, 5)
    assert sine(orthonormal_basis(references, 5), directions(references)) < TOLERANCE


def test_zero_and_dependent_references_lower_the_rank() -> None:
    first, second = random(0, 300), random(1, 300)
    references = torch.stack([first, torch.zeros(300), first, second, -2 * first, first + second], dim=1)
    for rank in (2, 5, 6, 9):
        basis = orthonormal_basis(references, rank)
        assert basis.shape == (300, 2)
        assert_orthonormal(basis)
        assert sine(basis, directions(references[:, [0, 3]])) < TOLERANCE
    assert orthonormal_basis(torch.zeros(300, 3), 3).shape == (300, 0)
    assert orthonormal_basis(torch.zeros(300, 0), 3).shape == (300, 0)


@pytest.mark.parametrize("cosine", [0.9999, 1 - 1e-6, 1 - 1e-9])
@pytest.mark.parametrize("seed", range(3))
def test_near_parallel_references_are_both_covered(seed: int, cosine: float) -> None:
    both = directions(random(seed, 500, 2))
    near = cosine * both[:, 0] + (1 - cosine**2) ** 0.5 * both[:, 1]
    references = torch.stack([both[:, 0], near], dim=1).float()
    basis = orthonormal_basis(references, 2)
    assert basis.shape == (500, 2)
    assert_orthonormal(basis, 1e-7)
    # Against the span of the two as fp32 holds them; their difference is what a careless basis loses.
    projected = project(random(seed + 100, 500), basis)
    first, second = references.double().T
    assert largest_cosine(projected, torch.stack([first, second, second - first], dim=1)) < TOLERANCE


@pytest.mark.parametrize("short", [1e-6, 1e-15])
def test_a_short_reference_is_not_lost_beside_a_long_one(short: float) -> None:
    references = random(0, 500, 3) * torch.tensor([1.0, short, 1.0])
    basis = orthonormal_basis(references, 3)
    assert basis.shape == (500, 3)
    assert_orthonormal(basis)
    assert largest_cosine(project(random(1, 500), basis), references) < TOLERANCE


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", [0, 2])
def test_a_reference_that_is_not_finite_is_named(value: float, column: int) -> None:
    references = random(0, 100, 3)
    references[57, column] = value
    with pytest.raises(ValueError, match=f"reference {column} of 3 holds NaN or Inf"):
        orthonormal_basis(references, 3)


def test_a_negative_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="rank is -1; it must be 0 or more"):
        orthonormal_basis(random(0, 100, 3), -1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_projection_leaves_nothing_along_basis_or_references(seed: int, shape: tuple[int, int]) -> None:
    references = random(seed, *shape)
    basis = orthonormal_basis(references, shape[1])
    gradient = random(seed + 100, shape[0])
    projected = project(gradient, basis)
    assert projected.dtype == gradient.dtype
    assert largest_cosine(projected, basis) < TOLERANCE
    assert largest_cosine(projected, references) < TOLERANCE
    span = directions(references)
    exact = gradient.double() - span @ (span.T @ gradient.double())
    assert (projected.double() - exact).norm() < TOLERANCE * exact.norm()


@pytest.mark.parametrize("outside", [1e-2, 1e-4])
@pytest.mark.parametrize("seed", range(4))
def test_what_stays_of_a_gradient_almost_inside_the_span_is_orthogonal(seed: int, outside: float) -> None:
    references = random(seed, 1000, 4)
    basis = orthonormal_basis(references, 4)
    inside = references @ random(seed + 100, 4)
    gradient = inside + outside * random(seed + 200, 1000)
    projected = project(gradient, basis)
    assert projected.norm() < 2 * outside * gradient.norm()
    assert largest_cosine(projected, basis) < TOLERANCE
    assert largest_cosine(projected, references) < TOLERANCE


@pytest.mark.parametrize("seed", range(4))
def test_a_gradient_inside_the_span_vanishes(seed: int) -> None:
    references = random(seed, 1000, 4)
    gradient = references @ random(seed + 100, 4)
    assert project(gradient, orthonormal_basis(references, 4)).norm() < TOLERANCE * gradient.norm()


@pytest.mark.parametrize("seed", range(4))
def test_projecting_twice_is_projecting_once(seed: int) -> None:
    basis = orthonormal_basis(random(seed, 700, 5), 3)
    once = project(random(seed + 100, 700), basis)
    assert (project(once, basis) - once).norm() < TOLERANCE * once.norm()


def test_rank_zero_returns_the_gradient_bit_for_bit() -> None:
    gradient = torch.cat([random(0, 500), torch.tensor([0.0, -0.0, 1e-45, -3e38])])
    projected = project(gradient, orthonormal_basis(random(1, 504, 3), 0))
    assert torch.equal(projected.view(torch.int32), gradient.view(torch.int32))


def test_inner_products_are_fp64_across_chunks() -> None:
    rows = random(0, 2, 2 * CHUNK["cpu"] + 3) + 10
    exact = rows.double() @ rows.double().T
    torch.testing.assert_close(dots(rows, rows), exact, rtol=1e-13, atol=0)


def coordinates(seed: int, rank: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(rank, count, generator=generator, dtype=torch.double)
    return table, torch.randn(rank, generator=generator, dtype=torch.double)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 3), (3, 7), (8, 8)])
@pytest.mark.parametrize("seed", range(5))
def test_feasible_coefficients_oppose_no_reference_and_are_the_nearest(seed: int, shape: tuple[int, int]) -> None:
    table, coefficients = coordinates(seed, *shape)
    feasible = feasible_coefficients(coefficients, table)
    assert float((table.T @ feasible).min()) >= -1e-10
    # The primal problem by another solver.
    A, c = table.numpy(), coefficients.numpy()
    found = minimize(
        lambda x: 0.5 * np.sum((x - c) ** 2),
        np.zeros_like(c),
        jac=lambda x: x - c,
        constraints={"type": "ineq", "fun": lambda x: A.T @ x, "jac": lambda x: A.T},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(feasible.numpy(), found.x, atol=1e-5)
    assert float((feasible - coefficients).norm()) <= float(np.linalg.norm(found.x - c)) + 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_feasible_coefficients_stay_bit_for_bit(seed: int) -> None:
    table, coefficients = coordinates(seed, 4, 3)
    # Turn every reference that is opposed.
    table = table * torch.sign(table.T @ coefficients)
    assert torch.equal(feasible_coefficients(coefficients, table), coefficients)


@pytest.mark.parametrize("seed", range(10))
def test_one_reference_gives_a_gem(seed: int) -> None:
    table, coefficients = coordinates(seed, 4, 1)
    reference = table[:, 0]
    reference *= -torch.sign(reference @ coefficients)
    expected = coefficients - (reference @ coefficients) / (reference @ reference) * reference
    torch.testing.assert_close(feasible_coefficients(coefficients, table), expected, rtol=0, atol=1e-12)


def test_opposite_references_leave_only_what_is_orthogonal_to_both() -> None:
    table = torch.tensor([[1.0, -1.0], [0.0, 0.0]], dtype=torch.double)
    found = feasible_coefficients(torch.tensor([3.0, -2.0], dtype=torch.double), table)
    torch.testing.assert_close(found, torch.tensor([0.0, -2.0], dtype=torch.double), rtol=0, atol=1e-12)
