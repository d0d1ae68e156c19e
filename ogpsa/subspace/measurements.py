"""Measurements of the projection while it trains: cheap enough to stay on."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import TrainerState

# Parts of the model's depth that are reported on separately.
DEPTH_GROUPS = 4
# Weights of a tensor whose step is looked at: all of a small one, evenly spread ones of a large one.
SAMPLED_WEIGHTS = 1 << 13


def is_logged(state: "TrainerState") -> bool:
    """Whether the step that is being taken ends in a log line."""
    return (state.global_step + 1) % max(1, state.logging_steps) == 0


def layer_groups(names: Sequence[str]) -> list[str]:
    """The layer group of each parameter: ``layers_00_06``, a quarter of the depth, or its module's name."""
    layers = [re.search(r"\.(\d+)\.", name) for name in names]
    depth = 1 + max((int(found[1]) for found in layers if found), default=0)
    groups = []
    for name, found in zip(names, layers, strict=True):
        if found is None:
            groups.append(name.rpartition(".")[0].rpartition(".")[2] or name)
            continue
        part = DEPTH_GROUPS * int(found[1]) // depth
        first, last = -(-part * depth // DEPTH_GROUPS), -(-(part + 1) * depth // DEPTH_GROUPS) - 1
        groups.append(f"layers_{first:02d}_{last:02d}")
    return groups


class Recorder:
    """Numbers and durations between two log lines, as ``projection/<name>``."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def add(self, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._values.setdefault(name, []).append(float(value))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Record how many seconds the block takes, on the GPU's clock where there is one."""
        if torch.cuda.is_available():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
        else:
            began = time.perf_counter()
            yield
            self.add({name: time.perf_counter() - began})

    def means(self) -> dict[str, float]:
        """The mean of each number since the last call."""
        for name, start, end in self._events:
            end.synchronize()
            self.add({name: start.elapsed_time(end) / 1000})
        means = {f"projection/{name}": sum(values) / len(values) for name, values in self._values.items()}
        self._values, self._events = {}, []
        return means


class StepSample:
    """Weights kept from before an optimizer step, to measure its size without a copy of the model."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def take(self, weights: Sequence[Tensor]) -> None:
        self._kept = [_sampled(vector).clone() for vector in weights]

    def squared_steps(self, weights: Sequence[Tensor]) -> Tensor:
        """The squared norm [parameters] in fp64 of each vector's change since ``take``; of large ones an estimate."""
        squares = [
            (_sampled(vector) - kept).double().square().sum() * (len(vector) / max(1, len(kept)))
            for vector, kept in zip(weights, self._kept, strict=True)
        ]
        return torch.stack(squares).cpu()


def _sampled(vector: Tensor) -> Tensor:
    return vector[:: max(1, -(-len(vector) // SAMPLED_WEIGHTS))]
