"""Time and extra memory of one projection, against rank, parameter count and the basis' dtype.

The yardstick is the time that the bytes take which must move: the basis is read twice (dot products, update),
the fp32 gradient read twice and written once, at the copy bandwidth measured in the same run. Needs torch, numpy
and scipy alone, no trainer.
"""

import sys
from collections.abc import Sequence
from itertools import product
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.architectures import architecture
from benchmarks.common import (
    GIB,
    Copy,
    MemoryPeak,
    free_memory,
    in_turn,
    listed,
    parser,
    run,
    seconds,
    write,
)
from ogpsa.subspace.basis import Basis, StoredDtype
from ogpsa.subspace.settings import MAX_RANK
from ogpsa.subspace.subspace import Subspace
from ogpsa.utils.errors import UserError, closest_match

if TYPE_CHECKING:
    from ogpsa.subspace.settings import BasisDevice

RANKS = "1,2,4,8,16,32"
# Bytes of a stored element, int8 with its share of a block's scale.
BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0625}
NOTES = (
    "kernels: `Basis.dots` and `Basis.subtract_`; project: `Subspace.project_`, which adds the small matrices and the "
    "report.",
    "floor: the bytes that must move (the basis twice, the fp32 gradient three times) at the copy bandwidth measured "
    "in turn with them, which counts bytes read plus bytes written. Below 1, part of it stayed in a cache, or reading "
    "is cheaper than copying.",
    "extra: memory beyond the basis and the gradients while projecting.",
)


def main() -> None:
    command = parser(__doc__.splitlines()[0])
    command.add_argument("--size", type=listed, help="architectures, name or name:layers, separated by commas")
    command.add_argument("--rank", type=listed, default=listed(RANKS), help="ranks")
    command.add_argument("--dtype", type=listed, help="dtypes of the basis; by default fp32,int8 (CPU) or all (GPU)")
    command.add_argument("--basis-device", default="device", choices=("device", "host"), help="where the basis is")
    options = command.parse_args()
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    sizes = options.size or listed("qwen2_5_7b:1,qwen2_5_7b:7,qwen2_5_7b" if gpu else "llama_50m:1,llama_50m")
    dtypes = options.dtype or listed("fp32,bf16,int8" if gpu else "fp32,int8")
    if options.smoke:
        sizes, options.rank, options.rounds = ["smoke"], ["1", "2"], 1
    for dtype in dtypes:
        if dtype not in BYTES:
            raise UserError(f"--dtype: '{dtype}' is none; allowed: {', '.join(BYTES)}{closest_match(dtype, BYTES)}")
    for rank in options.rank:
        if not rank.isdecimal() or not 1 <= int(rank) <= MAX_RANK:
            raise UserError(f"--rank: '{rank}' found, but a rank is 1 to {MAX_RANK}")
    rounds = options.rounds or (20 if gpu else 7)
    for size in sizes:
        architecture(size)
    # Far above the caches.
    copy = Copy(device, 2**21 if options.smoke else 2 * GIB if gpu else GIB // 2)
    rows, left_out = [], []
    for size, dtype, rank in product(sizes, dtypes, map(int, options.rank)):
        counts = architecture(size).sizes()
        # Basis and gradients, and while a parameter's rows are made, those in fp32.
        wanted = sum(counts) * (4 + rank * BYTES[dtype]) + max(counts) * 8 * rank
        if wanted > 0.95 * free_memory(device):
            left_out.append(f"{size}, {dtype}, rank {rank}: needs {wanted / GIB:.0f} GiB")
            continue
        found = measure(counts, rank, dtype, options.basis_device, device, copy, rounds)
        bandwidth = copy.nbytes / found["copy"]
        floor = (2 * found["basis"] + 3 * 4 * sum(counts)) / bandwidth
        rows.append(
            {"size": size, "parameters_M": sum(counts) / 1e6, "dtype": dtype, "rank": rank}
            | {"copy_GB/s": bandwidth / 1e9, "floor_ms": 1e3 * floor}
            | {f"{name}_ms": 1e3 * found[name] for name in ("kernels", "project")}
            | {f"{name}_over_floor": found[name] / floor for name in ("kernels", "project")}
            | {f"{name}_MiB": found[name] / 2**20 for name in ("basis", "extra")}
        )
    notes = [*NOTES, *(f"Does not fit: {line}." for line in left_out)]
    settings = {"copy_bytes": copy.nbytes, "basis_device": options.basis_device, "rounds": rounds, "left_out": left_out}
    write("projection", options.out, device, settings, {"Cost of one projection": rows}, notes)


def measure(
    counts: Sequence[int],
    rank: int,
    dtype: StoredDtype,
    place: "BasisDevice",
    device: torch.device,
    copy: Copy,
    rounds: int,
) -> dict[str, float]:
    """Median seconds of ``copy``, ``kernels`` and ``project``, in turn; bytes of the ``basis`` and ``extra`` memory."""
    subspace = Subspace(rank, basis_dtype=dtype, basis_device=place)
    subspace.load_state_dict(random_state(counts, rank, dtype, device), device)
    basis = subspace.basis
    assert basis is not None
    gradients = [torch.randn(count, device=device) for count in counts]
    with MemoryPeak(device) as peak:
        subspace.project_(gradients)

    def kernels() -> None:
        found = basis.dots(gradients)
        basis.subtract_(gradients, 1e-3 * found[:, :-1])

    times = in_turn(
        {
            "copy": lambda: seconds(copy, device),
            "kernels": lambda: seconds(kernels, device),
            "project": lambda: seconds(lambda: subspace.project_(gradients), device),
        },
        rounds,
    )
    return {name: median(found) for name, found in times.items()} | {"basis": basis.nbytes, "extra": peak.extra}


def random_state(counts: Sequence[int], rank: int, dtype: StoredDtype, device: torch.device) -> dict[str, Tensor]:
    """The state of a subspace whose basis is random rows of norm about one, stored one parameter at a time."""
    norm = sum(counts) ** 0.5
    state: dict[str, Tensor] = {}
    for index, count in enumerate(counts):
        rows = [torch.randn(rank, count, device=device) / norm]
        stored = Basis.store(rows, dtype, "device").state_dict()
        state |= {name.replace(".0", f".{index}"): tensor for name, tensor in stored.items()}
    eye = torch.eye(rank, dtype=torch.float64)[None]
    return state | {"coordinates": eye, "gram": eye}


if __name__ == "__main__":
    sys.exit(run(main))
