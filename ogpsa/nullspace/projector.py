"""NSPO while a trainer trains: its gradients or its weights projected on the layers' null spaces, and what leaks.

A layer's rows (its outputs) are what FSDP2 shards, and each row is projected alone, so that no process needs another's.
"""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer

from ogpsa.models.text import linear_layers
from ogpsa.nullspace.settings import Variant
from ogpsa.nullspace.space import NullSpace
from ogpsa.subspace.measurements import Recorder, is_logged
from ogpsa.subspace.shards import shard_like


class NullSpaceTrainer(Trainer):
    """Mixed in before a trainer's own class; the gradients are whole and not yet clipped where they are projected."""

    null_spaces: "NullSpaceProjector"

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.null_spaces.project()
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs | self.null_spaces.recorder.means() if "loss" in logs else logs, start_time)


class NullSpaceProjector:
    """Keeps the steps of a model's linear layers in their null spaces, as far as ``variant`` does.

    Built before a checkpoint is loaded: the weights are those that the stage starts from. For one process, DDP and
    FSDP2.

    Args:
        spaces: of each protected layer, by its name.
        retract_every: steps between two retractions of ``code``; in GRPO, generations, at the last update of each.
        updates: optimizer steps of a generation; elsewhere 1.
        setup_seconds: the time that computing the spaces took.

    Attributes:
        recorder: numbers since the last log line.
    """

    def __init__(
        self,
        trainer: Trainer,
        spaces: Mapping[str, NullSpace],
        variant: Variant,
        retract_every: int,
        updates: int = 1,
        setup_seconds: float = 0.0,
    ) -> None:
        self._trainer = trainer
        self._spaces = spaces
        self._variant = variant
        self._retract_every, self._updates = (1, 1) if variant == "exact" else (retract_every, updates)
        model = cast(nn.Module, trainer.model)
        self._layers = {name: cast(nn.Linear, model.get_submodule(name)) for name in spaces}
        # ``paper`` only measures with the starting weights, at logged steps.
        self._on_host = variant == "paper"
        self._start = {name: self._placed(layer.weight.detach().clone()) for name, layer in self._layers.items()}
        shares = _by_kind({name: space.share for name, space in spaces.items()})
        bases = {id(space.basis): space.basis.nbytes for space in spaces.values()}
        self._facts = {"setup_seconds": setup_seconds, "basis_bytes": sum(bases.values())} | {
            f"null_share/{kind}/{name}": value
            for kind, found in shares.items()
            for name, value in zip(("min", "median", "max"), found, strict=True)
        }
        self.recorder = Recorder()

    def begin(self, **event: Any) -> None:
        """Shard the stage's starting weights as the weights are sharded now."""
        self._start = {
            name: self._placed(shard_like(self._layers[name].weight, start).view(-1, start.shape[1]))
            for name, start in self._start.items()
        }

    def project(self) -> None:
        """Project the accumulated and reduced gradients in place in ``paper``; elsewhere only measure them."""
        if is_logged(self._trainer.state):
            sizes = self._no_sizes()
            for name, gradient in self._gradients():
                sizes += _sizes(self._spaces[name].outside(gradient), gradient)
            self.recorder.add({"gradient_outside": self._share(sizes)})
        if self._variant == "paper":
            with self.recorder.timed("projection_seconds"):
                for name, gradient in self._gradients():
                    gradient.copy_(self._spaces[name].project(gradient))

    def after_step(self, **event: Any) -> None:
        """Retract the weights if it is due, and measure which share of their change lies outside the null spaces."""
        if self._is_due():
            sizes = self._no_sizes()
            with self.recorder.timed("projection_seconds"):
                for name, weight, moved in self._weights():
                    outside = self._spaces[name].outside(moved)
                    sizes += _sizes(outside, moved)
                    weight.sub_(outside)
            self.recorder.add({"retracted": self._share(sizes)})
        if is_logged(self._trainer.state):
            sizes = self._no_sizes()
            for name, _, moved in self._weights():
                sizes += _sizes(self._spaces[name].outside(moved), moved)
            self.recorder.add({"leak": self._share(sizes), **self._facts})

    def _is_due(self) -> bool:
        """Whether to retract the weights after the step just taken: at the first, then every ``retract_every``."""
        generations, updates = divmod(self._trainer.state.global_step + 1, self._updates)
        return self._variant != "paper" and not updates and (generations - 1) % self._retract_every == 0

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        """This process's rows of each protected layer's gradient, where the loss has given it one."""
        for name, layer in self._layers.items():
            if layer.weight.grad is not None:
                yield name, _local(layer.weight.grad)

    def _weights(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """This process's rows of each protected layer's weight, and how far they are from where the stage started."""
        for name, layer in self._layers.items():
            weight = _local(layer.weight.detach())
            yield name, weight, weight - self._start[name].to(weight.device)

    def _placed(self, start: Tensor) -> Tensor:
        return start.cpu() if self._on_host else start

    def _no_sizes(self) -> Tensor:
        return torch.zeros(2, dtype=torch.float64, device=self._trainer.args.device)

    def _share(self, sizes: Tensor) -> float:
        """The norm of all outside parts by that of the wholes, over all processes."""
        if any(isinstance(layer.weight, DTensor) for layer in self._layers.values()):
            sizes = cast(Tensor, self._trainer.accelerator.reduce(sizes, "sum"))
        outside, whole = sizes.sqrt().tolist()
        return outside / whole if whole else 0.0


def describe(model: PreTrainedModel, protected: Mapping[str, NullSpace]) -> list[str]:
    """Lines for the log: how much is protected, unprotected and frozen, and the null shares."""
    inside = sum(model.get_submodule(name).get_parameter("weight").numel() for name in protected)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trained
    lines = [
        f"{inside / 1e6:.3f} M weights of {len(protected)} of {len(linear_layers(model))} linear layers protected, "
        f"{(trained - inside) / 1e6:.3f} M trained unprotected, {frozen / 1e6:.3f} M frozen"
    ]
    kinds = _by_kind({name: space.share for name, space in protected.items()})
    lines += [
        f"null share of {kind}: min {low:.2f}, median {middle:.2f}, max {high:.2f}"
        for kind, (low, middle, high) in kinds.items()
    ]
    return lines


def _by_kind(shares: Mapping[str, float]) -> dict[str, tuple[float, float, float]]:
    """Least, median and largest value by the last part of the layers' names."""
    kinds: dict[str, list[float]] = {}
    for name, share in shares.items():
        kinds.setdefault(name.rpartition(".")[2], []).append(share)
    return {kind: (min(found), statistics.median(found), max(found)) for kind, found in kinds.items()}


def _sizes(outside: Tensor, whole: Tensor) -> Tensor:
    """Squared norms [2] in fp64."""
    return torch.stack([torch.linalg.vector_norm(one, dtype=torch.float64).square() for one in (outside, whole)])


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
