"""The capability subspace of a model: one basis over all trainable parameters, or one per parameter."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ogpsa.projection import combine, dots, feasible_coefficients, orthonormalizing_weights
from ogpsa.subspace.basis import Basis, StoredDtype

if TYPE_CHECKING:
    from ogpsa.subspace.settings import BasisDevice, BasisDtype, Scope, Sided

# Rows within this of orthonormal are not orthonormalized again.
ORTHONORMAL_WITHIN = 1e-7
# A gradient that keeps less of its squared norm than this is projected twice: rounding would show.
SECOND_PASS_BELOW = 1e-2


@dataclass(frozen=True)
class Layout:
    """The place of one process's tensors in the whole vector.

    Attributes:
        groups: the layer group of each parameter, for reports; None reports on the whole vector alone.
        references: a name for each reference gradient, for reports; None leaves them out.
        copies: for each parameter, how many processes hold the same elements; None where nothing is sharded.
        all_reduce: sums a table over the processes; None where nothing is sharded.
        broadcast: gives the first process's tensors to every process; None where nothing is sharded. Eigenvectors of
            equal matrices may differ by a sign between machines, and shards of a basis must not.
    """

    groups: Sequence[str] | None = None
    references: Sequence[str] | None = None
    copies: Sequence[int] | None = None
    all_reduce: Callable[[Tensor], Tensor] | None = None
    broadcast: Callable[[list[Tensor]], list[Tensor]] | None = None


class NotFiniteError(ValueError):
    """A reference gradient holds NaN or Inf; ``index`` is its place among the references."""

    def __init__(self, name: str, index: int) -> None:
        super().__init__(f"the reference gradient of '{name}' holds NaN or Inf")
        self.index = index


class Subspace:
    """Estimated from reference gradients, then removed from each safety gradient in place.

    Gradients and references are lists with one tensor per parameter, in a fixed order. ``scope: global`` treats
    them as one vector (the paper's formula), ``scope: tensor`` each on its own (the authors' code). Across
    sharded processes a projection costs one sum of (rank + 1) numbers for each layer group, or in tensor
    scope for each parameter.

    Args:
        rank: columns wanted (r); fewer where the references span less.
        scope: ``global`` or ``tensor``.
        sided: ``two`` removes the whole component, ``conflict`` only what opposes a reference.
        basis_dtype: how the basis U is stored: fp32, bf16, int8, or ``auto`` (fp32 on the CPU, bf16 on a GPU).
        basis_device: ``device``, beside the gradients, or ``host``.
    """

    def __init__(
        self,
        rank: int,
        scope: "Scope" = "global",
        sided: "Sided" = "two",
        basis_dtype: "BasisDtype" = "auto",
        basis_device: "BasisDevice" = "device",
        layout: Layout | None = None,
    ) -> None:
        self.rank = rank
        self.scope = scope
        self.sided = sided
        self.basis_dtype = basis_dtype
        self.basis_device = basis_device
        self.layout = layout or Layout()
        self.basis: Basis | None = None
        # A block: the parameters that share a basis. A part: those of a block that lie in one layer group.
        # The references' coordinates A [blocks, k, m] in the orthonormal frame.
        self.coordinates = torch.empty(0)
        # Gram matrices [parts, k, k] of the stored basis.
        self._gram = torch.empty(0)
        # What follows from them: S^(-1/2) of each block, S⁻¹ of each part.
        self._roots = torch.empty(0)
        self._inverses = torch.empty(0)

    @property
    def effective_rank(self) -> int:
        """Columns kept by the last estimate; the largest of all parameters in tensor scope."""
        return 0 if self.basis is None else self.basis.rank

    def stored_dtype(self, device: torch.device) -> StoredDtype:
        """The stored type of a basis of gradients on ``device``."""
        if self.basis_dtype == "auto":
            return "bf16" if device.type == "cuda" else "fp32"
        return self.basis_dtype

    def clear(self) -> None:
        """Forget the basis, so that its memory is free for the reference gradients."""
        self.basis = None

    def estimate(self, references: list[Tensor], names: Sequence[str]) -> None:
        """Set the basis to the leading directions of the references.

        Args:
            references: per parameter a tensor [m, n]: m reference gradients, flattened. The list is emptied,
                so that no more than one parameter's gradients are held twice.
            names: the m references' names, for the error.

        Raises:
            NotFiniteError: a reference holds NaN or Inf; it is named, and the estimate changes nothing.
        """
        blocks, _ = self._parts(len(references))
        gram = self._summed_by(_padded_dots(references), blocks)
        for index, name in enumerate(names):
            if not torch.isfinite(gram[:, index, index]).all():
                raise NotFiniteError(name, index)
        rows = list(references)
        references.clear()
        combined = [torch.eye(len(names), dtype=torch.float64)] * len(gram)
        latest = gram
        # The second round removes what rounding left of the first, which near-parallel references magnify.
        for _ in range(2):
            # All parameters of a block have the same number of rows.
            sizes = dict(zip(blocks, map(len, rows), strict=True))
            weights = self._broadcast(
                [orthonormalizing_weights(latest[block, :size, :size], self.rank) for block, size in sizes.items()]
            )
            for index, block in enumerate(blocks):
                rows[index] = combine(weights[block], rows[index])
            combined = [table @ weight for table, weight in zip(combined, weights, strict=True)]
            latest = self._summed_by(_padded_dots(rows), blocks)
            if torch.allclose(latest, (latest > 0.5).double(), rtol=0, atol=ORTHONORMAL_WITHIN):
                break
        device = rows[0].device
        self.basis = Basis.store(rows, self.stored_dtype(device), self.basis_device)
        self._set_gram(self._summed_by(self.basis.gram(device), self._parts(len(blocks))[1]))
        self.coordinates = self._roots @ torch.stack(
            [_padded(table.T @ gram[block], self.basis.rank, len(names)) for block, table in enumerate(combined)]
        )

    def project_(self, gradients: Sequence[Tensor]) -> dict[str, float]:
        """Replace every gradient (fp32) by its projection and report what was removed.

        Returns:
            ``norm_retained``: norm after over norm before; ``cosine``: of the gradient with the subspace,
            before the projection; in global scope ``signed_cosine/<reference>``: the gradient's cosine with each
            reference, as far as that lies in the subspace. All over the whole gradient, and with ``<layer group>/`` in
            front for each.
        """
        vectors = [gradient.view(-1) for gradient in gradients]
        measured = self.measure(vectors)
        report = self.report(measured)
        kept = self.remove_(vectors, measured)
        if kept < SECOND_PASS_BELOW:
            self.remove_(vectors, self.measure(vectors))
        return report

    def measure(self, vectors: Sequence[Tensor]) -> Tensor:
        """Table [parts, k + 1] in fp64: ``Uᵀv`` and ``|v|²`` of flat vectors, summed over the processes."""
        return self.summed(self.local_dots(vectors))

    def local_dots(self, vectors: Sequence[Tensor]) -> Tensor:
        """Table [parameters, k + 1] of the same, before the sum over parts and processes (``summed``)."""
        if self.basis is None:
            return torch.zeros(len(vectors), 1, dtype=torch.float64)
        return self.basis.dots(vectors).cpu()

    def summed(self, values: Tensor) -> Tensor:
        """Numbers [parameters, …] summed within each part of ``measure``'s table and over the processes."""
        return self._summed_by(values, self._parts(len(values))[1])

    def remove_(self, vectors: Sequence[Tensor], measured: Tensor, sign: int = 1) -> float:
        """Take out of the vectors what ``measured`` says is inside the subspace.

        Args:
            sign: -1 where the table is that of an optimizer step, which points against the gradient.

        Returns:
            The share of the squared norm that is left, the smallest of all blocks.
        """
        if not self.effective_rank or self.basis is None or not measured.isfinite().all():
            return 1.0
        change = self._change(self._inside(measured), sign)
        blocks, _ = self._parts(len(vectors))
        removed = (self._roots @ change[:, :, None])[:, :, 0]
        self.basis.subtract_(vectors, removed[torch.tensor(blocks)].to(vectors[0].device))
        totals = change.new_zeros(len(change)).index_add_(0, self._part_blocks(), measured[:, -1])
        left = 1 - change.square().sum(dim=1)[totals > 0] / totals[totals > 0]
        return float(left.min()) if len(left) else 1.0

    def report(self, measured: Tensor, sign: int = 1) -> dict[str, float]:
        """``norm_retained`` and ``cosine``, as in ``project_``, of what ``measure`` measured; NaN if that holds any."""
        if not measured.isfinite().all():
            return {"norm_retained": math.nan, "cosine": math.nan}
        if not self.effective_rank or not measured[:, -1].any():
            return {"norm_retained": 1.0, "cosine": 0.0}
        inside = self._inside(measured)
        change = self._change(inside, sign)
        total = float(measured[:, -1].sum())
        numbers = {
            "norm_retained": math.sqrt(max(0.0, 1 - float(change.square().sum()) / total)),
            "cosine": math.sqrt(min(1.0, float(inside.square().sum()) / total)),
        }
        numbers |= self._toward_references(measured, sign)
        if self.layout.groups is None:
            return numbers
        # In a part of a block the basis is not orthonormal: its own Gram matrix takes the place of the identity.
        part_blocks = self._part_blocks()
        removed = (self._roots @ change[:, :, None])[part_blocks]
        inside_parts = measured[:, :-1, None]
        norms = measured[:, -1]
        within = (inside_parts.mT @ self._inverses @ inside_parts)[:, 0, 0]
        after = norms - (2 * inside_parts.mT @ removed - removed.mT @ self._gram @ removed)[:, 0, 0]
        for group in dict.fromkeys(self.layout.groups):
            parts = torch.tensor([part for part, label in enumerate(self._part_groups()) if label == group])
            norm = float(norms[parts].sum())
            if norm > 0:
                numbers[f"{group}/norm_retained"] = math.sqrt(max(0.0, float(after[parts].sum()) / norm))
                numbers[f"{group}/cosine"] = math.sqrt(min(1.0, max(0.0, float(within[parts].sum()) / norm)))
        return numbers

    def _toward_references(self, measured: Tensor, sign: int) -> dict[str, float]:
        """The signed cosines with the references, ``U c`` with the columns c of ``columns``, of what was measured."""
        if self.layout.references is None or self.scope == "tensor":
            return {}
        columns = self._roots[0] @ self.coordinates[0]
        products = sign * measured[:, :-1] @ columns
        squares = torch.einsum("km,pkl,lm->pm", columns, self._gram, columns).clamp(min=0)
        labels = self._part_groups() if self.layout.groups is not None else [""] * len(measured)
        numbers = {}
        for group in ("", *filter(None, dict.fromkeys(labels))):
            parts = torch.tensor([part for part, label in enumerate(labels) if label == group or not group])
            norms = (squares[parts].sum(dim=0) * measured[parts, -1].sum()).sqrt()
            for name, product, norm in zip(self.layout.references, products[parts].sum(dim=0), norms, strict=True):
                if norm > 0:
                    numbers[f"{group}/signed_cosine/{name}".removeprefix("/")] = float(product / norm)
        return numbers

    def state_dict(self) -> dict[str, Tensor]:
        """The basis and the references' coordinates as named tensors, ready for safetensors."""
        if self.basis is None:
            return {}
        return self.basis.state_dict() | {"coordinates": self.coordinates, "gram": self._gram}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Restore what ``state_dict`` gave; the basis goes to ``device``."""
        self.basis = None
        if state:
            stored = {name: tensor for name, tensor in state.items() if name not in ("coordinates", "gram")}
            self.basis = Basis.load(stored, self.basis_dtype, self.basis_device, device)
            self.coordinates = state["coordinates"].cpu()
            self._set_gram(state["gram"].cpu())

    def _parts(self, count: int) -> tuple[list[int], list[int]]:
        """For each parameter its block, which has its own basis, and its part: the block's share of a layer group."""
        if self.scope == "tensor":
            return list(range(count)), list(range(count))
        groups = self.layout.groups or [""] * count
        order = list(dict.fromkeys(groups))
        return [0] * count, [order.index(group) for group in groups]

    def _part_groups(self) -> list[str]:
        """The layer group of each part."""
        groups = self.layout.groups or []
        return list(groups) if self.scope == "tensor" else list(dict.fromkeys(groups))

    def _part_blocks(self) -> Tensor:
        parts = len(self._gram)
        return torch.arange(parts) if self.scope == "tensor" else torch.zeros(parts, dtype=torch.long)

    def _summed_by(self, tables: Tensor, parts: Sequence[int]) -> Tensor:
        """Sum per-parameter tables [parameters, …] within each part and over the processes."""
        if self.layout.copies is not None:
            copies = torch.tensor(self.layout.copies, dtype=tables.dtype)
            tables = tables / copies.view(-1, *[1] * (tables.dim() - 1))
        summed: Tensor = tables.new_zeros(max(parts) + 1, *tables.shape[1:]).index_add_(0, torch.tensor(parts), tables)
        if self.layout.all_reduce is not None:
            summed = self.layout.all_reduce(summed)
        return summed

    def _set_gram(self, gram: Tensor) -> None:
        """Take the parts' Gram matrices and compute what follows from them."""
        self._gram = gram
        blocks = self._part_blocks()
        whole = gram.new_zeros(int(blocks.max()) + 1, *gram.shape[1:]).index_add_(0, blocks, gram)
        eigenvalues, vectors = torch.linalg.eigh(whole)
        # Near one where the block has that column, zero where it has fewer.
        roots = torch.where(eigenvalues > 0.5, eigenvalues.clamp(min=0.5).rsqrt(), 0)
        self._roots, self._inverses = self._broadcast(
            [vectors @ torch.diag_embed(roots) @ vectors.mT, torch.linalg.pinv(gram, hermitian=True)]
        )

    def _broadcast(self, tensors: list[Tensor]) -> list[Tensor]:
        return tensors if self.layout.broadcast is None else self.layout.broadcast(tensors)

    def _inside(self, measured: Tensor) -> Tensor:
        """Coordinates [blocks, k] in the orthonormal frame ``U S^(-1/2)``: rounding U only tilts the span."""
        parts = measured[:, :-1]
        summed = parts if self.scope == "tensor" else parts.sum(dim=0, keepdim=True)
        return (self._roots @ summed[:, :, None])[:, :, 0]

    def _change(self, inside: Tensor, sign: int) -> Tensor:
        """The part of the coordinates [blocks, k] that is removed."""
        if self.sided == "two":
            return inside
        feasible = [feasible_coefficients(sign * c, a) for c, a in zip(inside, self.coordinates, strict=True)]
        return inside - sign * torch.stack(feasible)


def _padded(table: Tensor, rows: int, columns: int) -> Tensor:
    padded = table.new_zeros(rows, columns)
    padded[: table.shape[0], : table.shape[1]] = table
    return padded


def _padded_dots(rows: Sequence[Tensor]) -> Tensor:
    """Gram matrix of each parameter's rows [m, n], all of the largest m: [parameters, m, m] in fp64."""
    largest = max(map(len, rows))
    return torch.stack([_padded(dots(own, own).cpu(), largest, largest) for own in rows])
