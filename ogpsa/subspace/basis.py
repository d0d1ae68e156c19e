"""The stored rows of the capability subspace: one block [k, n] per parameter, in fp32, bf16 or int8."""

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
BLOCK = 64


class Basis:
    """Rows U of each parameter, rounded when stored and read back piece by piece.

    Rounding only tilts the span, as long as a projection uses the Gram matrix of what is stored (``gram``).
    Sums run in fp32 over a piece and in fp64 over the pieces; `|v|²` is right to 2e-5.

    Attributes:
        rank: the largest number of rows k of any parameter.
        nbytes: memory that the rows and their scales take.
    """

    def __init__(self, blocks: list[Tensor], scales: list[Tensor], place: "BasisDevice") -> None:
        self._blocks = blocks
        self._scales = scales
        self._place = place
        self.rank = max((len(block) for block in blocks), default=0)
        self.nbytes = sum(tensor.nbytes for tensor in [*blocks, *scales])

    @classmethod
    def store(cls, rows: list[Tensor], dtype: StoredDtype, place: "BasisDevice") -> "Basis":
        """Round and place the rows [k, n] of each parameter; the list is emptied, so that none is held twice."""
        blocks, scales = [], []
        rows.reverse()
        while rows:
            block, scale = _rounded(rows.pop(), dtype)
            blocks.append(_to_place(block, place))
            if dtype == "int8":
                scales.append(_to_place(scale, place))
        return cls(blocks, scales, place)

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
        blocks, scales = (
            [
                _to_place(state[f"{name}.{index}"].to(device, copy=True), place)
                for index in range(count)
                if f"{name}.{index}" in state
            ]
            for name in ("basis", "scales")
        )
        if dtype != "auto" and any(block.dtype != DTYPES[dtype] for block in blocks):
            raise ValueError(f"the stored basis is {blocks[0].dtype}, not {dtype}")
        return cls(blocks, scales, place)

    def state_dict(self) -> dict[str, Tensor]:
        """``basis.<parameter>``, and for int8 ``scales.<parameter>``."""
        parts = {"basis": self._blocks, "scales": self._scales}
        return {f"{name}.{index}": tensor for name, part in parts.items() for index, tensor in enumerate(part)}

    def dots(self, vectors: Sequence[Tensor]) -> Tensor:
        """``U_p v_p`` and last ``|v_p|²`` of flat fp32 vectors [n]: [parameters, rank + 1] in fp64."""
        if self._compiled(vectors):
            from ogpsa.subspace import kernels

            return kernels.dots(self._blocks, vectors)
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

            kernels.subtract_(self._blocks, vectors, coefficients)
            return
        lengths, device = list(map(len, vectors)), vectors[0].device
        single = coefficients.float()
        as_stored = self._blocks[0].dtype == torch.float32 and self._blocks[0].device.type == device.type
        spans = _spans(lengths, max(lengths) if as_stored else GPU_PIECE if device.type == "cuda" else PIECE)
        for (index, span), rows in zip(spans, self._pieces(spans, device), strict=True):
            vectors[index][span].addmv_(rows.T, single[index, : len(rows)], alpha=-1)

    def gram(self, device: torch.device | str = "cpu") -> Tensor:
        """Gram matrix [parameters, rank, rank] in fp64 of the rows as they are stored, computed on ``device``."""
        table = torch.zeros(len(self._blocks), self.rank, self.rank, dtype=torch.float64)
        device = torch.device(device)
        lengths = [block.shape[1] for block in self._blocks]
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
            and all(len(block) == self.rank for block in self._blocks)
        )

    def _pieces(self, spans: Sequence[Span], device: torch.device) -> Iterator[Tensor]:
        """The rows [k, length] of each span in fp32 on ``device``."""
        if device.type == self._blocks[0].device.type:
            for index, span in spans:
                yield self._dequantized(self._block(index, span), self._scale(index, span), span)
            return
        # The next piece travels while this one is used.
        stream = torch.cuda.Stream(device)

        def fetch(position: int) -> tuple[Tensor, Tensor | None]:
            with torch.cuda.stream(stream):
                return self._fetch(*spans[position], device)

        ahead = [fetch(0)] if spans else []
        for following, (_, span) in enumerate(spans, start=1):
            torch.cuda.current_stream(device).wait_stream(stream)
            block, scale = ahead.pop()
            for part in (block, scale):
                if part is not None:
                    part.record_stream(torch.cuda.current_stream(device))
            if following < len(spans):
                ahead.append(fetch(following))
            yield self._dequantized(block, scale, span)

    def _fetch(self, index: int, span: slice, device: torch.device) -> tuple[Tensor, Tensor | None]:
        scale = self._scale(index, span)
        return _to_device(self._block(index, span), device), None if scale is None else _to_device(scale, device)

    def _block(self, index: int, span: slice) -> Tensor:
        # int8 rows are stored in whole blocks.
        stop = -(-span.stop // BLOCK) * BLOCK if self._scales else span.stop
        return self._blocks[index][:, span.start : stop]

    def _scale(self, index: int, span: slice) -> Tensor | None:
        return self._scales[index][:, span.start // BLOCK : -(-span.stop // BLOCK)] if self._scales else None

    @staticmethod
    def _dequantized(block: Tensor, scale: Tensor | None, span: slice) -> Tensor:
        if scale is None:
            return block.float()
        whole = block.float().view(len(block), block.shape[1] // BLOCK, BLOCK) * scale[:, :, None]
        return whole.flatten(1)[:, : span.stop - span.start]


def _spans(lengths: Sequence[int], size: int) -> list[Span]:
    """Parameters of these lengths in parts of at most ``size``."""
    return [
        (index, slice(start, min(start + size, length)))
        for index, length in enumerate(lengths)
        for start in range(0, length, size)
    ]


def _rounded(rows: Tensor, dtype: StoredDtype) -> tuple[Tensor, Tensor]:
    """The rows [k, n] in their stored type, and for int8 a scale [k, blocks] for each 64 elements."""
    if dtype != "int8":
        return rows.to(DTYPES[dtype]).contiguous(), torch.empty(0)
    blocks = -(-rows.shape[1] // BLOCK)
    stored = torch.zeros(len(rows), blocks, BLOCK, dtype=torch.int8, device=rows.device)
    scales = torch.zeros(len(rows), blocks, device=rows.device)
    whole = rows.shape[1] // BLOCK
    parts = [(slice(start, min(start + GPU_PIECE // BLOCK, whole))) for start in range(0, whole, GPU_PIECE // BLOCK)]
    for part in parts:
        _round_blocks(rows[:, part.start * BLOCK : part.stop * BLOCK], stored[:, part], scales[:, part])
    if whole < blocks:
        last = torch.zeros(len(rows), BLOCK, device=rows.device)
        last[:, : rows.shape[1] - whole * BLOCK] = rows[:, whole * BLOCK :]
        _round_blocks(last, stored[:, whole:], scales[:, whole:])
    return stored.flatten(1), scales


def _round_blocks(rows: Tensor, stored: Tensor, scales: Tensor) -> None:
    blocks = rows.float().reshape(len(rows), rows.shape[1] // BLOCK, BLOCK)
    scales.copy_(blocks.abs().amax(dim=2) / 127)
    stored.copy_(torch.round(blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, :, None]))


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
