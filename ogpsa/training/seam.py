"""Any transformers or TRL trainer with the projection between backward and optimizer step.

The seam is the public ``training_step``: after the last micro-batch the gradients are accumulated, reduced
over the processes and not yet clipped. DeepSpeed steps inside backward, so there the engine's wrapper is the
seam. A refresh runs at ``on_step_begin``, where no gradient is in flight, through the trainer's own loss,
collator and precision, and leaves no trace in the training state but the new basis.
"""

import json
import logging
import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ogpsa.subspace.measurements import Recorder, StepSample, layer_groups
from ogpsa.subspace.references import ReferenceChunk, ReferencePasses, preserved_random_state
from ogpsa.subspace.selection import most_opposed
from ogpsa.subspace.settings import SAFETY_SAMPLE, ProjectionSettings
from ogpsa.subspace.shards import ParameterShards, Shards
from ogpsa.subspace.streaming import StreamedReferences
from ogpsa.subspace.subspace import Layout, Subspace
from ogpsa.utils.errors import UserError

if TYPE_CHECKING:  # needs DeepSpeed's wrapper in accelerate
    from ogpsa.distributed.deepspeed import SteppedEngine

log = logging.getLogger(__name__)


class ProjectionMixin(Trainer):
    """Mixed in before a trainer whose ``eval_dataset`` maps names to sets, the reference sets among them.

    The trainer thereby prepares them as it does its training rows; TRL's DPO trainer also computes their
    reference-policy log-probabilities.
    """

    # TRL's trainers count them.
    _total_train_tokens: int

    model: PreTrainedModel
    projection: ProjectionSettings | None = None
    subspace: Subspace | None = None
    shards: Shards
    # DeepSpeed's, where it is used.
    engine: "SteppedEngine | None" = None
    reference_chunks: list[ReferenceChunk]

    def install_projection(self, settings: ProjectionSettings, seed: int) -> None:
        """Start projecting, with ``settings.samples`` rows of each set drawn once by ``seed``.

        Raises:
            UserError: the settings contradict each other, or a set is missing or holds fewer usable rows than wanted.
        """
        if self.projection is not None:
            raise UserError("protect: this trainer projects already; build a new one for other settings")
        if problems := settings.problems():
            raise UserError(*problems)
        self.projection = settings
        self.subspace = Subspace(
            settings.rank, settings.scope, settings.sided, settings.basis_dtype, settings.basis_device
        )
        self.reference_chunks = []
        self._recorder = Recorder()
        sets: dict[str, Any] = self.eval_dataset if isinstance(self.eval_dataset, dict) else {}
        for name in settings.reference_sets:
            if name not in sets:
                known = ", ".join(sets) or "none"
                raise UserError(f"reference_sets: '{name}' is no key of the trainer's eval_dataset; found: {known}")
            if len(sets[name]) < settings.samples:
                raise UserError(
                    f"method.samples: {settings.samples} rows wanted, but reference set '{name}' holds "
                    f"{len(sets[name])} usable ones; lower method.samples or add rows"
                )
            with preserved_random_state():
                loader = self.get_eval_dataloader(sets[name])
            drawn = random.Random(f"{seed} {name}").sample(range(len(sets[name])), settings.samples)
            for chunk in range(settings.chunks):
                self.reference_chunks.append(ReferenceChunk(name, drawn[chunk :: settings.chunks], loader))
        if settings.selection == "conflict":
            rows: Any = self.train_dataset
            with preserved_random_state():
                loader = self.get_eval_dataloader(rows)
            drawn = random.Random(f"{seed} safety").sample(range(len(rows)), min(SAFETY_SAMPLE, len(rows)))
            self._safety_sample = ReferenceChunk("safety", drawn, loader)
        self.add_callback(_ProjectionCallback(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; from a checkpoint the subspace is restored as well."""
        self._resumed_from = resume_from_checkpoint
        if resume_from_checkpoint is True:
            self._resumed_from = get_last_checkpoint(str(self.args.output_dir))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.projection is not None and "loss" in logs:
            logs |= self._recorder.means()
        super().log(logs, start_time)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss = self.plain_training_step(model, inputs, num_items_in_batch)
        if self.subspace is not None and self.accelerator.sync_gradients and not self.is_deepspeed_enabled:
            self._project_gradients()
        return loss

    def plain_training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor:
        """The trainer's own training step, which nothing is projected in."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def begin_projection(self) -> None:
        """Find the gradients, now that model and optimizer are wrapped, and restore what a checkpoint holds.

        Raises:
            UserError: the weights that are trained are not fp32, and would not move.
        """
        settings, subspace = self.projection, self.subspace
        assert settings is not None and subspace is not None
        self.engine = None
        if self.is_deepspeed_enabled:
            from ogpsa.distributed.deepspeed import SteppedEngine

            engine = self.accelerator.deepspeed_engine_wrapped.engine
            self.engine = SteppedEngine(engine, self._before_zero_step, self.after_step)
            self.accelerator.deepspeed_engine_wrapped = self.engine
            self.shards = self.engine.shards
        else:
            self.shards = ParameterShards(self.model)
        self._check_supported(settings)
        sharded = self.shards.sharded
        subspace.layout = Layout(
            groups=layer_groups(self.shards.names),
            copies=self.shards.copies if sharded else None,
            total=self.sum_over_processes if sharded else None,
            agreed=broadcast_object_list if sharded else None,
        )
        self._sample = StepSample()
        self._refreshed_at = 0
        every = settings.refresh_every if settings.streaming else None
        if settings.selection == "conflict":
            self._select_references(settings)
        self._passes = ReferencePasses(self, self.reference_chunks, every or 1)
        self._streamed = StreamedReferences(self._passes.shares) if settings.streaming else None
        if self._resumed_from:
            self._restore(Path(str(self._resumed_from)))
        subspace.basis_dtype = subspace.stored_dtype(self.args.device)

    def _check_supported(self, settings: ProjectionSettings) -> None:
        """Refuse what would be wrong without a word.

        Raises:
            UserError: names what was found.
        """
        weights = self.shards.weights()
        devices = sorted({str(piece.device) for piece in weights})
        for name, piece in zip(self.shards.names, weights, strict=True):
            if piece.dtype != torch.float32:
                raise UserError(
                    f"model.dtype: {name} is {piece.dtype}, whose rounding swallows steps of the usual learning "
                    "rates; train fp32 weights (precision bf16 is autocast) or adapters"
                )
        if self.args.n_gpu > 1:
            raise UserError(
                f"{self.args.n_gpu} GPUs in one process multiply the batch; start one process a GPU by torchrun, or "
                "set CUDA_VISIBLE_DEVICES to one"
            )
        if self.is_fsdp_enabled and not self.shards.sharded:
            raise UserError(
                "fsdp: only FSDP2 is supported (fsdp_config version 2), and the weights are not sharded by it"
            )
        if len(devices) > 1:
            raise UserError(
                f"the model's weights are spread over {', '.join(devices)}; one device a process is supported"
            )
        if settings.target == "gradient+momentum" and self.args.optim not in ("adamw_torch", "adamw_torch_fused"):
            raise UserError(
                f"method.target: 'gradient+momentum' knows the first moments of adamw_torch, and the optimizer is "
                f"{self.args.optim}; allowed: gradient, update"
            )

    def _select_references(self, settings: ProjectionSettings) -> None:
        """Put the rows in conflict in the drawn ones' place; a stage that goes on keeps those it began with."""
        if self._resumed_from:
            with safe_open(self._stored_subspace(Path(str(self._resumed_from))), framework="pt") as stored:
                rows = json.loads(stored.metadata()["rows"])
        else:
            rows = []
            for first in self.reference_chunks[:: settings.chunks]:
                data: Any = first.loader.dataset
                candidates = replace(first, rows=range(len(data)))
                chosen = most_opposed(self, self._safety_sample, candidates, settings.samples)
                rows += [chosen[chunk :: settings.chunks] for chunk in range(settings.chunks)]
        chunks = zip(self.reference_chunks, rows, strict=True)
        self.reference_chunks = [replace(chunk, rows=taken) for chunk, taken in chunks]

    def renew(self) -> None:
        """Refresh the subspace if it is time, or stream this step's share of the samples into it."""
        settings, subspace = self.projection, self.subspace
        assert settings is not None and subspace is not None
        step = self.state.global_step
        if self._streamed is not None:
            with self._recorder.timed("refresh_seconds"):
                self._stream(self._streamed)
            self._refreshed_at = step
        else:
            due = settings.refresh_every is not None and step % settings.refresh_every == 0
            # Where the rate rises from zero, the first step moves nothing.
            moved = 2 if self.args.get_warmup_steps(self.state.max_steps) else 1
            if due or subspace.basis is None or (settings.refresh_after_first_step and step == moved):
                with self._recorder.timed("refresh_seconds"):
                    self.refresh()
                self._refreshed_at = step
        self._recorder.add({"effective_rank": subspace.effective_rank, "basis_age": step - self._refreshed_at})

    def refresh(self) -> None:
        """Estimate the subspace at the current weights (every K steps; the paper's appendix)."""
        assert self.subspace is not None
        # Its memory holds the reference gradients first.
        self.subspace.clear()
        self._estimate(self.reference_gradients())

    def reference_gradients(self) -> list[Tensor]:
        """The gradient of the stage's own loss on each chunk of reference rows: rows [m, n] of each parameter."""
        assert self.projection is not None and self.subspace is not None
        # No wider than the basis that comes of them, and where that will be: the rows are the peak of a refresh.
        dtype = torch.float32 if self.subspace.basis_dtype == "fp32" else torch.bfloat16
        count, host = len(self.reference_chunks), self.projection.basis_device == "host"
        rows = [
            torch.empty(count, len(part), dtype=dtype, device="cpu" if host else part.device)
            for part in self.shards.weights()
        ]
        for chunk, gradients in self._passes.run(None, self._recorder):
            for target, gradient in zip(rows, gradients, strict=True):
                target[chunk] = gradient
            # These names would keep the gradients alive through the next chunk's pass.
            del gradients, gradient
        return rows

    def _stream(self, streamed: StreamedReferences) -> None:
        assert self.subspace is not None
        self.subspace.clear()
        position = streamed.begin(self.state.global_step, self.shards.weights())
        for chunk, gradients in self._passes.run(position, self._recorder):
            streamed.add(chunk, gradients)
        self._estimate(streamed.estimate(position))

    def _estimate(self, rows: list[Tensor]) -> None:
        assert self.subspace is not None
        self.subspace.estimate(rows, [chunk.name for chunk in self.reference_chunks])
        if self.subspace.effective_rank < self.subspace.rank:
            log.warning(
                "step %d: the references span %d of the %d directions wanted",
                self.state.global_step,
                self.subspace.effective_rank,
                self.subspace.rank,
            )

    def sum_over_processes(self, table: Tensor) -> Tensor:
        """The sum of the processes' tables, on the CPU."""
        summed: Tensor = self.accelerator.reduce(table.to(self.args.device), "sum")
        return summed.cpu()

    def _project_gradients(self) -> None:
        settings, subspace = self.projection, self.subspace
        assert settings is not None and subspace is not None
        if not subspace.effective_rank or settings.target == "update":
            return
        with self._recorder.timed("projection_seconds"):
            gradients = self.shards.gradients()
            self._recorder.add(subspace.project_(gradients))
            if settings.target == "gradient+momentum":
                assert isinstance(self.shards, ParameterShards) and self.optimizer is not None
                moments = self.shards.first_moments(self.optimizer)
                if moments:
                    subspace.project_(moments)
        if self._logged_step():
            self._record_cosines("cosine_after", subspace.measure(gradients))

    def _before_zero_step(self) -> None:
        self._project_gradients()
        self.before_step()

    def before_step(self) -> None:
        """Note where the weights are, if this step is projected or reported on."""
        settings, subspace = self.projection, self.subspace
        assert settings is not None and subspace is not None
        self._weights_before = None
        if subspace.effective_rank and (settings.target == "update" or self._logged_step()):
            weights = self.shards.weights()
            self._sample.take(weights)
            self._weights_before = subspace.local_dots(weights)

    def after_step(self) -> None:
        """Measure the optimizer's finished step inside the subspace, and remove it with ``target: update``."""
        settings, subspace = self.projection, self.subspace
        assert settings is not None and subspace is not None
        if self._weights_before is None:
            return
        if settings.target == "update":
            with self._recorder.timed("projection_seconds"):
                step = self._measured_step()
                self._recorder.add(subspace.report(step, sign=-1))
                subspace.remove_(self.shards.weights(), step, sign=-1)
                if self.engine is not None:
                    self.engine.shards.publish()
        if self._logged_step():
            self._record_cosines("step_share", self._measured_step())

    def _record_cosines(self, name: str, measured: Tensor) -> None:
        """The cosine with the subspace of what was measured, whole and by layer group, as ``name``."""
        assert self.subspace is not None
        report = {key: value for key, value in self.subspace.report(measured).items() if key.endswith("cosine")}
        self._recorder.add({key.removesuffix("cosine") + name: value for key, value in report.items()})

    def _measured_step(self) -> Tensor:
        """The change of the weights since ``before_step``, as ``Subspace.measure`` would measure it."""
        assert self.subspace is not None and self._weights_before is not None
        weights = self.shards.weights()
        step = self.subspace.local_dots(weights) - self._weights_before
        step[:, -1] = self._sample.squared_steps(weights)
        return self.subspace.summed(step)

    def _logged_step(self) -> bool:
        return (self.state.global_step + 1) % max(1, self.state.logging_steps) == 0

    def save_subspace(self, checkpoint: Path) -> None:
        """Write what ``train(resume_from_checkpoint=…)`` needs beside the trainer's own files."""
        assert self.subspace is not None
        state = {f"subspace.{name}": tensor.contiguous() for name, tensor in self.subspace.state_dict().items()}
        if self._streamed is not None:
            state |= {f"streamed.{name}": tensor for name, tensor in self._streamed.state_dict().items()}
        if self.shards.sharded or self.args.process_index == 0:
            file = checkpoint / self._subspace_file()
            whole = file.with_name(f".{file.name}")
            rows = [list(chunk.rows) for chunk in self.reference_chunks]
            save_file(state, whole, metadata={"refreshed_at": str(self._refreshed_at), "rows": json.dumps(rows)})
            whole.replace(file)
        self.accelerator.wait_for_everyone()

    def _restore(self, checkpoint: Path) -> None:
        assert self.subspace is not None
        file = self._stored_subspace(checkpoint)
        state = load_file(file)
        parts: dict[str, dict[str, Tensor]] = {"subspace": {}, "streamed": {}}
        for name, tensor in state.items():
            part, _, key = name.partition(".")
            parts[part][key] = tensor
        host = self.subspace.basis_device == "host"
        self.subspace.load_state_dict(parts["subspace"], "cpu" if host else self.args.device)
        if self._streamed is not None:
            sums = {name: tensor.to(self.args.device) for name, tensor in parts["streamed"].items()}
            self._streamed.load_state_dict(sums)
        with safe_open(file, framework="pt") as stored:
            self._refreshed_at = int(stored.metadata()["refreshed_at"])

    def _stored_subspace(self, checkpoint: Path) -> Path:
        file = checkpoint / self._subspace_file()
        if not file.is_file():
            raise UserError(f"{checkpoint}: holds no {file.name}, so it was not saved by this projection; start anew")
        return file

    def _subspace_file(self) -> str:
        """One file where every process holds the whole basis, one a process where each holds its shards."""
        if not self.shards.sharded:
            return "subspace.safetensors"
        return f"subspace-{self.args.process_index + 1:05d}-of-{self.args.world_size:05d}.safetensors"


def protect(trainer: Trainer, settings: ProjectionSettings, seed: int = 0) -> ProjectionMixin:
    """Make a trainer that is already built project from now on; its own class stays in charge of all else.

    Args:
        trainer: any ``transformers.Trainer``, a subclass or not, whose ``eval_dataset`` is a dict with the
            reference sets.
        seed: draws the reference rows.

    Raises:
        UserError: a reference set is missing or too small.
    """
    if not isinstance(trainer, ProjectionMixin):
        kind = type(trainer)
        trainer.__class__ = type(f"Projected{kind.__name__}", (ProjectionMixin, kind), {})
    assert isinstance(trainer, ProjectionMixin)
    trainer.install_projection(settings, seed)
    return trainer


class _ProjectionCallback(TrainerCallback):
    """Calls the trainer at the moments between its own steps."""

    def __init__(self, trainer: ProjectionMixin) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.begin_projection()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.renew()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # DeepSpeed has stepped by now.
        if not self.trainer.is_deepspeed_enabled:
            self.trainer.before_step()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.trainer.is_deepspeed_enabled:
            self.trainer.after_step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.save_subspace(checkpoint_folder(args, state))


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
