"""Distance and direction of the weights' displacement, on which most of the tax at a given safety depends."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING

from ogpsa.config import Config
from ogpsa.runs.directory import checkpoints
from ogpsa.runs.inputs import folder_digest, untuned_digest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Displacement:
    """The two ends of a run's way: the untuned model's folder and its last checkpoint."""

    untuned: Path
    tuned: Path


def displacement_of(config: Config, directory: Path) -> Displacement | None:
    """That of a finished run; None where its weights or its starting ones are missing: nothing is fetched."""
    tuned = checkpoints(directory)
    base = untuned_folder(config)
    if base is None or not base.is_dir() or not tuned:
        return None
    return Displacement(base, tuned[-1]) if untuned_digest(directory) in (None, folder_digest(base)) else None


def untuned_folder(config: Config) -> Path | None:
    """Where the untuned model is or, on the testbed, would be trained; None for one that has not been fetched."""
    if config.model.path is not None:
        from ogpsa.models.files import here_already

        return here_already(config.model)
    from ogpsa.testbed.cache import WEIGHTS, base_key, is_shipped

    return WEIGHTS if is_shipped(config) else Path(config.cache_dir) / "bases" / base_key(config)


def relative_distance(way: Displacement) -> float:
    """``|tuned - untuned| / |untuned|`` over all tensors, in fp64, tensor by tensor."""
    change = length = 0.0
    for start, tuned in _tensors(way.untuned, way.tuned):
        change += float((tuned - start).square().sum())
        length += float(start.square().sum())
    return sqrt(change / length)


def cosine(one: Displacement, other: Displacement) -> float:
    """Cosine between the displacements of two runs from the same untuned model, computed the same way."""
    product = squares = other_squares = 0.0
    for start, mine, theirs in _tensors(one.untuned, one.tuned, other.tuned):
        product += float(((mine - start) * (theirs - start)).sum())
        squares += float((mine - start).square().sum())
        other_squares += float((theirs - start).square().sum())
    return product / sqrt(squares * other_squares)


def _tensors(*checkpoints: Path) -> Iterator[tuple["Tensor", ...]]:
    """Each tensor that all of them hold, one at a time: a checkpoint may leave out one that is tied to another."""
    from safetensors import safe_open

    from ogpsa.training.merging import tensor_files

    files = [tensor_files(checkpoint) for checkpoint in checkpoints]
    for name in [name for name in files[-1] if all(name in own for own in files)]:
        tensors = []
        for own in files:
            with safe_open(own[name], framework="pt") as opened:
                tensors.append(opened.get_tensor(name).double())
        yield tuple(tensors)
