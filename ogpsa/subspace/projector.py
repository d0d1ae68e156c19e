"""The projection of a trainer's gradients while it trains: refreshing the subspace, projecting, reporting, saving.

A refresh runs where no gradient is in flight, through the trainer's own loss, collator and precision, and leaves no
trace in the training state but the new basis.
"""

import json
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from ogpsa.subspace.measurements import Recorder, StepSample, is_logged, layer_groups
from ogpsa.subspace.references import ReferenceChunk, ReferencePasses, all_reduce, not_finite_rows
from ogpsa.subspace.selection import most_opposed
from ogpsa.subspace.settings import SAFETY_SAMPLE, ProjectionSettings
from ogpsa.subspace.shards import Shards, file_of, read_part
from ogpsa.subspace.streaming import StreamedReferences
from ogpsa.subspace.subspace import Layout, NotFiniteError, Subspace
from ogpsa.utils.errors import SettingError, UserError
from ogpsa.utils.random_state import preserved_random_state

if TYPE_CHECKING:
    from transformers import Trainer

    from ogpsa.training.seam import ProjectedTrainer

log = logging.getLogger(__name__)
# Stem of the checkpoint's file, or of each process's, that holds the subspace.
STEM = "subspace"
# Rows that a message names.
NAMED = 8
# Makes the loader that collates a set's rows.
Loader = Callable[[Any], DataLoader[Any]]


@dataclass(frozen=True)
class DrawnRows:
    """The rows of a trainer's sets that reference gradients come from, drawn once by a seed.

    Attributes:
        references: each set's chunks, ``settings.chunks`` of them per set.
    """

    references: list[ReferenceChunk]
    seed: int

    @classmethod
    def draw(cls, trainer: "Trainer", settings: ProjectionSettings, seed: int, loader: Loader) -> "DrawnRows":
        """Draw ``settings.samples`` rows of each set, which ``loader`` knows how to collate.

        Raises:
            SettingError: a set is missing or holds fewer usable rows than wanted.
        """
        sets: dict[str, Any] = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {}
        references = []
        for name in settings.reference_sets:
            if name not in sets:
                known = ", ".join(sets) or "none"
                raise SettingError(f"reference_sets: no key '{name}' in the trainer's eval_dataset; found: {known}")
            if len(sets[name]) < settings.samples:
                raise SettingError(
                    f"samples: {settings.samples} rows wanted, but reference set '{name}' holds "
                    f"{len(sets[name])} usable ones; lower samples or add rows"
                )
            references += _cut(_drawn(loader, name, sets[name], settings.samples, seed), settings.chunks)
        return cls(references, seed)

    def safety(self, trainer: "Trainer") -> ReferenceChunk:
        """Training rows whose mean gradient selects the reference rows by conflict."""
        rows: Any = trainer.train_dataset
        return _drawn(trainer.get_eval_dataloader, "safety", rows, min(SAFETY_SAMPLE, len(rows)), self.seed)


def _drawn(loader: Loader, name: str, rows: Any, count: int, seed: int) -> ReferenceChunk:
    with preserved_random_state():
        loaded = loader(rows)
    return ReferenceChunk(name, random.Random(f"{seed} {name}").sample(range(len(rows)), count), loaded)


def _own_names(chunks: Sequence[ReferenceChunk]) -> list[str]:
    """A name for each reference gradient: its set's, numbered where a set has several."""
    names = [chunk.name for chunk in chunks]
    return [
        name if names.count(name) == 1 else f"{name}/{names[:index].count(name) + 1}"
        for index, name in enumerate(names)
    ]


def _cut(whole: ReferenceChunk, chunks: int) -> list[ReferenceChunk]:
    """The rows of one set divided over its reference gradients."""
    return [replace(whole, rows=whole.rows[chunk::chunks]) for chunk in range(chunks)]


