"""Where one process keeps the gradients and weights that the projection works on."""

from typing import Protocol

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


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

    def clear(self) -> None:
        """Drop the gradients in flight."""


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

    def clear(self) -> None:
        self._model.zero_grad()

    def first_moments(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """Flat local pieces of AdamW's first moments (``exp_avg``); empty before the first step."""
        states = [optimizer.state.get(parameter) for parameter in self._parameters]
        return [_local(state["exp_avg"]) for state in states if state]


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
