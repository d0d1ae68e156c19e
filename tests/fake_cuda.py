"""A GPU that is not there: its tensors are fake, with shape, dtype and device but no memory; the host's are real.

What it cannot show: values, the order of what two streams do, and what a kernel compiles to.
"""

import ctypes
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda:0")
# Bytes that torch's allocator rounds up to.
ALLOCATED = 512
# Numbers of c10::DeviceType.
XLA, META, DEVICE_TYPES = 9, 14, 21
aten = torch.ops.aten


class FakeCuda(FakeTensorMode):
    """Inside, what is made on ``cuda`` is fake, and an operation that mixes it with the host's tensors raises.

    What the host reads from the device has made-up values, an identity for a square matrix and ones elsewhere, so that
    code which decides by them runs on: Gram matrices are then positive, and a norm is not zero.

    Attributes:
        reads: shapes that the host has read from the device, waiting for it each time.
        recorded: copies by another stream that were declared to the one which uses them.
        pinned: host tensors in pinned memory.
        taken, peak: bytes of the device's tensors, now and at most, as torch's allocator counts them.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.reads: list[tuple[int, ...]] = []
        self.recorded = 0
        self.pinned: list[Tensor] = []
        self.taken = self.peak = 0
        self._outermost = True
        self._storages: dict[int, weakref.ref[Any]] = {}

    @property
    def avoid_device_init(self) -> bool:
        """Torch's own question whether to leave the device alone: although one is said to be available."""
        return True

    def dispatch(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        # To C++ the device is one that autocast treats as CUDA and autograd asks for no streams, which a build without
        # CUDA has not. Python's ``.device`` is cuda.
        if func is torch.ops.prim.device.default:
            return torch.device("xla:0")
        target = kwargs.get("device")
        if target is not None and torch.device(target).type == "xla":
            kwargs["device"] = CUDA
        target = None if target is None else torch.device(kwargs["device"]).type
        if target != "cuda" and not any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            # There is no memory to pin without a driver.
            pinned = kwargs.pop("pin_memory", False)
            made = func(*args, **kwargs)
            self.pinned += [made] * bool(pinned)
            return made
        if func is aten._local_scalar_dense.default:
            return self._read(args[0]).item()
        if func is aten._to_copy.default and target == "cpu":
            return self._read(args[0]).to(kwargs.get("dtype") or args[0].dtype)
        if func is aten.copy_.default and not isinstance(args[0], FakeTensor):
            return args[0].copy_(self._read(args[1]))
        # What an operation is made of here is one kernel on the device, which keeps nothing between.
        outermost, self._outermost = self._outermost, False
        try:
            made = super().dispatch(func, types, args, kwargs)
        finally:
            self._outermost = outermost
        if not outermost:
            return made
        for leaf in tree_leaves(made):
            if isinstance(leaf, FakeTensor) and leaf.fake_device.type == "cuda":
                self._count(leaf)
        return made

    def _read(self, tensor: Tensor) -> Tensor:
        self.reads.append(tuple(tensor.shape))
        values = torch.ones(tensor.shape, dtype=tensor.dtype)
        if tensor.dim() >= 2 and tensor.shape[-1] == tensor.shape[-2]:
            values *= torch.eye(tensor.shape[-1], dtype=tensor.dtype)
        return values

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        size = -(-storage.nbytes() // ALLOCATED) * ALLOCATED
        self.taken += size
        self.peak = max(self.peak, self.taken)

        def free(_: object) -> None:
            self.taken -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, free)


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """A fake GPU. Autograd runs in one thread: it starts one for each device that is there at the first backward."""
    mode = FakeCuda()
    with pytest.MonkeyPatch.context() as patch, _guarded_xla(), torch.autograd.set_multithreading_enabled(False):
        _patch_cuda(patch, mode)
        with mode:
            yield mode


@contextmanager
def _guarded_xla() -> Iterator[None]:
    """Give the device that C++ is told of the guard of ``meta``, which does nothing: autograd would abort without."""
    file = Path(torch.__file__).parent / "lib" / "libc10.so"
    if torch.version.cuda is not None or not file.is_file():
        pytest.skip("needs torch for Linux without CUDA")
    library = ctypes.CDLL(str(file))
    guards = (ctypes.c_void_p * DEVICE_TYPES).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    assert guards[META] is not None
    before, guards[XLA] = guards[XLA], guards[META]
    try:
        yield
    finally:
        guards[XLA] = before


def _patch_cuda(patch: pytest.MonkeyPatch, mode: FakeCuda) -> None:
    """What needs a driver: questions about the device, streams, events, pinned memory, Triton's kernels."""
    for name, answer in {
        "is_available": True,
        "is_bf16_supported": True,
        "current_device": 0,
        "synchronize": None,
        "empty_cache": None,
    }.items():
        patch.setattr(torch.cuda, name, _answering(answer))
    patch.setattr(torch.cuda, "Stream", _Stream)
    patch.setattr(torch.cuda, "current_stream", _Stream)
    patch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    patch.setattr(torch.cuda, "Event", _Event)
    patch.setattr(torch.cuda, "get_rng_state", lambda *_: torch.empty(0))
    patch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
    patch.setattr(torch.cuda, "memory_allocated", lambda *_: mode.taken)
    patch.setattr(torch.cuda, "max_memory_allocated", lambda *_: mode.peak)
    patch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: setattr(mode, "peak", mode.taken))
    # A property of C++'s device, and a method that takes no fake stream.
    patch.setattr(FakeTensor, "is_cuda", property(lambda tensor: tensor.fake_device.type == "cuda"), raising=False)
    patch.setattr(FakeTensor, "record_stream", lambda *_: _record(mode), raising=False)
    # Optimizers and clipping take all parameters at once on CUDA, if they know their type.
    for name in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
        known: list[type] = import_module(name)._foreach_supported_types
        patch.setattr(import_module(name), "_foreach_supported_types", [*known, FakeTensor])
    grouped = torch._C._group_tensors_by_device_and_dtype

    def on_cuda(tensors: Any, with_indices: bool = False) -> Any:
        groups = grouped(tensors, with_indices)
        return {(CUDA if device.type == "xla" else device, dtype): own for (device, dtype), own in groups.items()}

    patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", on_cuda)
    kernels = _kernels()
    patch.setitem(sys.modules, kernels.__name__, kernels)
    patch.setattr(import_module("ogpsa.subspace"), "kernels", kernels, raising=False)


