"""The three procedures as turns over one model and one optimizer, for a model that fits the device only once.

Needs torch and transformers alone: the loop is the one that a user of ``ogpsa.subspace.subspace.Subspace`` would write.
"""

import time
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.architectures import architecture
from benchmarks.authors import AuthorsProcedure
from benchmarks.common import MemoryPeak, Row, synchronize
from benchmarks.worker import Job, Procedure
from ogpsa.subspace.shards import ParameterShards
from ogpsa.subspace.subspace import Subspace

Batch = dict[str, Tensor]


class OneModel:
    """A causal language model in fp32, trained by autocast in bf16 on a GPU, on random rows of equal length.

    Plain gradient descent, which keeps no state: a faster optimizer step makes the overhead look larger, if anything.

    Args:
        job: its procedure and stage are left aside.
    """

    def __init__(self, job: Job) -> None:
        torch.manual_seed(0)
        shape = architecture(job.architecture)
        self.job = job
        self.device = torch.device(job.device)
        self.model = shape.build(self.device)
        if self.device.type == "cuda":
            # The name that older releases of transformers know, too.
            self.model.gradient_checkpointing_enable()
        self.shards = ParameterShards(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-6)
        self.authors = AuthorsProcedure(self.model, job.bf16)
        self.authors.active = False
        self.subspace = Subspace(job.rank)
        self.taken: Counter[Procedure] = Counter()

        def batches(count: int) -> list[Batch]:
            ids = torch.randint(shape.vocabulary, (count, job.tokens), device=self.device)
            return [{"input_ids": part, "labels": part} for part in ids.split(job.micro_rows)]

        self.batches = batches(job.rows)
        self.sets = [batches(job.samples) for _ in range(job.rank)]

    def step(self, procedure: Procedure) -> Row:
        """One optimizer step: ``seconds``, of them ``refresh_seconds`` and ``projection_seconds``, ``peak_bytes``;
        never ``logged``: the diagnostics are the trainer's.

        The peak is that of the procedure alone: what the others keep on the device is taken off.
        """
        due = self.taken[procedure] % (self.job.refresh_every or self.job.steps) == 0
        self.taken[procedure] += 1
        kept = 0 if procedure == "ogpsa" or self.subspace.basis is None else self.subspace.basis.nbytes
        with MemoryPeak(self.device) as peak:
            start = self._now()
            if due and procedure == "ogpsa":
                self._refresh()
            elif due and procedure == "authors":
                self.authors.refresh(self.sets)
            refreshed = self._now()
            self.authors.active = procedure == "authors"
            self._backward(self.batches)
            self.authors.active = False
            before = self._now()
            if procedure == "ogpsa":
                self.subspace.project_(self.shards.gradients())
            projected = self._now()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            end = self._now()
        return {
            "seconds": end - start,
            "refresh_seconds": refreshed - start,
            "projection_seconds": projected - before,
            "peak_bytes": peak.peak - kept,
            "logged": False,
        }

    def _refresh(self) -> None:
        self.subspace.clear()
        rows = [torch.empty(len(self.sets), len(piece), device=self.device) for piece in self.shards.weights()]
        for index, batches in enumerate(self.sets):
            self._backward(batches)
            for target, gradient in zip(rows, self.shards.gradients(), strict=True):
                target[index] = gradient
            self.optimizer.zero_grad()
        self.subspace.estimate(rows, [f"set {index}" for index in range(len(self.sets))])

    def _backward(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.job.bf16):
                loss = self.model(**batch).loss / len(batches)
            loss.backward()

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()
