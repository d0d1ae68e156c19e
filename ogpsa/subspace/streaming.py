"""Reference gradients that are updated a slice of the samples at a time, one slice per step."""

from collections.abc import Sequence

import torch
from torch import Tensor


class StreamedReferences:
    """The mean gradient of each reference chunk, kept current by 1/K of its samples at every step.

    With C the sum over the slices of this pass, w their share of the chunk and P the pass before, the
    estimate is ``C + (1 - w) P``; in the first pass ``C / w``. After K steps at unchanged weights it is the
    chunk's whole gradient. Costs two fp32 rows a chunk, in memory and in every checkpoint.

    Args:
        shares: for each slice the share [chunks] of each chunk that is in it; they add up to one.
    """

    def __init__(self, shares: Sequence[Sequence[float]]) -> None:
        self._shares = shares
        self._current: list[Tensor] = []
        self._previous: list[Tensor] = []

    def begin(self, step: int, sizes: Sequence[Tensor]) -> int:
        """Make ready for ``step`` and return its slice; ``sizes`` are tensors like the gradients [n]."""
        position = step % len(self._shares)
        if position == 0:
            # With one slice a pass there is nothing to carry over.
            self._previous = self._current if len(self._shares) > 1 else []
            self._current = [like.new_zeros(len(self._shares[0]), len(like)) for like in sizes]
        return position

    def add(self, chunk: int, gradients: Sequence[Tensor]) -> None:
        """Add the slice's part of a chunk's mean gradient: one flat tensor [n] per parameter."""
        for rows, gradient in zip(self._current, gradients, strict=True):
            rows[chunk] += gradient

    def estimate(self, position: int) -> list[Tensor]:
        """The rows [chunks, n] of each parameter after slice ``position`` was added."""
        if position == len(self._shares) - 1:
            return [rows.clone() for rows in self._current]
        done = torch.tensor([sum(column) for column in zip(*self._shares[: position + 1], strict=True)])[:, None]
        done = done.to(self._current[0])
        if not self._previous:
            return [rows / done for rows in self._current]
        return [rows + (1 - done) * old for rows, old in zip(self._current, self._previous, strict=True)]

    def state_dict(self) -> dict[str, Tensor]:
        """Both passes' sums as named tensors."""
        passes = {"current": self._current, "previous": self._previous}
        return {f"{name}.{index}": rows for name, sums in passes.items() for index, rows in enumerate(sums)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` gave."""
        count = sum(name.startswith("current.") for name in state)
        self._current = [state[f"current.{index}"] for index in range(count)]
        self._previous = [state[f"previous.{index}"] for index in range(count)] if "previous.0" in state else []
