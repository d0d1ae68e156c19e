"""The gradients and weights of one process that the projection works on."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ogpsa.utils.errors import UserError


class Shards(Protocol):
    """This process's pieces of the trainable parameters, in the same order on every process.

    Attributes:
        names: the parameters' names.
        copies: for each parameter, how many of the processes that are summed over hold the same elements.
        sharded: whether an inner product needs a sum over the processes.
    """

    names: list[str]
    copies: list[int]
    sharded: bool

    def gradients(self) -> list[Tensor]:
        """Flat local pieces [n] of the reduced gradients, to be changed in place; empty where nothing is local."""

    def weights(self) -> list[Tensor]:
        """Flat local pieces [n] of the weights that the optimizer updates."""

    def publish(self) -> None:
        """Carry weights that were changed after the optimizer's step to the model."""

    def reference_pass(self) -> AbstractContextManager[None]:
        """Inside, a backward pass accumulates gradients and never steps; they are dropped at the end.

        Enter it with no gradient in flight.
        """


class ParameterShards:
    """Gradients that stand at the parameters: one process, DDP (whole and equal everywhere) and FSDP2 (DTensors)."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.sharded = any(isinstance(parameter, DTensor) for parameter in self._parameters)
        self.copies = [_copies(parameter) if self.sharded else 1 for parameter in self._parameters]

    def gradients(self) -> list[Tensor]:
        for parameter in self._parameters:
            # One that the loss did not touch is zero, and projected like the others.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [_local(parameter.grad) for parameter in self._parameters if parameter.grad is not None]

    def weights(self) -> list[Tensor]:
        return [_local(parameter.detach()) for parameter in self._parameters]

    def publish(self) -> None:
        """Nothing to do: the optimizer updates the model's own weights."""

    @contextmanager
    def reference_pass(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._model.zero_grad()


def shard_like(weight: Tensor, whole: Tensor) -> Tensor:
    """This process's flat piece [n] of ``whole``, placed as ``weight`` is; every process holds the whole."""
    whole = whole.to(weight.device)
    if isinstance(weight, DTensor):
        mesh, placements = weight.device_mesh, weight.placements
        return distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local().clone().view(-1)
    return whole.view(-1)


def file_of(checkpoint: Path, stem: str, shards: Shards) -> Path:
    """This process's file: one where every process holds the whole, one per process where each holds its shards."""
    if not shards.sharded:
        return checkpoint / f"{stem}.safetensors"
    return checkpoint / part_of(stem, torch.distributed.get_rank(), torch.distributed.get_world_size())


def part_of(stem: str, rank: int, processes: int) -> str:
    """The name of a process's own file beside those of the others."""
    return f"{stem}-{rank + 1:05d}-of-{processes:05d}.safetensors"


def read_part(checkpoint: Path, stem: str, shards: Shards) -> dict[str, Tensor]:
    """This process's part of what was saved as ``file_of(…, stem, …)``, whatever the number of processes was.

    A tensor ``<name>.<index>`` holds elements [… , n] of the local piece of the parameter with that index. Where other
    processes cut the parameters, it is put together from their pieces; what has no index is the same in all parts.
    Every process calls it.

    Raises:
        UserError: there are no such files, or they cannot be re-sharded.
    """
    if not shards.sharded:
        return load_file(file_of(checkpoint, stem, shards))
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    files = sorted(checkpoint.glob(f"{stem}-*-of-*.safetensors"))
    own = checkpoint / part_of(stem, rank, world)
    if own in files:
        return load_file(own)
    if not files or files != [checkpoint / part_of(stem, part, len(files)) for part in range(len(files))]:
        raise UserError(f"{checkpoint}: holds no {own.name}; delete it to start over")
    if any(count != 1 for count in shards.copies):
        raise UserError(f"{checkpoint}: was saved by {len(files)} processes, and copied shards cannot be re-sharded")
    sizes: list[Any] = [None] * world
    torch.distributed.all_gather_object(sizes, list(map(len, shards.weights())))
    with ExitStack() as opened:
        parts = [opened.enter_context(safe_open(file, framework="pt")) for file in files]
        return {key: _cut_anew(parts, key, sizes, rank) for key in parts[0].keys()}  # noqa: SIM118  no mapping


def _cut_anew(parts: Sequence[Any], key: str, sizes: Sequence[Sequence[int]], rank: int) -> Tensor:
    """The elements of a parameter that are ``rank``'s by ``sizes`` [processes][parameters], from other pieces."""
    name, _, index = key.rpartition(".")
    if name.endswith("scales"):
        raise UserError("an int8 basis is scaled by its shards, which other processes cut: start as many as saved it")
    if not index.isdecimal():
        found: Tensor = parts[0].get_tensor(key)
        return found
    begin = sum(own[int(index)] for own in sizes[:rank])
    end = begin + sizes[rank][int(index)]
    pieces, offset = [], 0
    for part in parts:
        stored = part.get_slice(key)
        *lead, length = stored.get_shape()
        low, high = max(begin - offset, 0), min(end - offset, length)
        # At least an empty piece, for a process that holds nothing of this parameter.
        pieces.append(stored[(*[slice(None)] * len(lead), slice(low, max(low, high)))])
        offset += length
    return torch.cat(pieces, dim=-1)


def _local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).view(-1)


def _copies(parameter: Tensor) -> int:
    """Processes of the world that hold the same elements of a parameter."""
    world = torch.distributed.get_world_size()
    if not isinstance(parameter, DTensor):
        return world
    mesh = parameter.device_mesh
    shards = 1
    for dimension, placement in enumerate(parameter.placements):
        shards *= mesh.size(dimension) if placement.is_shard() else 1
    return world // shards
