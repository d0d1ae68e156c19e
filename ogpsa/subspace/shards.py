"""The gradients and weights of one process that the projection works on."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


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
        """Inside, a backward pass sums up gradients and never steps; they are dropped at the end.

        To be entered with no gradient in flight.
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
