"""The GPU kernels against fp64 on the CPU: on a GPU where there is one, else in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need Triton, which comes with torch for CUDA and not with the lock")

RANKS = [1, 2, 3, 8, 32]
DTYPES = [torch.float32, torch.bfloat16]
# Whole tiles and a tail, with wide loads and without; tails alone; nothing.
SIZES = [2056, 0, 1, 1029, 40, 21, 0]
# The same for the spans of 32768 elements that one program works on.
SPANS = [65536, 33000, 32805]
# The interpreter has to be chosen before Triton is imported, so the kernels run in a process of their own.
WORKER = """
import sys, torch
from ogpsa.subspace import kernels
cases = torch.load(sys.argv[1], map_location="cuda" if torch.cuda.is_available() else "cpu")
for case in cases.values():
    case["table"] = kernels.dots(case["rows"], case["vectors"])
    case["again"] = kernels.dots(case["rows"], case["vectors"])
    kernels.subtract_(case["rows"], case["vectors"], case["coefficients"])
torch.save(cases, sys.argv[1])
"""

Case = dict[str, list[Tensor] | Tensor]


def fenced(tensor: Tensor, shift: int = 0) -> tuple[Tensor, Tensor]:
    """The tensor between NaNs, ``shift`` elements off the alignment that memory comes with, and with those NaNs."""
    storage = torch.full((tensor.numel() + 64 + shift,), torch.nan, dtype=tensor.dtype)
    inside = storage[32 + shift : 32 + shift + tensor.numel()].view(tensor.shape)
    return inside.copy_(tensor), storage


def drawn(rank: int, row_dtype: torch.dtype, vector_dtype: torch.dtype, sizes: list[int]) -> Case:
    generator = torch.Generator().manual_seed(rank)
    rows = [fenced(torch.randn(rank, size, generator=generator).to(row_dtype)) for size in sizes]
    # The fifth is long enough for wide loads, but starts where none is allowed.
    vectors = [
        fenced(torch.randn(size, generator=generator).to(vector_dtype), shift=int(index == 4))
        for index, size in enumerate(sizes)
    ]
    return {
        "rows": [tensor for tensor, _ in rows],
        "vectors": [tensor for tensor, _ in vectors],
        "coefficients": torch.randn(len(sizes), rank, generator=generator, dtype=torch.float64),
        "storages": [storage for _, storage in rows + vectors],
    }


CASES = {f"{rank}-{dtype}": (rank, dtype, torch.float32, SIZES) for dtype in DTYPES for rank in RANKS}
CASES["bf16-vectors"] = (3, torch.bfloat16, torch.bfloat16, SIZES)
CASES["spans"] = (2, torch.bfloat16, torch.float32, SPANS)
each_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    path = tmp_path_factory.mktemp("kernels") / "cases.pt"
    torch.save({name: drawn(*case) for name, case in CASES.items()}, path)
    environment = dict(os.environ) if torch.cuda.is_available() else os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", WORKER, path], env=environment, cwd=root, check=True)
    return torch.load(path, map_location="cpu")


@pytest.mark.slow
@each_case
def test_dots_are_the_inner_products_and_the_squared_norm(outcomes: dict[str, Case], name: str) -> None:
    case = drawn(*CASES[name])
    table = outcomes[name]["table"]
    assert table.dtype == torch.float64
    for row, vector, found in zip(case["rows"], case["vectors"], table, strict=True):
        row, vector = row.double(), vector.double()
        assert (found[:-1] - row @ vector).abs().max() <= 1e-6 * row.norm(dim=1).max() * vector.norm()
        assert (found[-1] - vector @ vector).abs() <= 1e-6 * (vector @ vector)


@pytest.mark.slow
@each_case
def test_dots_repeat_bit_for_bit(outcomes: dict[str, Case], name: str) -> None:
    assert torch.equal(outcomes[name]["table"], outcomes[name]["again"])


@pytest.mark.slow
@each_case
def test_the_update_keeps_fp32_coefficients_and_rounds_once(outcomes: dict[str, Case], name: str) -> None:
    case = drawn(*CASES[name])
    # One unit in the last place of the vector's dtype (the interpreter cuts where a GPU rounds to nearest), and
    # what fp32 rounds in the sum.
    rounding = torch.finfo(CASES[name][2]).eps
    for row, vector, coefficients, found in zip(
        case["rows"], case["vectors"], case["coefficients"], outcomes[name]["vectors"], strict=True
    ):
        expected = vector.double() - coefficients @ row.double()
        magnitude = vector.double().abs() + coefficients.abs() @ row.double().abs()
        assert found.dtype == vector.dtype
        assert ((found.double() - expected).abs() <= rounding * expected.abs() + 2e-6 * magnitude).all()


@pytest.mark.slow
@each_case
def test_only_the_vectors_are_written(outcomes: dict[str, Case], name: str) -> None:
    before, after = drawn(*CASES[name]), outcomes[name]
    for index, (old, new) in enumerate(zip(before["storages"], after["storages"], strict=True)):
        if index < len(before["rows"]):
            assert torch.equal(old.nan_to_num(7.0), new.nan_to_num(7.0))
        else:
            assert torch.equal(old.isnan(), new.isnan())


@pytest.mark.parametrize(
    ("rows", "vector", "complaint"),
    [
        (torch.zeros(33, 8), torch.zeros(8), "the rank is 33"),
        (torch.zeros(0, 8), torch.zeros(8), "the rank is 0"),
        (torch.zeros(2, 8), torch.zeros(9), "parameter 0 has rows"),
        (torch.zeros(2, 2, 4), torch.zeros(2, 4), "parameter 0 has rows"),
        (torch.zeros(8, 2).T, torch.zeros(8), "not contiguous"),
        (torch.zeros(2, 8), torch.zeros(16)[::2], "not contiguous"),
        (torch.zeros(2, 8, dtype=torch.float16), torch.zeros(8), "rows are torch.float16"),
    ],
)
def test_what_the_kernels_cannot_address_is_refused(rows: Tensor, vector: Tensor, complaint: str) -> None:
    from ogpsa.subspace import kernels

    with pytest.raises(ValueError, match=complaint):
        kernels.dots([rows], [vector])


def test_coefficients_of_another_shape_are_refused() -> None:
    from ogpsa.subspace import kernels

    with pytest.raises(ValueError, match=r"\(1, 3\), not \(1, 2\)"):
        kernels.subtract_([torch.zeros(2, 8)], [torch.zeros(8)], torch.zeros(1, 3))
