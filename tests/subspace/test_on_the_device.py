"""The projection on a fake GPU: nothing on the device meets the host's tensors, and each lies where it should."""

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError

from ogpsa.subspace.basis import StoredDtype
from ogpsa.subspace.measurements import StepSample
from ogpsa.subspace.projector import DrawnRows, Projector
from ogpsa.subspace.references import ReferenceChunk
from ogpsa.subspace.settings import BasisDevice, ProjectionSettings, Scope, Sided, Target
from ogpsa.subspace.shards import ParameterShards
from ogpsa.subspace.streaming import StreamedReferences
from ogpsa.subspace.subspace import Layout, Subspace
from tests.fake_cuda import CUDA, fake_cuda

# In place of ``GPU_PIECE``; the last parameter is read in two pieces.
PIECE = 4096
SIZES = [40, 0, 1029, PIECE + 70]
DTYPES: tuple[StoredDtype, ...] = get_args(StoredDtype)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_place = pytest.mark.parametrize("place", get_args(BasisDevice))
each_scope = pytest.mark.parametrize("scope", get_args(Scope))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ogpsa.subspace.basis.GPU_PIECE", PIECE)


def vectors() -> list[Tensor]:
    return [torch.empty(size, device=CUDA) for size in SIZES]


def estimated(place: BasisDevice = "device", **options: Any) -> Subspace:
    layout = Layout(groups=["first", "first", "second", "second"], references=["facts", "help"])
    subspace = Subspace(2, basis_device=place, layout=layout, **options)
    # Rows are as wide as the basis, and lie where it will be (``Projector.reference_gradients``).
    wide = torch.float32 if options.get("basis_dtype") == "fp32" else torch.bfloat16
    device = torch.device("cpu") if place == "host" else CUDA
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(2, size, generator=generator).to(device, wide) for size in SIZES]
    subspace.estimate(rows, ["facts", "help"])
    return subspace


def devices(tensors: Any) -> set[str]:
    return {tensor.device.type for tensor in tensors}


def test_a_tensor_of_the_host_among_those_of_the_device_is_noticed() -> None:
    with fake_cuda():
        on_device = torch.ones(3, device=CUDA)
        assert on_device.is_cuda and on_device.device == CUDA
        with pytest.raises(FakeTensorDeviceMismatchError):
            _ = on_device + torch.ones(3)


def test_what_the_host_reads_and_what_the_device_holds_are_counted() -> None:
    with fake_cuda() as gpu:
        square = torch.empty(2, 2, device=CUDA)
        assert torch.equal(square.cpu(), torch.eye(2)) and float(square.sum()) == 1
        assert gpu.reads == [(2, 2), ()]
        large = torch.empty(1000, device=CUDA)
        assert (gpu.taken, gpu.peak) == (512 + 4096, 512 + 4096)
        view = large[:10]
        del large
        assert gpu.taken == 512 + 4096
        del view
        assert gpu.taken == 512


@each_scope
@each_dtype
@each_place
@pytest.mark.parametrize("sided", get_args(Sided))
def test_gradients_are_projected_where_they_are(
    scope: Scope, dtype: StoredDtype, place: BasisDevice, sided: Sided
) -> None:
    with fake_cuda() as gpu:
        subspace = estimated(place, scope=scope, sided=sided, basis_dtype=dtype)
        assert subspace.basis is not None and subspace.effective_rank == 2
        stored = subspace.basis.state_dict().values()
        assert devices(stored) == {"cpu" if place == "host" else "cuda"}
        gradients = vectors()
        reads = len(gpu.reads)
        report = subspace.project_(gradients)
        assert report["norm_retained"] >= 0
        assert devices(gradients) == {"cuda"}
        assert devices([subspace.coordinates, subspace._gram, subspace._roots, subspace._inverses]) == {"cpu"}
        # The host waits for the device once a pass, whatever the number of parameters.
        assert len(gpu.reads) - reads <= 2


