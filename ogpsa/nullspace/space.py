"""The null space of a linear layer's inputs, as pure functions of their second moments.

With K (in × tokens) the inputs of a layer W (out × in) on general rows, P projects on the span of the eigenvectors of
K Kᵀ with small eigenvalues. A step Δ of the weights that is multiplied by P on the right leaves the layer's outputs on
these rows nearly as they were: (W + ΔP) K ≈ W K. Paper: NSPO, arXiv 2512.11391.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ogpsa.nullspace.settings import Rule


@dataclass(frozen=True)
class NullSpace:
    """P by an orthonormal basis U of the smaller side: P = U Uᵀ, or P = I − U Uᵀ.

    Attributes:
        basis: U [in, k] with k at most in / 2.
        of_null_side: whether U spans the null space; otherwise its complement.
    """

    basis: Tensor
    of_null_side: bool

    @property
    def dimension(self) -> int:
        """Directions of the null space."""
        width, columns = self.basis.shape
        return columns if self.of_null_side else width - columns

    @property
    def share(self) -> float:
        """The share of all directions, in [0, 1]."""
        return self.dimension / len(self.basis)

    def project(self, rows: Tensor) -> Tensor:
        """``rows`` [out, in] times P."""
        inside = rows @ self.basis @ self.basis.T
        return inside if self.of_null_side else rows - inside

    def outside(self, rows: Tensor) -> Tensor:
        """``rows`` [out, in] times I − P: what ``project`` takes away."""
        inside = rows @ self.basis @ self.basis.T
        return rows - inside if self.of_null_side else inside

    def to(self, device: torch.device) -> "NullSpace":
        return replace(self, basis=self.basis.to(device))


def null_space(moments: Tensor, rule: Rule, threshold: float) -> tuple[NullSpace, Tensor]:
    """The null space of the second moments K Kᵀ [in, in], its basis in fp32.

    Returns:
        The space, and the threshold [in] above which each direction is null, ascending.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(moments.double())
    # Ascending, and none is negative but by rounding.
    eigenvalues = eigenvalues.clamp(min=0)
    if rule == "relative":
        sizes, whole = eigenvalues, eigenvalues[-1]
        null = sizes < threshold * whole
    else:
        sizes = eigenvalues.cumsum(0)
        whole = sizes[-1]
        null = sizes <= threshold * whole
    dimension = int(null.sum())
    of_null_side = 2 * dimension <= len(moments)
    basis = eigenvectors[:, :dimension] if of_null_side else eigenvectors[:, dimension:]
    return NullSpace(basis.float().contiguous(), of_null_side), sizes / whole if whole else sizes


def fitting_thresholds(levels: Tensor, least: float, most: float) -> tuple[float, float]:
    """Thresholds between these two, and no others but perhaps the two themselves, leave a share of null directions in
    [``least``, ``most``]; there are none where the first is not below the second.

    Args:
        levels: as ``null_space`` returns them.
    """
    width = len(levels)
    shares = torch.arange(width + 1, dtype=torch.float64) / width
    fewest, largest = int((shares < least).sum()), int((shares <= most).sum()) - 1
    return float(levels[fewest - 1]) if fewest else 0.0, float(levels[largest]) if largest < width else 1.0


def random_space(space: NullSpace, generator: torch.Generator) -> NullSpace:
    """A random space of the same dimension: the control."""
    basis, _ = torch.linalg.qr(torch.randn(space.basis.shape, generator=generator, dtype=torch.float64))
    return replace(space, basis=basis.float().contiguous())
