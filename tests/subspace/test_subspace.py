"""The subspace over several parameters: scopes, sides, what it reports and how it is stored."""

import itertools
import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ogpsa.projection import orthonormal_basis, project
from ogpsa.subspace.subspace import Layout, Subspace

Scope = Literal["global", "tensor"]
Sided = Literal["two", "conflict"]
PARAMETERS = [(16, 12), (40,), (6, 5, 4)]
SCOPES: list[Scope] = ["global", "tensor"]
KINDS: list[tuple[Scope, Sided]] = list(itertools.product(SCOPES, ["two", "conflict"]))
NAMES = ["helpfulness", "truthfulness", "preference"]
TOLERANCE = 1e-6


def drawn(seed: int, count: int = len(NAMES)) -> tuple[list[Tensor], list[Tensor]]:
    """Reference rows [m, n] and a gradient per parameter."""
    generator = torch.Generator().manual_seed(seed)
    references = [torch.randn(count, math.prod(shape), generator=generator) for shape in PARAMETERS]
    return references, [torch.randn(shape, generator=generator) for shape in PARAMETERS]


def estimated(references: list[Tensor], rank: int, scope: Scope = "global", sided: Sided = "two") -> Subspace:
    subspace = Subspace(rank, scope, sided)
    subspace.estimate(list(references), NAMES[: len(references[0])])
    return subspace


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).double()


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_global_scope_projects_the_concatenated_gradient(rank: int) -> None:
    references, gradients = drawn(0)
    subspace = estimated(references, rank)
    assert subspace.effective_rank == min(rank, 3)
    expected = project(flat(gradients), orthonormal_basis(torch.cat(references, dim=1).double().T, rank))
    subspace.project_(gradients)
    assert (flat(gradients) - expected).norm() < TOLERANCE * expected.norm()


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_tensor_scope_projects_each_parameter_alone(rank: int) -> None:
    references, gradients = drawn(1)
    # A parameter that one reference does not touch has the smaller rank.
    references[1][0] = 0
    subspace = estimated(references, rank, "tensor")
    assert subspace.effective_rank == min(rank, 3)
    expected = [
        project(gradient.double().flatten(), orthonormal_basis(rows.double().T, rank))
        for rows, gradient in zip(references, gradients, strict=True)
    ]
    subspace.project_(gradients)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert (gradient.flatten().double() - wanted).norm() < TOLERANCE * wanted.norm()


def test_parameters_that_no_reference_touches_are_left_alone() -> None:
    references, gradients = drawn(2)
    references[1].zero_()
    for scope in SCOPES:
        found = copies(gradients)
        estimated(references, 3, scope).project_(found)
        assert torch.equal(found[1], gradients[1])


@pytest.mark.parametrize("seed", range(5))
def test_conflict_opposes_no_reference(seed: int) -> None:
    references, gradients = drawn(seed)
    table = torch.cat(references, dim=1).double()
    # Nearly inside the span and against every reference: the hardest case for rounding.
    weights = -torch.rand(3, generator=torch.Generator().manual_seed(seed)).double()
    pushed = (table.T @ weights).float().split([math.prod(shape) for shape in PARAMETERS])
    hard = [1e-3 * g + part.view(g.shape) for g, part in zip(gradients, pushed, strict=True)]
    for case in (gradients, hard):
        found = copies(case)
        estimated(references, 3, "global", "conflict").project_(found)
        cosines = table @ flat(found) / (table.norm(dim=1) * flat(found).norm())
        assert float(cosines.min()) >= -TOLERANCE
        two = copies(case)
        estimated(references, 3).project_(two)
        assert flat(found).norm() >= flat(two).norm() * (1 - TOLERANCE)


@pytest.mark.parametrize("scope", SCOPES)
def test_conflict_is_the_identity_without_conflict(scope: Scope) -> None:
    references, gradients = drawn(3)
    for rows, gradient in zip(references, gradients, strict=True):
        rows *= torch.sign(rows @ gradient.flatten())[:, None]
    found = copies(gradients)
    report = estimated(references, 3, scope, "conflict").project_(found)
    assert all(torch.equal(after, before) for after, before in zip(found, gradients, strict=True))
    assert report["norm_retained"] == 1.0
    assert report["cosine"] > 0


