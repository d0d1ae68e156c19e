"""Reference gradients: a trainer's own loss on reference rows, without a trace in the training state."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from torch.utils.data import DataLoader

from ogpsa.subspace.measurements import Recorder
from ogpsa.utils.random_state import preserved_random_state

if TYPE_CHECKING:
    from ogpsa.subspace.shards import Shards
    from ogpsa.training.seam import ProjectedTrainer

# What a pass through ``training_step`` changes in transformers' and TRL's trainers, where they have it.
TOUCHED = ("_metrics", "_total_train_tokens", "current_gradient_accumulation_steps")


@dataclass(frozen=True)
class ReferenceChunk:
    """Rows of one reference set that give one reference gradient; ``loader`` knows how to collate them."""

    name: str
    rows: Sequence[int]
    loader: DataLoader[Any]

    def batches(self, rows: Sequence[int], size: int) -> list[Any]:
        """Micro-batches of at most ``size`` of the rows."""
        collate, data = self.loader.collate_fn, self.loader.dataset
        return [collate([data[i] for i in rows[start : start + size]]) for start in range(0, len(rows), size)]

    def longest_first(self, rows: Sequence[int]) -> list[int]:
        """The rows by their number of tokens, so that micro-batches hold little padding."""
        return sorted(rows, key=lambda row: _length(self.loader.dataset[row]), reverse=True)


def _length(row: Any) -> int:
    """Tokens of a row's sequences together, or characters of its messages; 0 of a row that is not a mapping."""
    values = row.values() if isinstance(row, Mapping) else ()
    numbers = sum(value.numel() for value in values if isinstance(value, Tensor))
    items = [item for value in values if isinstance(value, list) for item in value]
    return numbers + sum(len(item["content"]) if isinstance(item, Mapping) else 1 for item in items)


