"""The projection on a GPU: each pass reads the basis and the vectors once, in one launch for all parameters.

Imported only where the vectors are on a GPU (it needs Triton). Addresses travel in one small table, so that a
model of hundreds of tensors costs no more launches than one tensor. The sums repeat bit for bit: every program
writes its own partial sums, and they are added in a fixed order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ogpsa.subspace.settings import MAX_RANK

# Elements of a parameter that one program works on: each fp32 sum then adds few numbers, and a 7B model needs
# 232 thousand programs, whose partial sums are small beside the basis.
SPAN = 1 << 15
# Basis elements that a program holds at once in the dots: 32 for each of its 256 threads.
TILE = 1 << 13
# Neighbouring elements that a thread adds up before it keeps them, so that its sums take few registers.
RUN = tl.constexpr(8)
# Vector elements that a program holds at once in the update.
UPDATE_TILE = 1 << 11
# Bytes that one load of a thread can move, from an address that is a multiple of them.
WIDE_LOAD = 16

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}


@dataclass(frozen=True)
class _Plan:
    """Which span of which parameter each program works on."""

    programs: int
    parameters: Tensor  # [programs] int32
    spans: Tensor  # [programs] int32, the span's place in its parameter
    first: Tensor  # [P + 1] int64, each parameter's first program


@dataclass(frozen=True)
class _Launch:
    """A plan for the parameters that share dtypes and alignment; all others count as empty."""

    plan: _Plan
    table: Tensor  # [P, 3] int64: address of the rows, address of the vector, elements of the vector
    options: dict[str, object]


def dots(rows: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
    """Inner products of every parameter's basis rows with its vector.

    Args:
        rows: per parameter [k, n], contiguous, bf16 or fp32, with 1 ≤ k ≤ 32 the same for all; n may be 0.
        vectors: per parameter [n], contiguous, fp32 or bf16, on the same device.

    Returns:
        Table [P, k + 1] in fp64: ``U_p v_p`` and, last, ``|v_p|²``. Products and the sums within a span of 32768
        elements are fp32, the sums over the spans fp64.

    Raises:
        ValueError: a shape, dtype or memory layout differs from the above.
    """
    launches = _launches(rows, vectors)
    rank = len(rows[0])
    table = torch.zeros(len(rows), rank + 1, dtype=torch.float64, device=vectors[0].device)
    padded = triton.next_power_of_2(rank)
    with torch.cuda.device_of(table):
        for launch in launches:
            plan = launch.plan
            partial = torch.empty(rank + 1, plan.programs, dtype=torch.float32, device=table.device)
            _dots[(plan.programs,)](
                launch.table,
                plan.parameters,
                plan.spans,
                partial,
                plan.programs,
                RANK=rank,
                PADDED_RANK=padded,
                TILE=TILE // max(padded, 2),
                SPAN=SPAN,
                **launch.options,
                num_warps=8,
            )
            _add_partials[(len(rows), rank + 1)](partial, plan.first, table, plan.programs, TILE=1024, num_warps=4)
    return table


def subtract_(rows: Sequence[Tensor], vectors: Sequence[Tensor], coefficients: Tensor) -> None:
    """Replace every vector by ``v_p - U_pᵀ x_p``, computed in fp32 and rounded once, to the vector's dtype.

    Args:
        rows: as in ``dots``.
        vectors: as in ``dots``; changed in place.
        coefficients: x [P, k], used in fp32.

    Raises:
        ValueError: a shape, dtype or memory layout differs from the above.
    """
    launches = _launches(rows, vectors)
    rank = len(rows[0])
    if coefficients.shape != (len(rows), rank):
        raise ValueError(f"coefficients have shape {tuple(coefficients.shape)}, not {(len(rows), rank)}")
    # Not to bf16, whatever the rows are: that would leave 1e-3 of what is to be removed.
    coefficients = coefficients.to(vectors[0].device, torch.float32).contiguous()
    with torch.cuda.device_of(coefficients):
        for launch in launches:
            plan = launch.plan
            _subtract[(plan.programs,)](
                launch.table,
                plan.parameters,
                plan.spans,
                coefficients,
                RANK=rank,
                TILE=UPDATE_TILE,
                SPAN=SPAN,
                **launch.options,
                num_warps=8,
            )


def _launches(rows: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[_Launch]:
    """One launch for each combination of dtypes and alignment: as a rule a single one.

    The kernels follow bare addresses, so that what they cannot address has to be refused here.
    """
    device = vectors[0].device
    shape = rows[0].shape[:1]
    if not 1 <= shape[0] <= MAX_RANK:
        raise ValueError(f"the rank is {shape[0]}; the kernels take 1 to {MAX_RANK}")
    entries, kinds = [], []
    for index, (row, vector) in enumerate(zip(rows, vectors, strict=True)):
        if row.shape != shape + vector.shape or vector.dim() != 1:
            found = f"rows {tuple(row.shape)} and a vector {tuple(vector.shape)}"
            raise ValueError(f"parameter {index} has {found}; needed are ({shape[0]}, n) and (n,)")
        if not (row.is_contiguous() and vector.is_contiguous() and row.device == vector.device == device):
            raise ValueError(f"the rows or the vector of parameter {index} are not contiguous and on {device}")
        entry = row.data_ptr(), vector.data_ptr(), vector.numel()
        entries.append(entry)
        # All rows start at a multiple of a wide load if the first one does and they are a multiple of 8 bf16 long.
        kinds.append((row.dtype, vector.dtype, not (entry[0] | entry[1] | 2 * entry[2]) % WIDE_LOAD))
    # Pinned, so that the copy does not wait for the GPU to finish what is queued before it.
    table = torch.tensor(entries, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    launches = []
    for kind in dict.fromkeys(kinds):
        row_dtype, vector_dtype, aligned = kind
        if row_dtype not in _TYPES or vector_dtype not in _TYPES:
            raise ValueError(f"rows are {row_dtype} and vectors {vector_dtype}; needed is float32 or bfloat16")
        sizes = tuple(entry[2] if kind == own else 0 for entry, own in zip(entries, kinds, strict=True))
        if any(sizes):
            options = {"ROW": _TYPES[row_dtype], "VECTOR": _TYPES[vector_dtype], "ALIGNED": aligned}
            launches.append(_Launch(_plan(sizes, device), table, options))
    return launches


# A model has one or two sets of shapes; the plan of a 7B model takes 3 MB.
@lru_cache(maxsize=8)
def _plan(sizes: tuple[int, ...], device: torch.device) -> _Plan:
    counts = torch.tensor([triton.cdiv(size, SPAN) for size in sizes])
    first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    parameters = torch.repeat_interleave(counts)
    spans = torch.arange(len(parameters)) - first[parameters]
    return _Plan(len(parameters), parameters.int().to(device), spans.int().to(device), first.to(device))


@triton.jit
def _locate(
    table: tl.tensor,
    parameter: tl.tensor,
    span: tl.tensor,
    ROW: tl.constexpr,
    VECTOR: tl.constexpr,
    ALIGNED: tl.constexpr,
    SPAN: tl.constexpr,
) -> tl.tensor:
    """Addresses of a span in the first row and in the vector, the distance of two rows, the span's length."""
    entry = table + 3 * parameter
    row = tl.load(entry).to(tl.pointer_type(ROW))
    vector = tl.load(entry + 1).to(tl.pointer_type(VECTOR))
    # Both in 64 bits: a large embedding times the rank passes 2**31 elements.
    size = tl.load(entry + 2)
    start = span.to(tl.int64) * SPAN
    length = tl.minimum(size - start, SPAN).to(tl.int32)
    if ALIGNED:
        # What the compiler cannot know of an address that it reads from memory; it needs it for wide loads.
        row = tl.multiple_of(row, 16)
        vector = tl.multiple_of(vector, 16)
        size = tl.multiple_of(size, 8)
        length = tl.multiple_of(length, 8)
    return row + start, vector + start, size, length


