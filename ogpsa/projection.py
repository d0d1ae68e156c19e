"""The method in one screen: an orthonormal basis of the capability subspace, and its removal.

``orthonormal_basis`` and ``project`` are the formula for one matrix in one piece. Training runs ``Subspace``
(``ogpsa/subspace/subspace.py``), which computes the same from the other functions here, over parameters and shards.

Paper: arXiv 2602.07892. ``U`` spans the reference gradients ``R``; every safety gradient ``g`` becomes
``g - U Uᵀ g``, the steepest safety direction that leaves the reference losses unchanged to first order.
Sums over parameters run in fp64: in fp32 they are off by 1e-4 over millions of elements.
"""

import torch
from scipy.optimize import nnls
from torch import Tensor

# Eigenvalues of the Gram matrix below this share of the largest are rounding noise, not a direction.
EIGENVALUE_CUT = 1e-10
# Elements converted to fp64 at once: on a CPU what stays in its cache, on a GPU what keeps it busy.
CHUNK = {"cpu": 1 << 16, "cuda": 1 << 20}


def dots(rows: Tensor, others: Tensor) -> Tensor:
    """Inner products of ``rows`` [a, d] with ``others`` [b, d]: [a, b] in fp64."""
    chunk = CHUNK[rows.device.type]
    pieces = zip(rows.split(chunk, dim=1), others.split(chunk, dim=1), strict=True)
    return torch.stack([piece.double() @ other.double().T for piece, other in pieces]).sum(dim=0)


def orthonormalizing_weights(gram: Tensor, rank: int) -> Tensor:
    """Weights W [m, k ≤ rank] that make ``R @ W`` orthonormal, given R's Gram matrix [m, m] in fp64.

    The columns are R's leading left singular directions. When the rank covers all references only their
    span matters, so each counts with norm one and a short reference is not lost beside a long one.
    """
    norms = gram.diagonal().clamp(min=0).sqrt()
    kept = norms > 0
    scale = torch.where(kept, 1 / norms.where(kept, 1), 0) if rank >= int(kept.sum()) else torch.ones_like(norms)
    eigenvalues, vectors = torch.linalg.eigh(gram * scale[:, None] * scale)
    leading = [i for i in range(len(eigenvalues)) if eigenvalues[i] > EIGENVALUE_CUT * eigenvalues[-1]][::-1][:rank]
    weights: Tensor = scale[:, None] * vectors[:, leading] * eigenvalues[leading].rsqrt()
    return weights


def combine(weights: Tensor, rows: Tensor) -> Tensor:
    """``weightsᵀ @ rows`` for weights [m, k] in fp64 and rows [m, n]: [k, n] in the rows' dtype."""
    weights = weights.to(rows.device)
    combined = rows.new_empty(weights.shape[1], rows.shape[1])
    chunk = CHUNK[rows.device.type]
    for target, piece in zip(combined.split(chunk, dim=1), rows.split(chunk, dim=1), strict=True):
        target.copy_(weights.T @ piece.double())
    return combined


def orthonormal_basis(references: Tensor, rank: int) -> Tensor:
    """Basis U [d, k ≤ rank] of the leading directions of the reference gradients [d, m].

    Zero references, and those within about 1e-5 of the others' span, lower k. Orthonormal to 1e-5 in fp32.

    Raises:
        ValueError: a reference holds NaN or Inf (named by its column), or the rank is negative.
    """
    if rank < 0:
        raise ValueError(f"rank is {rank}; it must be 0 or more")
    for column in range(references.shape[1]):
        if not torch.isfinite(references[:, column]).all():
            raise ValueError(f"reference {column} of {references.shape[1]} holds NaN or Inf")
    rows = references.T
    # The second round removes what rounding left of the first, which near-parallel references magnify.
    for _ in range(2):
        weights = orthonormalizing_weights(dots(rows, rows), rank)
        rows = combine(weights, rows)
    return rows.T


def feasible_coefficients(coefficients: Tensor, reference_coordinates: Tensor) -> Tensor:
    """Nearest coefficients [k] that no reference opposes: ``reference_coordinatesᵀ c ≥ 0`` (``sided: conflict``).

    With R = U A, a step along -g lowers or keeps reference loss i exactly if ``aᵢ · Uᵀg ≥ 0``; what violates
    this is removed and nothing else (A-GEM for one reference). A [k, m] and the coefficients are fp64.
    """
    # Moreau: projecting on the cone leaves c + A v, where v ≥ 0 minimises |c + A v|.
    multipliers, _ = nnls(reference_coordinates.cpu().numpy(), -coefficients.cpu().numpy())
    return coefficients + reference_coordinates @ torch.from_numpy(multipliers).to(coefficients)


def project(gradient: Tensor, basis: Tensor) -> Tensor:
    """``g - U Uᵀ g`` for a gradient [d] and an orthonormal basis [d, k] (the paper's main equation)."""
    projected = gradient
    # Where most of g goes, rounding in U is large beside what stays: a second pass removes it.
    for _ in range(2):
        coefficients = dots(basis.T, projected[None])[:, 0]
        projected = projected - (basis.double() @ coefficients).to(gradient.dtype)
    return projected
