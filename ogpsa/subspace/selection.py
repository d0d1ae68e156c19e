"""Reference rows chosen by gradient conflict: those whose own loss a safety step from here would raise the most."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ogpsa.projection import dots
from ogpsa.subspace.measurements import Recorder
from ogpsa.subspace.references import ReferenceChunk, ReferencePasses, all_reduce
from ogpsa.utils.errors import SettingError

if TYPE_CHECKING:
    from ogpsa.subspace.shards import Shards
    from ogpsa.training.seam import ProjectedTrainer


def most_opposed(
    trainer: "ProjectedTrainer", shards: "Shards", safety: ReferenceChunk, candidates: ReferenceChunk, count: int
) -> list[int]:
    """The ``count`` candidates whose gradients' inner products with the mean safety gradient are the lowest.

    To first order a step down the safety gradient raises their losses the most. Costs a pass over each candidate alone.

    Raises:
        SettingError: a gradient holds NaN or Inf; its row is named.
    """
    single = [replace(candidates, rows=[row]) for row in candidates.rows]
    products = _inner_products(trainer, shards, [safety, *single])
    bad = [
        row + 1 for row, product in zip(candidates.rows, products.tolist(), strict=True) if not math.isfinite(product)
    ]
    if bad:
        found = f"reference set '{candidates.name}': row {bad[0]}" if len(bad) < len(single) else "the training rows"
        raise SettingError(f"selection: the gradient of {found} is infinite or NaN; take the row out")
    return [candidates.rows[index] for index in products.argsort(stable=True)[:count].tolist()]


def _inner_products(trainer: "ProjectedTrainer", shards: "Shards", chunks: list[ReferenceChunk]) -> Tensor:
    """Inner product [chunks - 1] in fp64 of each chunk's gradient with the first one's, at the current weights."""
    table: list[Tensor] = []
    target: list[Tensor] = []
    for index, gradients in ReferencePasses(trainer, shards, chunks).run(None, Recorder()):
        if index == 0:
            target = [gradient.clone() for gradient in gradients]
            continue
        pairs = zip(gradients, target, strict=True)
        table.append(torch.stack([dots(ours[None], theirs[None])[0, 0] for ours, theirs in pairs]).cpu())
    products = torch.stack(table)
    if shards.sharded:
        products = all_reduce(trainer, products / torch.tensor(shards.copies))
    return products.sum(dim=1)
