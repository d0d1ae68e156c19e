"""The settings of a projection. Imports nothing heavy: they are validated before torch is loaded."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from ogpsa.utils.errors import closest_match

Scope = Literal["global", "tensor"]

Sided = Literal["two", "conflict"]

Target = Literal["gradient", "update"]

BasisDtype = Literal["auto", "fp32", "bf16", "int8"]

BasisDevice = Literal["device", "host"]

Selection = Literal["random", "conflict"]

# The paper's ablations go as far, and so do the GPU's kernels.
MAX_RANK = 32

# Rows whose mean gradient is the safety gradient that reference rows are chosen by.
SAFETY_SAMPLE = 64


@dataclass(frozen=True)
class ProjectionSettings:
    """The projection of one stage; the paper's symbols in brackets.

    Attributes:
        reference_sets: names of the reference sets, one per capability dimension (M of them).
        rank: columns of the basis U (r); 0 runs the reference passes and removes nothing.
        samples: rows drawn from each set (N).
        refresh_every: optimizer steps between two estimates (K); None estimates once.
        share: instead of ``refresh_every``, the reference rows that all estimates may read together, as a share of the
            training's rows; the first is made in any case.
        scope: ``global`` projects the whole trainable vector, ``tensor`` each parameter on its own.
        sided: ``two`` removes the whole component, ``conflict`` only what would raise a reference loss.
        target: what is projected: the ``gradient``, or the ``update``, the optimizer's finished step.
        streaming: spend 1/K of the samples at every step instead of all of them every K steps.
        basis_dtype: how the basis is stored; ``auto`` is fp32 on the CPU and bf16 on a GPU.
        basis_device: where it is stored: beside the gradients, or on the ``host`` and fetched piece by piece.
        refresh_after_first_step: estimate once more after the first step that moves the weights, for adapters:
            before it LoRA's B is zero, and with it every gradient of A.
        selection: which rows of each set: drawn at ``random``, or those in the sharpest ``conflict`` with the safety
            gradient at the stage's starting weights.
    """

    reference_sets: tuple[str, ...]
    rank: int
    samples: int
    refresh_every: int | None
    scope: Scope = "global"
    sided: Sided = "two"
    target: Target = "gradient"
    streaming: bool = False
    basis_dtype: BasisDtype = "auto"
    basis_device: BasisDevice = "device"
    refresh_after_first_step: bool = False
    selection: Selection = "random"
    share: float | None = None

    def resolved(self, steps: int, rows: int) -> "ProjectionSettings":
        """The settings with K in place of ``share``, for a training of ``steps`` optimizer steps of ``rows`` each."""
        if self.share is None:
            return self
        estimates = int(self.share * steps * rows / (len(self.reference_sets) * self.samples))
        estimates = max(1, estimates - self.refresh_after_first_step)
        return replace(self, share=None, refresh_every=-(-steps // estimates))

    @property
    def chunks(self) -> int:
        """Reference gradients per set, ``ceil(r / M)``; at least one, so that rank 0 runs its pass."""
        return max(1, -(-self.rank // len(self.reference_sets)))

    def problems(self) -> list[str]:
        """Values of another type or out of range, and contradictions, one line each."""
        given: dict[str, object] = vars(self)
        if isinstance(given["reference_sets"], str):
            return [f"reference_sets: found a text; write ('{given['reference_sets']}',) for one set"]
        numbers = {key: given[key] for key in ("rank", "samples", "refresh_every")}
        if wrong := {key: value for key, value in numbers.items() if value is not None and type(value) is not int}:
            return [f"{key}: found {value!r}; expected a whole number" for key, value in wrong.items()]
        if not self.reference_sets:
            return ["reference_sets: found none; expected at least one"]
        found = []
        if self.refresh_every is not None and self.refresh_every < 1:
            found.append(f"refresh_every: found {self.refresh_every}; allowed: 1 or more, or none for once a stage")
        if not 0 <= self.rank <= MAX_RANK:
            found.append(f"rank: found {self.rank}; allowed: 0 to {MAX_RANK}")
        for key, kinds in (("scope", Scope), ("sided", Sided), ("target", Target), ("basis_dtype", BasisDtype),
                           ("basis_device", BasisDevice), ("selection", Selection)):  # fmt: skip
            value = vars(self)[key]
            if value not in get_args(kinds):
                allowed = ", ".join(get_args(kinds))
                found.append(f"{key}: found '{value}'; allowed: {allowed}{closest_match(value, get_args(kinds))}")
        if self.share is not None and not (self.share > 0 and self.refresh_every is None):
            found.append(f"refresh_every: found a share of {self.share:g}; allowed: one above 0, and no K with it")
        if self.chunks > self.samples:
            most = len(self.reference_sets) * self.samples
            found.append(
                f"rank: {self.rank} needs {self.chunks} chunks a set, but samples={self.samples} rows "
                f"can be cut into {self.samples}; allowed: 0 to {most}"
            )
        elif self.streaming and self.refresh_every is None:
            found.append("streaming: needs a number of steps in refresh_every")
        elif self.streaming and self.refresh_every and self.samples // self.chunks < self.refresh_every:
            found.append(
                f"streaming: chunks of {self.samples // self.chunks} rows (samples={self.samples}) "
                f"cannot be spread over refresh_every={self.refresh_every} steps; allowed: at most "
                f"{self.samples // self.chunks} steps, or more samples"
            )
        return found
