"""The stored basis: its sums, its update and its memory, in every dtype and for every shape of parameters."""

import weakref
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ogpsa.projection import orthonormal_basis
from ogpsa.subspace.basis import Basis

Dtype = Literal["fp32", "bf16", "int8"]
DTYPES: list[Dtype] = ["fp32", "bf16", "int8"]
# Several pieces, a last block of int8 that is not full, one element, and a parameter that is not on this process.
SIZES = [200_003, 65_536, 70, 1, 0]
RANKS = [3, 1, 0, 3, 2]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn() -> tuple[list[Tensor], list[Tensor]]:
    """Rows and a vector per parameter."""
    shapes = list(zip(RANKS, SIZES, strict=True))
    rows = [random(index, rank, size) for index, (rank, size) in enumerate(shapes)]
    return rows, [random(100 + index, size) for index, size in enumerate(SIZES)]


def as_stored(basis: Basis, sizes: list[int]) -> list[Tensor]:
    """The rows [k, n] in fp64, from what a checkpoint holds."""
    state = basis.state_dict()
    rows = []
    for index, size in enumerate(sizes):
        block = state[f"basis.{index}"].double()[:, :size]
        if f"scales.{index}" in state:
            block = block * state[f"scales.{index}"].double().repeat_interleave(64, dim=1)[:, :size]
        rows.append(block)
    return rows


@every_dtype
def test_dots_are_those_of_fp64(dtype: Dtype) -> None:
    rows, vectors = drawn()
    basis = Basis.store(rows, dtype, "device")
    found = basis.dots(vectors)
    assert basis.rank == 3
    assert found.shape == (len(SIZES), 4) and found.dtype == torch.float64
    for line, block, vector in zip(found, as_stored(basis, SIZES), vectors, strict=True):
        exact = torch.zeros(4, dtype=torch.float64)
        exact[: len(block)] = block @ vector.double()
        exact[-1] = vector.double().square().sum()
        scale = torch.ones(4, dtype=torch.float64)
        scale[: len(block)] = block.norm(dim=1)
        assert (
            (line - exact).abs() <= 1e-6 * scale * vector.double().norm() * torch.tensor([1, 1, 1, vector.norm()])
        ).all()


@pytest.mark.parametrize("value", [0.1, 1e-6])
def test_the_norm_of_equal_elements_does_not_drift(value: float) -> None:
    vector = torch.full((3_000_000,), value)
    found = Basis.store([random(0, 1, len(vector))], "fp32", "device").dots([vector])[0, -1]
    exact = float(vector[0].double() ** 2) * len(vector)
    assert float(found) == pytest.approx(exact, rel=2e-5)


def test_dots_of_millions_of_positive_elements_do_not_drift() -> None:
    # In one fp32 sum these are off by more than 1e-4.
    rows, vector = random(0, 2, 5_000_000).abs(), random(1, 5_000_000).abs()
    exact = rows.double() @ vector.double()
    found = Basis.store([rows], "fp32", "device").dots([vector])[0, :-1]
    assert torch.allclose(found, exact, rtol=1e-6, atol=0)


@every_dtype
def test_subtract_is_that_of_fp64(dtype: Dtype) -> None:
    rows, vectors = drawn()
    basis = Basis.store(rows, dtype, "device")
    coefficients = random(7, len(SIZES), 3).double()
    before, memory = [vector.double() for vector in vectors], [vector.data_ptr() for vector in vectors]
    basis.subtract_(vectors, coefficients)
    assert [vector.data_ptr() for vector in vectors] == memory
    for vector, old, block, x in zip(vectors, before, as_stored(basis, SIZES), coefficients, strict=True):
        assert ((vector.double() - (old - block.T @ x[: len(block)])).abs() <= 2e-6 * (1 + old.abs())).all()


@every_dtype
def test_gram_is_that_of_the_rounded_rows(dtype: Dtype) -> None:
    rows, _ = drawn()
    basis = Basis.store(rows, dtype, "device")
    found = basis.gram()
    assert found.shape == (len(SIZES), 3, 3) and found.dtype == torch.float64
    for table, block in zip(found, as_stored(basis, SIZES), strict=True):
        exact = torch.zeros(3, 3, dtype=torch.float64)
        exact[: len(block), : len(block)] = block @ block.T
        # fp64, but for the products of number and scale in int8, which are fp32.
        assert torch.allclose(table, exact, rtol=1e-6, atol=1e-6 * float(exact.diagonal().max()))


