"""How far training has moved the weights, which is most of what the tax depends on at a given safety."""

from math import sqrt
from pathlib import Path

from ogpsa.config import Config
from ogpsa.runs import merged_folder, stage_folder


def moved(config: Config, directory: Path) -> float | None:
    """Distance of a finished run's last weights from the untuned ones, as a share of their length (Euclidean).

    None for a model that is not the testbed's, or whose base is no longer in the cache.
    """
    if config.model.path is not None:
        return None
    from ogpsa.testbed.cache import base_key

    base = Path(config.cache_dir) / "bases" / base_key(config, threads=1)  # as the workers that ran it
    last = stage_folder(directory, config, config.stages[-1].name)
    tuned = merged_folder(last) if merged_folder(last).is_dir() else last
    return relative_distance(base, tuned) if base.is_dir() and tuned.is_dir() else None


def relative_distance(before: Path, after: Path) -> float:
    """``|after - before| / |before|`` over all tensors of two checkpoints, in fp64, tensor by tensor."""
    from safetensors import safe_open

    from ogpsa.merging import tensor_files

    files = tensor_files(before)
    change = length = 0.0
    for name, file in tensor_files(after).items():
        with safe_open(files[name], framework="pt") as opened:
            start = opened.get_tensor(name).double()
        with safe_open(file, framework="pt") as opened:
            change += float((opened.get_tensor(name).double() - start).square().sum())
        length += float(start.square().sum())
    return sqrt(change / length)
