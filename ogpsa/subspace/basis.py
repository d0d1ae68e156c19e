"""The stored rows of the capability subspace: a tensor [k, n] per parameter, in fp32, bf16 or int8."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ogpsa.subspace.settings import MAX_RANK

if TYPE_CHECKING:  # the projection needs nothing but torch, NumPy and SciPy
    from ogpsa.subspace.settings import BasisDevice

StoredDtype = Literal["fp32", "bf16", "int8"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
# Elements read at once: what is converted is used while it is still in the cache.
PIECE = 1 << 16
# Elements whose squares are summed in fp32: sums of more equal ones drift, on some CPUs by more than 2e-5.
NORM_PIECE = 1 << 14
# On a GPU larger pieces keep it busy.
GPU_PIECE = 1 << 22
# A parameter's index and a part of its elements.
Span = tuple[int, slice]
# Elements that share an int8 scale; divides both pieces.
SCALED = 64


class Basis:
    """Rows U of each parameter, rounded when stored and read back piece by piece.

    Rounding only tilts the span, as long as a projection uses the Gram matrix of what is stored (``gram``).
    Sums run in fp32 over a piece and in fp64 over the pieces; `|v|²` is right to 2e-5.

    Attributes:
        rank: the largest number of rows k of any parameter.
        nbytes: memory that the rows and their scales take.
    """

    def __init__(self, rows: list[Tensor], scales: list[Tensor], place: "BasisDevice") -> None:
        self._rows = rows
        self._scales = scales
        self._place = place
        self.rank = max(map(len, rows), default=0)
        self.nbytes = sum(tensor.nbytes for tensor in [*rows, *scales])

    @classmethod
    def store(cls, rows: list[Tensor], dtype: StoredDtype, place: "BasisDevice") -> "Basis":
        """Round and place the rows [k, n] of each parameter; the list is emptied, so that none is held twice."""
        stored, scales = [], []
        rows.reverse()
        while rows:
            own, scale = _rounded(rows.pop(), dtype)
            stored.append(_to_place(own, place))
            if dtype == "int8":
                scales.append(_to_place(scale, place))
        return cls(stored, scales, place)

    @classmethod
    def load(
        cls,
        state: dict[str, Tensor],
        dtype: StoredDtype | Literal["auto"],
        place: "BasisDevice",
        device: torch.device | str,
    ) -> "Basis":
        """Restore what ``state_dict`` gave onto ``device``, or the host; the rows keep the type they have.

        Raises:
            ValueError: they were stored in another type than ``dtype``.
        """
        count = sum(name.startswith("basis.") for name in state)
        # Copied into torch's own, aligned memory: some CPUs round by the alignment, and a resumed run would differ.
        rows, scales = (
            [
                _to_place(state[f"{name}.{index}"].to(device, copy=True), place)
                for index in range(count)
                if f"{name}.{index}" in state
            ]
            for name in ("basis", "scales")
        )
        if dtype != "auto" and any(own.dtype != DTYPES[dtype] for own in rows):
            raise ValueError(f"the stored basis is {rows[0].dtype}, not {dtype}")
        return cls(rows, scales, place)

    def state_dict(self) -> dict[str, Tensor]:
        """``basis.<parameter>``, and for int8 ``scales.<parameter>``."""
        parts = {"basis": self._rows, "scales": self._scales}
        return {f"{name}.{index}": tensor for name, part in parts.items() for index, tensor in enumerate(part)}

    def dots(self, vectors: Sequence[Tensor]) -> Tensor:
        """``U_p v_p`` and last ``|v_p|²`` of flat fp32 vectors [n]: [parameters, rank + 1] in fp64."""
        if self._compiled(vectors):
            from ogpsa.subspace import kernels

            return kernels.dots(self._rows, vectors)
        device = vectors[0].device
        spans = _spans(list(map(len, vectors)), GPU_PIECE if device.type == "cuda" else PIECE)
        # Made at once: small results between large pieces would keep the heap from being used again.
        found = torch.zeros(len(spans), self.rank, device=device)
        squares = torch.zeros(len(spans), -(-PIECE // NORM_PIECE), device=device)
        for line, parts, (index, span), rows in zip(found, squares, spans, self._pieces(spans, device), strict=True):
            piece = vectors[index][span]
            torch.mv(rows, piece, out=line[: len(rows)])
            for part, short in zip(parts, piece.split(len(piece) if piece.is_cuda else NORM_PIECE), strict=False):
                torch.dot(short, short, out=part)
        sums = torch.cat([found.double(), squares.double().sum(dim=1, keepdim=True)], dim=1)
        table = torch.zeros(len(vectors), self.rank + 1, dtype=torch.float64, device=device)
        return table.index_add_(0, torch.tensor([index for index, _ in spans], device=device), sums)

    def subtract_(self, vectors: Sequence[Tensor], coefficients: Tensor) -> None:
        """``v_p -= U_pᵀ x_p`` in place for coefficients x [parameters, rank] in fp64."""
        if self._compiled(vectors):
            from ogpsa.subspace import kernels

            kernels.subtract_(self._rows, vectors, coefficients)
            return
        lengths, device = list(map(len, vectors)), vectors[0].device
        single = coefficients.float()
        as_stored = self._rows[0].dtype == torch.float32 and self._rows[0].device.type == device.type
        spans = _spans(lengths, max(lengths) if as_stored else GPU_PIECE if device.type == "cuda" else PIECE)
        for (index, span), rows in zip(spans, self._pieces(spans, device), strict=True):
            vectors[index][span].addmv_(rows.T, single[index, : len(rows)], alpha=-1)

    def gram(self, device: torch.device | str = "cpu") -> Tensor:
        """Gram matrix [parameters, rank, rank] in fp64 of the rows as they are stored, computed on ``device``."""
        table = torch.zeros(len(self._rows), self.rank, self.rank, dtype=torch.float64)
        device = torch.device(device)
        lengths = [rows.shape[1] for rows in self._rows]
        spans = _spans(lengths, GPU_PIECE if device.type == "cuda" else PIECE)
        for (index, _), rows in zip(spans, self._pieces(spans, device), strict=True):
            exact = rows.double()
            table[index, : len(rows), : len(rows)] += (exact @ exact.T).cpu()
        return table

    def _compiled(self, vectors: Sequence[Tensor]) -> bool:
        """Whether the GPU's kernels can read the rows as they lie."""
        return (
            vectors[0].is_cuda
            and self._place == "device"
            and not self._scales
            and 0 < self.rank <= MAX_RANK
            and all(len(rows) == self.rank for rows in self._rows)
        )

    def _pieces(self, spans: Sequence[Span], device: torch.device) -> Iterator[Tensor]:
        """The rows [k, length] of each span in fp32 on ``device``."""
        if device.type == self._rows[0].device.type:
            for index, span in spans:
                yield self._dequantized(self._cut(index, span), self._scale(index, span), span)
            return
        # The next piece travels while this one is used.
        stream = torch.cuda.Stream(device)

        def fetch(position: int) -> tuple[Tensor, Tensor | None]:
            with torch.cuda.stream(stream):
                return self._fetch(*spans[position], device)

        ahead = [fetch(0)] if spans else []
        for following, (_, span) in enumerate(spans, start=1):
            torch.cuda.current_stream(device).wait_stream(stream)
            cut, scale = ahead.pop()
            for part in (cut, scale):
                if part is not None:
                    part.record_stream(torch.cuda.current_stream(device))
            if following < len(spans):
                ahead.append(fetch(following))
            yield self._dequantized(cut, scale, span)

    def _fetch(self, index: int, span: slice, device: torch.device) -> tuple[Tensor, Tensor | None]:
        scale = self._scale(index, span)
        return _to_device(self._cut(index, span), device), None if scale is None else _to_device(scale, device)

    def _cut(self, index: int, span: slice) -> Tensor:
        # int8 rows are stored up to the end of their last scale.
        stop = -(-span.stop // SCALED) * SCALED if self._scales else span.stop
        return self._rows[index][:, span.start : stop]

    def _scale(self, index: int, span: slice) -> Tensor | None:
        return self._scales[index][:, span.start // SCALED : -(-span.stop // SCALED)] if self._scales else None

    @staticmethod
    def _dequantized(cut: Tensor, scale: Tensor | None, span: slice) -> Tensor:
        if scale is None:
            return cut.float()
        whole = cut.float().view(len(cut), cut.shape[1] // SCALED, SCALED) * scale[:, :, None]
        return whole.flatten(1)[:, : span.stop - span.start]


def _spans(lengths: Sequence[int], size: int) -> list[Span]:
    """Parameters of these lengths in parts of at most ``size``."""
    return [
        (index, slice(start, min(start + size, length)))
        for index, length in enumerate(lengths)
        for start in range(0, length, size)
    ]


def _rounded(rows: Tensor, dtype: StoredDtype) -> tuple[Tensor, Tensor]:
    """The rows [k, n] in their stored type, and for int8 a scale [k, ⌈n / 64⌉] for each 64 elements."""
    if dtype != "int8":
        return rows.to(DTYPES[dtype]).contiguous(), torch.empty(0)
    count = -(-rows.shape[1] // SCALED)
    stored = torch.zeros(len(rows), count, SCALED, dtype=torch.int8, device=rows.device)
    scales = torch.zeros(len(rows), count, device=rows.device)
    whole = rows.shape[1] // SCALED
    parts = [slice(start, min(start + GPU_PIECE // SCALED, whole)) for start in range(0, whole, GPU_PIECE // SCALED)]
    for part in parts:
        _round(rows[:, part.start * SCALED : part.stop * SCALED], stored[:, part], scales[:, part])
    if whole < count:
        last = torch.zeros(len(rows), SCALED, device=rows.device)
        last[:, : rows.shape[1] - whole * SCALED] = rows[:, whole * SCALED :]
        _round(last, stored[:, whole:], scales[:, whole:])
    return stored.flatten(1), scales


def _round(rows: Tensor, stored: Tensor, scales: Tensor) -> None:
    whole = rows.float().reshape(len(rows), rows.shape[1] // SCALED, SCALED)
    scales.copy_(whole.abs().amax(dim=2) / 127)
    stored.copy_(torch.round(whole / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, :, None]))


def _to_device(rows: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, row by row: only whole stretches of pinned memory are copied in the background."""
    copy = torch.empty(rows.shape, dtype=rows.dtype, device=device)
    for target, row in zip(copy, rows, strict=True):
        target.copy_(row, non_blocking=True)
    return copy


def _to_place(tensor: Tensor, place: "BasisDevice") -> Tensor:
    """The tensor where it is, or in the host's memory, pinned if a GPU will fetch it."""
    if place == "device" or not torch.cuda.is_available():
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