@pytest.mark.parametrize(("dtype", "leak"), [("fp32", 1e-6), ("bf16", 1e-4), ("int8", 1e-3)])
def test_rounding_only_tilts_the_span(dtype: Dtype, leak: float) -> None:
    size, rank = 150_000, 4
    exact = orthonormal_basis(random(0, size, rank), rank).double()
    # Half of the squared norm is inside: far more than of any safety gradient.
    outside = random(1, size)
    vector = (exact @ random(2, rank).double()).float()
    vector = vector / vector.norm() + outside / outside.norm()
    norm = float(vector.double().norm())
    rows = exact.T.float()
    basis = Basis.store(list(rows.split([100_000, 50_000], dim=1)), dtype, "device")
    vectors = list(vector.split([100_000, 50_000]))
    inner = basis.dots(vectors)[:, :-1].sum(dim=0)
    removed = torch.linalg.solve(basis.gram().sum(dim=0), inner)
    basis.subtract_(vectors, removed.expand(2, rank))
    stored = torch.cat(as_stored(basis, [100_000, 50_000]), dim=1)
    assert float((stored @ vector.double()).norm()) <= 1e-6 * norm
    assert float((exact.T @ vector.double()).norm()) <= leak * norm


@every_dtype
@pytest.mark.parametrize("place", ["device", "host"])
def test_a_checkpoint_restores_it_bit_for_bit(dtype: Dtype, place: Literal["device", "host"], tmp_path: Path) -> None:
    rows, vectors = drawn()
    basis = Basis.store(rows, dtype, place)
    save_file(basis.state_dict(), tmp_path / "basis.safetensors")
    for kind in (dtype, "auto"):
        restored = Basis.load(load_file(tmp_path / "basis.safetensors"), kind, place, "cpu")
        state = restored.state_dict()
        assert state.keys() == basis.state_dict().keys()
        assert all(
            torch.equal(tensor, state[name]) and tensor.dtype == state[name].dtype
            for name, tensor in basis.state_dict().items()
        )
        assert restored.rank == basis.rank and restored.nbytes == basis.nbytes
        assert torch.equal(restored.dots(vectors), basis.dots(vectors))
        assert torch.equal(restored.gram(), basis.gram())


def test_a_basis_of_another_dtype_is_refused() -> None:
    state = Basis.store([random(0, 2, 100)], "bf16", "device").state_dict()
    with pytest.raises(ValueError, match=r"bfloat16.*int8"):
        Basis.load(state, "int8", "device", "cpu")


@pytest.mark.parametrize(("dtype", "bytes_each"), [("fp32", 4), ("bf16", 2), ("int8", 1 + 4 / 64)])
def test_what_it_takes(dtype: Dtype, bytes_each: float) -> None:
    sizes = [6_400, 64, 0]
    basis = Basis.store([random(0, 3, size) for size in sizes], dtype, "device")
    assert basis.nbytes == 3 * sum(sizes) * bytes_each


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_storing_frees_the_rows_one_parameter_at_a_time(dtype: Dtype) -> None:
    rows = [random(index, 2, 100) for index in range(3)]
    held = [weakref.ref(block) for block in rows]
    basis = Basis.store(rows, dtype, "device")
    assert rows == []
    assert [reference() for reference in held] == [None] * 3
    assert basis.rank == 2


@every_dtype
def test_zero_rows_stay_zero(dtype: Dtype) -> None:
    rows = random(0, 2, 300)
    rows[0] = 0
    rows[1, 64:128] = 0
    basis = Basis.store([rows.clone()], dtype, "device")
    assert torch.equal(as_stored(basis, [300])[0][rows == 0], torch.zeros(int((rows == 0).sum()), dtype=torch.float64))


def test_without_any_rows_a_vector_stays_as_it_is() -> None:
    basis = Basis.store([torch.empty(0, 100), torch.empty(0, 7)], "fp32", "device")
    vectors = [random(0, 100), random(1, 7)]
    assert basis.rank == 0 and basis.nbytes == 0
    assert basis.gram().shape == (2, 0, 0)
    norms = torch.stack([vector.double().square().sum() for vector in vectors])
    assert torch.allclose(basis.dots(vectors), norms[:, None], rtol=1e-6)
    basis.subtract_(vectors, torch.empty(2, 0, dtype=torch.float64))
    assert torch.equal(vectors[0], random(0, 100))