def _answering(answer: Any) -> Any:
    return lambda *_, **__: answer


def _record(mode: FakeCuda) -> None:
    mode.recorded += 1


class _Stream:
    def __init__(self, device: torch.device | None = None) -> None: ...

    def wait_stream(self, stream: "_Stream") -> None: ...


class _Event:
    def __init__(self, enable_timing: bool = False) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: "_Event") -> float:
        return 1.0


def _kernels() -> ModuleType:
    """The signature, shapes and devices of ``ogpsa/subspace/kernels.py``, which follows addresses."""
    made = ModuleType("ogpsa.subspace.kernels")

    def check(rows: Sequence[Tensor], vectors: Sequence[Tensor]) -> None:
        for row, vector in zip(rows, vectors, strict=True):
            assert row.device == vector.device == CUDA and row.shape == (len(rows[0]), *vector.shape)
            assert row.is_contiguous() and vector.is_contiguous()
            assert {row.dtype, vector.dtype} <= {torch.float32, torch.bfloat16}

    def dots(rows: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
        check(rows, vectors)
        return torch.zeros(len(rows), len(rows[0]) + 1, dtype=torch.float64, device=vectors[0].device)

    def subtract_(rows: Sequence[Tensor], vectors: Sequence[Tensor], coefficients: Tensor) -> None:
        check(rows, vectors)
        assert coefficients.shape == (len(rows), len(rows[0]))
        coefficients.to(vectors[0].device, torch.float32)

    vars(made).update(dots=dots, subtract_=subtract_)
    return made