class Projector:
    """Keeps the capability subspace of a trainer's model and projects its gradients.

    Built when model and optimizer are wrapped, at the beginning of training.

    Args:
        trainer: whose loss, state and processes are used.
        shards: this process's pieces of gradients and weights.
        resumed_from: the checkpoint that the training was resumed from, whose subspace is restored.

    Attributes:
        subspace: the basis and what follows from it.
        chunks: the rows behind each reference gradient.
        recorder: numbers since the last log line.

    Raises:
        UserError: the trainer's weights or processes cannot be projected, or the checkpoint holds no subspace.
    """

    def __init__(
        self,
        trainer: "ProjectedTrainer",
        settings: ProjectionSettings,
        rows: DrawnRows,
        shards: Shards,
        resumed_from: Path | None,
    ) -> None:
        check_supported(trainer, shards)
        settings = settings.resolved(trainer.state.max_steps, trainer.get_total_train_batch_size(trainer.args))
        self._trainer = trainer
        self._settings = settings
        self._shards = shards
        self.recorder = Recorder()
        layout = Layout(groups=layer_groups(shards.names), references=_own_names(rows.references))
        if shards.sharded:
            layout = replace(
                layout,
                copies=shards.copies,
                all_reduce=lambda table: all_reduce(trainer, table),
                broadcast=broadcast_object_list,
            )
        self.subspace = Subspace(
            settings.rank, settings.scope, settings.sided, settings.basis_dtype, settings.basis_device, layout
        )
        self.chunks = rows.references
        if settings.selection == "conflict":
            self.chunks = self._selected(rows, resumed_from)
        slices = settings.refresh_every if settings.streaming and settings.refresh_every else 1
        self._passes = ReferencePasses(trainer, shards, self.chunks, slices)
        self._streamed = StreamedReferences(self._passes.shares)
        self._refreshed_at = 0
        self._sample = StepSample()
        # Inner products with the weights before the optimizer's step; empty where the step is not looked at.
        self._weights_before = torch.empty(0)
        if resumed_from is not None:
            self._restore(resumed_from)
        # ``auto`` until here, so that a basis kept under another dtype can be read; reference passes need to know it.
        self.subspace.basis_dtype = self.subspace.stored_dtype(trainer.args.device)

    def refresh_if_due(self) -> None:
        """Before a step, refresh the subspace if it is due, or stream this step's share of the samples into it."""
        step = self._trainer.state.global_step
        if self._settings.streaming or self._due(step):
            with self.recorder.timed("refresh_seconds"):
                if self._settings.streaming:
                    self._stream(step)
                else:
                    self.refresh()
            self._refreshed_at = step
        self.recorder.add({"effective_rank": self.subspace.effective_rank, "basis_age": step - self._refreshed_at})

    def _due(self, step: int) -> bool:
        every = self._settings.refresh_every
        # With warmup, the first step has learning rate zero.
        moved = 2 if self._trainer.args.get_warmup_steps(self._trainer.state.max_steps) else 1
        return (
            self.subspace.basis is None
            or (every is not None and step % every == 0)
            or (self._settings.refresh_after_first_step and step == moved)
        )

    def refresh(self) -> None:
        """Estimate the subspace at the current weights (every K steps; the paper's appendix)."""
        # Its memory holds the reference gradients first.
        self.subspace.clear()
        self._estimate(self.reference_gradients())

    def reference_gradients(self) -> list[Tensor]:
        """The gradient of the stage's own loss on each chunk of reference rows: for each parameter a tensor [m, n]."""
        # No wider than the basis that comes of them, and where that will be: they are the peak of a refresh.
        dtype = torch.float32 if self.subspace.basis_dtype == "fp32" else torch.bfloat16
        host = self._settings.basis_device == "host"
        found = [
            torch.empty(len(self.chunks), len(part), dtype=dtype, device="cpu" if host else part.device)
            for part in self._shards.weights()
        ]
        for chunk, gradients in self._passes.run(None, self.recorder):
            for target, gradient in zip(found, gradients, strict=True):
                target[chunk] = gradient
            # These names would keep the gradients alive through the next chunk's pass.
            del gradients, gradient
        return found

    def _stream(self, step: int) -> None:
        self.subspace.clear()
        position = self._streamed.begin(step, self._shards.weights())
        for chunk, gradients in self._passes.run(position, self.recorder):
            self._streamed.add(chunk, gradients)
        self._estimate(self._streamed.estimate(position))

    def _estimate(self, gradients: list[Tensor]) -> None:
        try:
            self.subspace.estimate(gradients, [chunk.name for chunk in self.chunks])
        except NotFiniteError as error:
            raise UserError(self._not_finite(self.chunks[error.index])) from None
        if self.subspace.effective_rank < self.subspace.rank:
            log.warning(
                "step %d: the references span %d of the %d directions wanted",
                self._trainer.state.global_step,
                self.subspace.effective_rank,
                self.subspace.rank,
            )

    def _not_finite(self, chunk: ReferenceChunk) -> str:
        """The rows that make a chunk's gradient infinite or NaN, found by a pass over each alone."""
        step = self._trainer.state.global_step
        rows = [row + 1 for row in not_finite_rows(self._trainer, self._shards, chunk)]
        if rows:
            return (
                f"reference set '{chunk.name}': the gradient of row {', '.join(map(str, rows[:NAMED]))} is infinite or "
                f"NaN at step {step} ({len(rows)} of the {len(chunk.rows)} rows drawn); take the row out"
            )
        return (
            f"reference set '{chunk.name}': the mean gradient of {len(chunk.rows)} rows is infinite or NaN at "
            f"step {step}, though that of each row is finite; train in fp32, or lower the learning rate"
        )

    def project(self) -> None:
        """Project the accumulated and reduced gradients in place, before they are clipped."""
        if not self.subspace.effective_rank or self._settings.target == "update":
            return
        with self.recorder.timed("projection_seconds"):
            gradients = self._shards.gradients()
            self.recorder.add(self.subspace.project_(gradients))
        if is_logged(self._trainer.state):
            self._record_cosines("cosine_after", self.subspace.measure(gradients))

    def before_step(self) -> None:
        """Note where the weights are, if this step is projected or reported on."""
        self._weights_before = torch.empty(0)
        if self.subspace.effective_rank and (self._settings.target == "update" or is_logged(self._trainer.state)):
            weights = self._shards.weights()
            self._sample.take(weights)
            self._weights_before = self.subspace.local_dots(weights)

    def after_step(self) -> None:
        """Measure the optimizer's finished step inside the subspace, and remove it with ``target: update``."""
        if not len(self._weights_before):
            return
        if self._settings.target == "update":
            with self.recorder.timed("projection_seconds"):
                step = self._measured_step()
                self.recorder.add(self.subspace.report(step, sign=-1))
                self.subspace.remove_(self._shards.weights(), step, sign=-1)
                self._shards.publish()
        if is_logged(self._trainer.state):
            self._record_cosines("step_share", self._measured_step())

    def _measured_step(self) -> Tensor:
        """The change of the weights since ``before_step``, as ``Subspace.measure`` would measure it."""
        weights = self._shards.weights()
        step = self.subspace.local_dots(weights) - self._weights_before
        step[:, -1] = self._sample.squared_steps(weights)
        return self.subspace.summed(step)

    def _record_cosines(self, name: str, measured: Tensor) -> None:
        """The cosine with the subspace of what was measured, whole and by layer group, as ``name``."""
        report = {key: value for key, value in self.subspace.report(measured).items() if key.endswith("cosine")}
        self.recorder.add({key.removesuffix("cosine") + name: value for key, value in report.items()})

    def save(self, checkpoint: Path) -> None:
        """Write what resuming needs in addition to the trainer's own files; every process calls it."""
        state = {f"subspace.{name}": tensor.contiguous() for name, tensor in self.subspace.state_dict().items()}
        state |= {f"streamed.{name}": tensor for name, tensor in self._streamed.state_dict().items()}
        if self._shards.sharded or self._trainer.args.process_index == 0:
            file = file_of(checkpoint, STEM, self._shards)
            whole = file.with_name(f".{file.name}")
            rows = [list(chunk.rows) for chunk in self.chunks]
            save_file(state, whole, metadata={"refreshed_at": str(self._refreshed_at), "rows": json.dumps(rows)})
            whole.replace(file)
        self._trainer.accelerator.wait_for_everyone()

    def _restore(self, checkpoint: Path) -> None:
        file = self._saved_in(checkpoint)
        parts: dict[str, dict[str, Tensor]] = {"subspace": {}, "streamed": {}}
        for name, tensor in read_part(checkpoint, STEM, self._shards).items():
            part, _, key = name.partition(".")
            parts[part][key] = tensor
        # Where the gradients are: FSDP2 may keep them on the host.
        device = self._shards.weights()[0].device
        self.subspace.load_state_dict(parts["subspace"], "cpu" if self._settings.basis_device == "host" else device)
        self._streamed.load_state_dict({name: tensor.to(device) for name, tensor in parts["streamed"].items()})
        with safe_open(file, framework="pt") as stored:
            self._refreshed_at = int(stored.metadata()["refreshed_at"])

    def _selected(self, rows: DrawnRows, resumed_from: Path | None) -> list[ReferenceChunk]:
        """The chunks with the rows in conflict instead of the drawn ones; a resumed stage keeps its own."""
        if resumed_from is not None:
            with safe_open(self._saved_in(resumed_from), framework="pt") as stored:
                kept = json.loads(stored.metadata()["rows"])
            return [replace(chunk, rows=taken) for chunk, taken in zip(rows.references, kept, strict=True)]
        safety, selected = rows.safety(self._trainer), []
        for first in rows.references[:: self._settings.chunks]:
            data: Any = first.loader.dataset
            every = replace(first, rows=range(len(data)))
            chosen = most_opposed(self._trainer, self._shards, safety, every, self._settings.samples)
            selected += _cut(replace(first, rows=chosen), self._settings.chunks)
        return selected

    def _saved_in(self, checkpoint: Path) -> Path:
        """A file whose notes are this process's, which are the same in all parts."""
        file = file_of(checkpoint, STEM, self._shards)
        if self._shards.sharded and not file.is_file():
            file = next(iter(sorted(checkpoint.glob(f"{STEM}-*-of-*.safetensors"))), file)
        if not file.is_file():
            raise UserError(
                f"{checkpoint}: holds no {file.name}, so it was not saved by this projection; delete it to start over"
            )
        return file