def test_conflict_removes_only_the_opposed_reference() -> None:
    references = [torch.tensor([[2.0, 0, 0, 0], [0, 3.0, 0, 0]])]
    gradient = torch.tensor([-5.0, 7.0, 1.0, -1.0])
    estimated(references, 2, "global", "conflict").project_([gradient])
    torch.testing.assert_close(gradient, torch.tensor([0.0, 7.0, 1.0, -1.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("scope", "sided"), KINDS)
@pytest.mark.parametrize("rank", [1, 3])
def test_reported_numbers_are_those_of_the_gradient(rank: int, scope: Scope, sided: Sided) -> None:
    references, gradients = drawn(4)
    before, inside = flat(gradients), copies(gradients)
    estimated(references, rank, scope).project_(inside)
    report = estimated(references, rank, scope, sided).project_(gradients)
    assert report["norm_retained"] == pytest.approx(float(flat(gradients).norm() / before.norm()), rel=1e-6)
    assert report["cosine"] == pytest.approx(float((before - flat(inside)).norm() / before.norm()), rel=1e-5)


@pytest.mark.parametrize("sided", ["two", "conflict"])
def test_signed_cosines_are_those_with_the_references(sided: Sided) -> None:
    """Whole and by layer group; of an optimizer's step, which points against the gradient, the negative."""
    references, gradients = drawn(6)
    layout = Layout(groups=["first", "first", "last"], references=NAMES)
    subspace = Subspace(len(NAMES), sided=sided, layout=layout)
    subspace.estimate(list(references), NAMES)
    measured = subspace.measure([gradient.flatten() for gradient in gradients])
    report = subspace.report(measured)
    for index, name in enumerate(NAMES):
        rows = [reference[index] for reference in references]
        for group, part in (("", slice(None)), ("first/", slice(0, 2)), ("last/", slice(2, None))):
            expected = torch.cosine_similarity(flat(rows[part]), flat(gradients[part]), dim=0)
            assert report[f"{group}signed_cosine/{name}"] == pytest.approx(float(expected), abs=1e-6)
    assert subspace.report(measured, sign=-1)["signed_cosine/helpfulness"] == -report["signed_cosine/helpfulness"]


@pytest.mark.parametrize(("scope", "sided"), KINDS)
def test_a_zero_gradient_stays_zero(scope: Scope, sided: Sided) -> None:
    references, gradients = drawn(5)
    zeros = [torch.zeros_like(gradient) for gradient in gradients]
    report = estimated(references, 3, scope, sided).project_(zeros)
    assert report == {"norm_retained": 1.0, "cosine": 0.0}
    assert not flat(zeros).any()


@pytest.mark.parametrize(("scope", "sided"), KINDS)
@pytest.mark.parametrize("rank", [0, 2, 3])
def test_a_stored_subspace_projects_bit_for_bit(rank: int, scope: Scope, sided: Sided, tmp_path: Path) -> None:
    references, gradients = drawn(6)
    references[2].zero_()
    subspace = estimated(references, rank, scope, sided)
    save_file(subspace.state_dict(), tmp_path / "subspace.safetensors")
    restored = Subspace(rank, scope, sided)
    restored.load_state_dict(load_file(tmp_path / "subspace.safetensors"))
    stored, loaded = subspace.state_dict(), restored.state_dict()
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[key], loaded[key]) and stored[key].dtype == loaded[key].dtype for key in stored)
    assert restored.effective_rank == subspace.effective_rank
    first, second = copies(gradients), copies(gradients)
    assert subspace.project_(first) == restored.project_(second)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(("scope", "sided"), KINDS)
def test_rank_zero_changes_nothing(scope: Scope, sided: Sided) -> None:
    references, gradients = drawn(7)
    found = copies(gradients)
    subspace = estimated(references, 0, scope, sided)
    assert subspace.effective_rank == 0
    assert subspace.project_(found) == {"norm_retained": 1.0, "cosine": 0.0}
    assert all(torch.equal(after, before) for after, before in zip(found, gradients, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reference_set_whose_gradient_is_not_finite_is_named(value: float) -> None:
    references, _ = drawn(8)
    subspace = estimated(references, 3)
    before = subspace.state_dict()
    references[2][1, 7] = value
    with pytest.raises(ValueError, match="reference gradient of 'truthfulness' holds NaN or Inf"):
        subspace.estimate(list(references), NAMES)
    after = subspace.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