@triton.jit(do_not_specialize=["programs"])
def _dots(
    table: tl.tensor,
    parameters: tl.tensor,
    spans: tl.tensor,
    partial: tl.tensor,
    programs: tl.tensor,
    RANK: tl.constexpr,
    PADDED_RANK: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
    ROW: tl.constexpr,
    VECTOR: tl.constexpr,
    ALIGNED: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    parameter, span = tl.load(parameters + program), tl.load(spans + program)
    row, vector, size, length = _locate(table, parameter, span, ROW, VECTOR, ALIGNED, SPAN)
    index = tl.arange(0, PADDED_RANK)
    column = tl.arange(0, TILE)
    products = tl.zeros([PADDED_RANK, TILE // RUN], tl.float32)
    squares = tl.zeros([TILE // RUN], tl.float32)
    for offset in range(0, length, TILE):
        inside = offset + column < length
        v = tl.load(vector + offset + column, inside, 0.0).to(tl.float32)
        pointers = row + index[:, None] * size + (offset + column)[None, :]
        u = tl.load(pointers, (index < RANK)[:, None] & inside[None, :], 0.0).to(tl.float32)
        products += tl.sum(tl.reshape(u * v[None, :], [PADDED_RANK, TILE // RUN, RUN]), 2)
        squares += tl.sum(tl.reshape(v * v, [TILE // RUN, RUN]), 1)
    tl.store(partial + index * programs + program, tl.sum(products, 1), index < RANK)
    tl.store(partial + RANK * programs + program, tl.sum(squares))


@triton.jit(do_not_specialize=["programs"])
def _add_partials(
    partial: tl.tensor, first: tl.tensor, table: tl.tensor, programs: tl.tensor, TILE: tl.constexpr
) -> None:
    """Add one column of one parameter's partial sums to its place in the table."""
    parameter, column = tl.program_id(0), tl.program_id(1)
    end = tl.load(first + parameter + 1)
    total = tl.zeros([TILE], tl.float64)
    for offset in range(tl.load(first + parameter), end, TILE):
        program = offset + tl.arange(0, TILE)
        total += tl.load(partial + column * programs + program, program < end, 0.0).to(tl.float64)
    target = table + parameter * tl.num_programs(1) + column
    tl.store(target, tl.load(target) + tl.sum(total))


@triton.jit
def _subtract(
    table: tl.tensor,
    parameters: tl.tensor,
    spans: tl.tensor,
    coefficients: tl.tensor,
    RANK: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
    ROW: tl.constexpr,
    VECTOR: tl.constexpr,
    ALIGNED: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    parameter, span = tl.load(parameters + program), tl.load(spans + program)
    row, vector, size, length = _locate(table, parameter, span, ROW, VECTOR, ALIGNED, SPAN)
    column = tl.arange(0, TILE)
    for offset in range(0, length, TILE):
        inside = offset + column < length
        v = tl.load(vector + offset + column, inside, 0.0)
        removed = tl.zeros([TILE], tl.float32)
        for index in tl.static_range(RANK):
            coefficient = tl.load(coefficients + parameter * RANK + index)
            removed += coefficient * tl.load(row + index * size + offset + column, inside, 0.0).to(tl.float32)
        tl.store(vector + offset + column, (v.to(tl.float32) - removed).to(VECTOR), inside)