def check_trained(trainer: "Trainer", weights: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse weights, by name, whose steps would be lost, and processes that would change the batch.

    Raises:
        UserError: names what was found.
    """
    for name, piece in weights:
        if piece.dtype != torch.float32:
            raise UserError(
                f"{name} is trained and {piece.dtype}, whose rounding swallows steps of the usual learning rates; "
                "train fp32 weights (bf16 as autocast over them) or adapters"
            )
    if trainer.args.n_gpu > 1:
        raise UserError(
            f"{trainer.args.n_gpu} GPUs in one process multiply the batch; start one process per GPU with torchrun, or "
            "set CUDA_VISIBLE_DEVICES to one"
        )


def check_supported(trainer: "Trainer", shards: Shards) -> None:
    """Refuse a trainer whose gradients would be projected wrongly without an error.

    Raises:
        UserError: names what was found.
    """
    weights = shards.weights()
    devices = sorted({str(piece.device) for piece in weights})
    check_trained(trainer, zip(shards.names, weights, strict=True))
    if trainer.is_fsdp_enabled and not shards.sharded:
        raise UserError("fsdp: only FSDP2 is supported (fsdp_config version 2), and the weights are not sharded by it")
    if len(devices) > 1:
        raise UserError(
            f"the model's weights are spread over {', '.join(devices)}; one device per process is supported"
        )
