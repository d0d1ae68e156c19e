"""The checks of ``benchmarks/gpu.sh`` on a fake GPU, at the widths of Qwen2.5-7B and one layer."""

from importlib import import_module
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from benchmarks import projection
from benchmarks.architectures import architecture
from benchmarks.common import Copy
from benchmarks.memory import Case, train
from benchmarks.one_model import OneModel
from benchmarks.worker import Job, Procedure
from ogpsa.preflight.memory import estimate, shape_of
from ogpsa.subspace.basis import StoredDtype
from ogpsa.subspace.settings import BasisDevice
from tests.fake_cuda import CUDA, FakeCuda, fake_cuda

LARGE = 1 << 24
PROCEDURES: tuple[Procedure, ...] = get_args(Procedure)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fake GPU for models: transformers takes it for one, and attention is the kernel that CUDA would choose."""
    monkeypatch.setattr("transformers.utils.import_utils.is_fake_tensor", lambda tensor: False)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", _attention)
    with fake_cuda() as mode:
        yield mode


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Flash attention of bf16 without a mask; torch's choice is made in C++, which knows of no CUDA here."""
    assert attn_mask is None and query.is_cuda
    if enable_gqa:
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
    query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
    found: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, dropout_p, is_causal, scale=scale
    )[0]
    return found


def job(model: str) -> Job:
    """That of ``benchmarks/gpu.sh step-7b``, with one micro-batch where it has four."""
    return Job(
        procedure="baseline", stage="sft", architecture=model, rows=4, micro_rows=4, tokens=1024, rank=2, samples=4,
        refresh_every=1, steps=4, device=str(CUDA), bf16=True,
    )  # fmt: skip


def check_step(model: OneModel, procedure: Procedure) -> float:
    """Take a step, look at what it leaves, and return its peak in bytes."""
    row = model.step(procedure)
    assert all(parameter.device == CUDA and parameter.dtype == torch.float32 for parameter in model.model.parameters())
    assert all(parameter.grad is None for parameter in model.model.parameters())
    return float(row["peak_bytes"])


@pytest.fixture(autouse=True)
def large_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many elements at once as make few operations of a 7B model, here and in the estimate."""
    for module in ("ogpsa.projection", "ogpsa.preflight.memory"):
        monkeypatch.setitem(import_module(module).CHUNK, "cuda", LARGE)
    monkeypatch.setattr("ogpsa.subspace.basis.GPU_PIECE", LARGE)


@pytest.mark.smoke
def test_a_step_of_each_procedure_at_the_widths_of_qwen2_5_7b(gpu: FakeCuda) -> None:
    model = OneModel(job("qwen2_5_7b:1"))
    peaks = {procedure: check_step(model, procedure) for procedure in PROCEDURES}
    basis = model.subspace.basis
    assert basis is not None and model.subspace.effective_rank == 2
    stored = basis.state_dict().values()
    assert {(tensor.device, tensor.dtype) for tensor in stored} == {(CUDA, torch.bfloat16)}
    # The authors' references lie on the host, in bf16.
    references = [row for rows in model.authors.references.values() for row in rows]
    assert {(row.device.type, row.dtype) for row in references} == {("cpu", torch.bfloat16)}
    assert peaks["ogpsa"] > peaks["baseline"]


# The settings of ``benchmarks/gpu.sh memory`` at fewer layers, each at another moment of a step.
CASES = [
    Case("qwen2_5_7b:1", "sft", False, 2, "adamw", True, fused=False, tokens=1024),
    Case("qwen2_5_7b:1", "sft", True, 8, "sgd", True, fused=False, rows=1, tokens=64),
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "moment"), zip(CASES, ["backward", "estimate"], strict=True))
def test_the_bytes_of_a_step_are_the_estimates(case: Case, moment: str, request: pytest.FixtureRequest) -> None:
    shape = architecture(case.model)
    # Outside of the fake GPU, which knows no other device.
    shapes = shape_of(shape.build(torch.device("meta")))
    gpu: FakeCuda = request.getfixturevalue("gpu")
    expected = estimate(shapes, case.setup(CUDA))
    train(shape, case, CUDA)
    assert expected.peak_moment == moment
    assert gpu.peak == pytest.approx(expected.peak, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("place", get_args(BasisDevice))
@pytest.mark.parametrize("dtype", get_args(StoredDtype))
def test_the_projection_is_measured_with_its_basis_where_it_is_said_to_be(
    dtype: StoredDtype, place: BasisDevice
) -> None:
    counts = architecture("smoke").sizes()
    with fake_cuda() as gpu:
        found = projection.measure(counts, 2, dtype, place, CUDA, Copy(CUDA, 1 << 12), rounds=1)
        assert found["basis"] >= sum(counts) * 2 * projection.BYTES[dtype]
        assert found.keys() == {"copy", "kernels", "project", "basis", "extra"}
        # Blocks, and for int8 their scales.
        tensors = len(counts) * (2 if dtype == "int8" else 1)
        assert len(gpu.pinned) == (tensors if place == "host" else 0)