@each_dtype
def test_a_basis_on_the_host_is_pinned_and_its_pieces_are_declared_to_the_stream_that_uses_them(
    dtype: StoredDtype,
) -> None:
    with fake_cuda() as gpu:
        basis = estimated("host", basis_dtype=dtype).basis
        assert basis is not None
        for tensor in basis.state_dict().values():
            assert not tensor.numel() or tensor.data_ptr() in {pinned.data_ptr() for pinned in gpu.pinned}
        before = gpu.recorded
        basis.dots(vectors())
        # int8 rows travel with their scales.
        pieces = sum(-(-size // PIECE) for size in SIZES)
        assert gpu.recorded - before == pieces * (2 if dtype == "int8" else 1)


@each_dtype
@each_place
def test_a_subspace_is_restored_onto_the_device_or_the_host(dtype: StoredDtype, place: BasisDevice) -> None:
    saved = estimated_on_cpu(dtype)
    with fake_cuda() as gpu:
        subspace = Subspace(2, basis_dtype=dtype, basis_device=place)
        subspace.load_state_dict(saved, "cpu" if place == "host" else CUDA)
        assert subspace.basis is not None
        stored = subspace.basis.state_dict().values()
        assert devices(stored) == {"cpu" if place == "host" else "cuda"}
        assert place == "device" or len(gpu.pinned) == len(stored)
        subspace.project_(vectors())


def estimated_on_cpu(dtype: StoredDtype) -> dict[str, Tensor]:
    subspace = Subspace(2, basis_dtype=dtype)
    subspace.estimate([torch.randn(2, size) for size in SIZES], ["facts", "help"])
    return {name: tensor.clone() for name, tensor in subspace.state_dict().items()}


def test_an_automatic_basis_is_bf16_on_the_device_and_read_by_the_compiled_kernels() -> None:
    with fake_cuda():
        basis = estimated().basis
        assert basis is not None
        assert {tensor.dtype for tensor in basis.state_dict().values()} == {torch.bfloat16}
        assert basis._compiled(vectors())


def test_streamed_references_and_the_sample_of_a_step_stay_on_the_device() -> None:
    with fake_cuda() as gpu:
        streamed = StreamedReferences([[0.5, 0.25], [0.5, 0.75]])
        for step in range(4):
            position = streamed.begin(step, vectors())
            for chunk in range(2):
                streamed.add(chunk, vectors())
            assert devices(streamed.estimate(position)) == {"cuda"}
        sample = StepSample()
        sample.take(vectors())
        assert not gpu.reads
        assert sample.squared_steps(vectors()).device.type == "cpu"


class Small(nn.Module):
    """Parameters of several shapes, one of which the loss leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.left_out = nn.Parameter(torch.ones(3))

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids)
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        loss: Tensor = hidden.square().mean()
        return loss


class SmallTrainer:
    """What the projector asks of a trainer, in a process of its own on the device."""

    def __init__(self, model: Small) -> None:
        self.model = self.model_wrapped = model
        self.is_fsdp_enabled = False
        self.args = SimpleNamespace(
            device=CUDA, world_size=1, process_index=0, n_gpu=1, per_device_train_batch_size=2,
            get_warmup_steps=lambda steps: 0,
        )  # fmt: skip
        self.state = SimpleNamespace(global_step=0, max_steps=4, logging_steps=1)
        gradient_state = SimpleNamespace(sync_gradients=True, _set_sync_gradients=lambda sync: None)
        self.accelerator = SimpleNamespace(
            gradient_state=gradient_state, distributed_type="NO", reduce=lambda value, kind: value
        )

    def get_total_train_batch_size(self, args: Any) -> int:
        return 2

    def _get_num_items_in_batch(self, batches: list[Tensor], device: torch.device) -> Tensor:
        return torch.tensor(sum(batch.numel() for batch in batches), device=device)

    def reference_step(self, model: Small, batch: Tensor, items: Tensor | None) -> Tensor:
        loss: Tensor = model(batch.to(CUDA))
        if items is not None:
            loss = loss / items
        loss.backward()
        return loss.detach()


def projector(model: Small, trainer: SmallTrainer, **settings: Any) -> Projector:
    rows = [torch.arange(5) for _ in range(4)]
    loader: Any = SimpleNamespace(collate_fn=torch.stack, dataset=rows)
    chunks = [ReferenceChunk(name, range(4), loader) for name in ("facts", "help")]
    wanted = ProjectionSettings(reference_sets=("facts", "help"), rank=2, samples=4, **settings)
    as_trainer: Any = trainer
    return Projector(as_trainer, wanted, DrawnRows(chunks, 0), ParameterShards(model), None)


@pytest.mark.parametrize("streaming", [False, True])
@each_place
@pytest.mark.parametrize("target", get_args(Target))
def test_steps_with_refreshes_keep_the_trainers_tensors_on_the_device(
    target: Target, place: BasisDevice, streaming: bool
) -> None:
    if streaming and place == "host":
        pytest.skip("streamed sums stay beside the gradients")
    with fake_cuda():
        with CUDA:
            model = Small()
        trainer = SmallTrainer(model)
        projection = projector(model, trainer, refresh_every=2, target=target, basis_device=place, streaming=streaming)
        optimizer = torch.optim.AdamW(model.parameters())
        for step in range(3):
            trainer.state.global_step = step
            projection.refresh_if_due()
            model(torch.zeros(2, 5, dtype=torch.long, device=CUDA)).backward()
            projection.project()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            projection.before_step()
            optimizer.step()
            projection.after_step()
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            assert devices(gradients) == {"cuda"}
            optimizer.zero_grad()
        assert projection.subspace.basis is not None
        stored = projection.subspace.basis.state_dict().values()
        assert devices(stored) == {"cpu" if place == "host" else "cuda"}
        assert all(tensor.dtype == torch.bfloat16 for tensor in stored)
        assert devices(model.parameters()) == {"cuda"}
        assert projection.recorder.means()["projection/effective_rank"] > 0
