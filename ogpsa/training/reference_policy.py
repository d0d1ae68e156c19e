"""DPO's reference log-probabilities: kept batch by batch as they are computed, so that a signal loses none of them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import DPOTrainer

from ogpsa.distributed import processes
from ogpsa.utils.journal import Journal
from ogpsa.utils.progress import Progress
from ogpsa.utils.signals import Interruption

# TRL's hash of the reference policy's weights, by which it keeps its own cache.
MODEL_HASH = "_precompute_model_hash"


class ReferencePolicyCache:
    """Keeps the results of the passes over a stage's pairs, reports progress, and stops on a signal.

    Args:
        folder: one file a process, which lasts as long as the stage's checkpoints.
        pairs: over all processes.
        interruption: asked before each batch.
        facts: what the numbers rest on in addition to weights and tokens.
    """

    def __init__(self, folder: Path, pairs: int, interruption: Interruption, facts: dict[str, Any]) -> None:
        self._file = folder / f"{processes.rank()}.jsonl"
        self._facts = facts | {"torch": torch.__version__, "cuda": torch.cuda.is_available()}
        self._interruption = interruption
        self._journal: Journal | None = None
        self._pairs, self._done = pairs, 0
        self._progress = Progress(pairs, "dpo: log-probabilities of the reference policy")

    @contextmanager
    def used_by(self, trainer_class: type["KeptReferenceTrainer"]) -> Iterator[type["KeptReferenceTrainer"]]:
        """A subclass whose passes go through this cache while its trainer is made, which is when TRL takes them."""
        with self._progress if processes.is_main() else nullcontext():
            cached: type[KeptReferenceTrainer] = type(trainer_class.__name__, (trainer_class,), {"passes": self})
            yield cached
            cached.passes = None

    def kept(self, model: str, batch: dict[str, Any]) -> tuple[str, tuple[Tensor, Tensor] | None]:
        """A batch's key, and its numbers where every process has its own.

        Raises:
            SystemExit: code 85, a signal asked for it.
        """
        if processes.any_process(self._interruption.requested):
            self._interruption.requested = True
        self._interruption.safe_point()
        if self._journal is None:
            self._journal = Journal(self._file, self._facts | {"model": model, "processes": processes.world_size()})
        digest = hashlib.sha256()
        for name in sorted(batch):
            if isinstance(value := batch[name], Tensor):
                digest.update(f"{name} {tuple(value.shape)}".encode() + value.cpu().contiguous().numpy().tobytes())
        key = digest.hexdigest()[:32]
        found = self._journal.pieces.get(key)
        if processes.any_process(found is None) or found is None:
            return key, None
        device = batch["input_ids"].device
        chosen, rejected = (torch.tensor(values, dtype=torch.float32, device=device) for values in found)
        self._count(len(chosen))
        return key, (chosen, rejected)

    def keep(self, key: str, chosen: Tensor, rejected: Tensor) -> None:
        """Write a batch's numbers [pairs], which fp32 holds, to disk; what is not finite is refused at its step."""
        if self._journal is not None and torch.isfinite(chosen).all() and torch.isfinite(rejected).all():
            self._journal.keep({key: [chosen.tolist(), rejected.tolist()]})
        self._count(len(chosen))

    def _count(self, pairs: int) -> None:
        self._done = min(self._pairs, self._done + pairs * processes.world_size())
        if processes.is_main():
            self._progress.show(self._done)


class KeptReferenceTrainer(DPOTrainer):
    """TRL's trainer, whose reference passes go through ``passes`` if a stage has them."""

    passes: ReferencePolicyCache | None = None

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if self.passes is None:
            return self._computed(model, inputs)
        key, found = self.passes.kept(str(vars(self)[MODEL_HASH]), inputs)
        if found is None:
            found = self._computed(model, inputs)
            self.passes.keep(key, *found)
        return found

    def _computed(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        chosen, rejected = super().compute_ref_log_probs(model, inputs)  # type: ignore[no-untyped-call]
        return chosen.float(), rejected.float()