class ReferencePasses:
    """Backward passes over the reference chunks, whole or a slice of each at a time.

    The gradient in flight afterwards is that of a mean over the chunk's rows, or over its tokens where the
    trainer's loss counts tokens, whatever the micro-batch and the number of processes.

    Args:
        slices: parts that each chunk's rows are cut into.

    Attributes:
        shares: for each slice its share [chunks] of each chunk's mean.
    """

    def __init__(
        self, trainer: "ProjectedTrainer", shards: "Shards", chunks: Sequence[ReferenceChunk], slices: int = 1
    ) -> None:
        self._trainer = trainer
        self._shards = shards
        self._chunks = chunks
        self._processes = trainer.args.world_size
        self._size = trainer.args.per_device_train_batch_size
        # What each chunk's loss is divided by; None where it is a mean over rows.
        self._items: list[Tensor | None] = []
        self.shares: list[list[float]] = [[] for _ in range(slices)]
        with preserved_random_state():
            for chunk in chunks:
                self._plan(chunk)

    def _plan(self, chunk: ReferenceChunk) -> None:
        # Every process counts all rows, so the sum that transformers makes holds each of them once per process.
        items = self._count(chunk, chunk.rows)
        self._items.append(None if items is None else items / self._processes)
        for position, part in enumerate(self.shares):
            rows = chunk.rows[position :: len(self.shares)]
            held = self._count(chunk, rows)
            part.append(len(rows) / len(chunk.rows) if items is None or held is None else float(held / items))

    def _count(self, chunk: ReferenceChunk, rows: Sequence[int]) -> Tensor | None:
        device = self._trainer.args.device
        items: Any = self._trainer._get_num_items_in_batch(chunk.batches(rows, self._size), device)
        return None if items is None else torch.as_tensor(items, device=device)

    def run(self, position: int | None, recorder: Recorder) -> Iterator[tuple[int, list[Tensor]]]:
        """For each chunk its index and the gradient in flight of its mean loss, or of one slice's part of it."""
        losses: dict[str, list[Tensor]] = {}
        with self._training_state_kept(), preserved_random_state():
            for index, chunk in enumerate(self._chunks):
                loss = torch.zeros((), device=self._trainer.args.device)
                rows = chunk.rows if position is None else chunk.rows[position :: len(self.shares)]
                with self._shards.reference_pass():
                    batches = self._batches(chunk, rows)
                    for number, (batch, count) in enumerate(batches):
                        with self._gradients_reduced(last=number == len(batches) - 1):
                            loss += self._backward(batch, count / len(chunk.rows), self._items[index])
                    yield index, self._shards.gradients()
                share = 1.0 if position is None else self.shares[position][index]
                losses.setdefault(chunk.name, []).append(loss / share)
        # Like the gradients, a mean over the processes.
        for name, values in losses.items():
            mean = self._trainer.accelerator.reduce(torch.stack(values).mean(), "mean")
            recorder.add({f"reference_loss/{name}": float(mean)})

    def _batches(self, chunk: ReferenceChunk, rows: Sequence[int]) -> list[tuple[Any, int]]:
        """This process's micro-batches of the rows, each with how many rows of it count.

        Losses are gathered, so every process has equally many micro-batches of equal size: a remainder adds a row to
        each, which does not count on processes that have none left.
        """
        rows = chunk.longest_first(rows)
        even = len(rows) // self._processes
        mine = rows[self._trainer.args.process_index :: self._processes]
        counts = [min(self._size, even - start) for start in range(0, even, self._size)]
        batches = list(zip(chunk.batches(mine[:even], self._size), counts, strict=True))
        if len(rows) % self._processes:
            [last] = chunk.batches(mine[even:] or chunk.rows[:1], 1)
            batches.append((last, len(mine) - even))
        return batches

    def _backward(self, batch: Any, share: float, items: Tensor | None) -> Tensor:
        """Backward of a micro-batch's part in the chunk's mean, of which it holds ``share`` of the rows."""
        trainer = self._trainer
        # Gradients are averaged over the processes.
        steps = 1 / (self._processes * share) if share else math.inf
        trainer.current_gradient_accumulation_steps = steps  # type: ignore[assignment]
        if items is not None and not share:
            items = torch.full_like(items, math.inf, dtype=torch.float32)
        return trainer.reference_step(trainer.model_wrapped, batch, items)

    def _gradients_reduced(self, last: bool) -> AbstractContextManager[None]:
        """DDP reduces once a chunk; sharded gradients are reduced each time, which spares whole ones."""
        accelerator = self._trainer.accelerator
        accelerator.gradient_state._set_sync_gradients(True)
        if last or accelerator.distributed_type not in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
            return nullcontext()
        waiting: AbstractContextManager[None] = accelerator.no_sync(self._trainer.model_wrapped)
        return waiting

    @contextmanager
    def _training_state_kept(self) -> Iterator[None]:
        """Restore what a pass changes in addition to the gradients: counters, metrics, flags."""
        gradient_state, attributes = self._trainer.accelerator.gradient_state, vars(self._trainer)
        synchronised = gradient_state.sync_gradients
        kept = {name: copy.deepcopy(value) for name, value in attributes.items() if name in TOUCHED}
        try:
            yield
        finally:
            gradient_state._set_sync_gradients(synchronised)
            attributes.update(kept)


def not_finite_rows(trainer: "ProjectedTrainer", shards: "Shards", chunk: ReferenceChunk) -> list[int]:
    """Rows of a chunk whose own gradient holds NaN or Inf; costs a pass over each, on all processes."""
    single = [replace(chunk, rows=[row]) for row in chunk.rows]
    found = torch.zeros(len(single))
    for index, gradients in ReferencePasses(trainer, shards, single).run(None, Recorder()):
        found[index] = not all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    if shards.sharded:
        found = all_reduce(trainer, found)
    return [row for row, bad in zip(chunk.rows, found.tolist(), strict=True) if bad]


def all_reduce(trainer: "ProjectedTrainer", table: Tensor) -> Tensor:
    """The sum of the processes' tables, on the CPU."""
    summed: Tensor = trainer.accelerator.reduce(table.to(trainer.args.device), "sum")
    return summed.cpu()
