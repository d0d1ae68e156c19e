"""The trainer's side of ``benchmarks/worker.py``: plain TRL, TRL with the projection, or the authors' procedure."""

import json
import socket
import sys
import tempfile
import time
from typing import Any, TextIO

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.architectures import architecture
from benchmarks.authors import AuthorsProcedure, Batch
from benchmarks.common import MemoryPeak, synchronize
from benchmarks.worker import LOG_TURNS, Job
from ogpsa.subspace.settings import ProjectionSettings
from ogpsa.training.seam import protect
from ogpsa.utils.libraries import quiet_libraries


def main(address: str, order: str) -> None:
    """Build the trainer of the job ``order`` (JSON) and train, step by step, as the socket says."""
    quiet_libraries()
    job = Job(**json.loads(order))
    with socket.socket(socket.AF_UNIX) as connection, tempfile.TemporaryDirectory() as output:
        connection.connect(address)
        turns = _Turns(connection.makefile("rw", encoding="utf-8"))
        trainer = build_trainer(job, output)
        # The callbacks run in this order: the turn begins, the refresh, the rest of the step.
        trainer.add_callback(turns)
        if job.procedure == "ogpsa":
            protect(trainer, projection_settings(job))
        elif job.procedure == "authors":
            trainer.add_callback(_AuthorsRefresh(trainer, job))
        trainer.add_callback(_AfterRefresh(turns))
        trainer.train()


def set_names(job: Job) -> tuple[str, ...]:
    return tuple(f"capability{index}" for index in range(job.rank))


def projection_settings(job: Job) -> ProjectionSettings:
    return ProjectionSettings(
        reference_sets=set_names(job),
        rank=job.rank,
        samples=job.samples,
        refresh_every=job.refresh_every,
        streaming=job.streaming,
    )


def build_trainer(job: Job, output: str) -> SFTTrainer | DPOTrainer:
    """A plain TRL trainer over random rows of equal length."""
    torch.manual_seed(0)
    shape = architecture(job.architecture)
    tokenizer = word_tokenizer(shape.vocabulary)
    common: dict[str, Any] = {
        "model": shape.build(torch.device("cpu")),
        "processing_class": tokenizer,
        "train_dataset": random_rows(job.stage, job.rows * job.steps, job.tokens, shape.vocabulary),
        "eval_dataset": {
            name: random_rows(job.stage, job.samples, job.tokens, shape.vocabulary) for name in set_names(job)
        },
    }
    arguments: dict[str, Any] = {
        "output_dir": output,
        "max_steps": job.steps,
        "learning_rate": 1e-6,
        "per_device_train_batch_size": job.micro_rows,
        "per_device_eval_batch_size": job.micro_rows,
        "gradient_accumulation_steps": job.rows // (job.micro_rows * job.processes),
        "max_length": job.tokens,
        "bf16": job.bf16,
        "use_cpu": job.device == "cpu",
        "activation_checkpointing": False,
        "logging_steps": LOG_TURNS,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": job.device != "cpu",
    }
    if job.stage == "dpo":
        return DPOTrainer(args=DPOConfig(precompute_ref_log_probs=True, **arguments), **common)
    return SFTTrainer(args=SFTConfig(**arguments), **common)


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token a word: ``w0``, ``w1`` and so on."""
    words = {"<pad>": 0, "<eos>": 1, **{f"w{index}": index + 2 for index in range(vocabulary - 2)}}
    model = Tokenizer(WordLevel(words, unk_token="<pad>"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<eos>")


def random_rows(stage: str, count: int, tokens: int, vocabulary: int) -> Dataset:
    """Rows of ``tokens`` tokens, half of them the prompt; the end token that TRL adds is counted."""
    answers = ("completion",) if stage == "sft" else ("chosen", "rejected")
    lengths = {"prompt": tokens // 2} | dict.fromkeys(answers, tokens - tokens // 2 - 1)

    def text(length: int) -> str:
        return "".join(f" w{index}" for index in torch.randint(vocabulary - 2, (length,)).tolist())

    return Dataset.from_list([{name: text(length) for name, length in lengths.items()} for _ in range(count)])


class _Turns(TrainerCallback):
    """Waits for its turn before each step and reports the step afterwards."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.start = self.refreshed = 0.0
        self.measured: dict[str, Any] = {}

    def now(self, args: TrainingArguments) -> float:
        synchronize(args.device)
        return time.perf_counter()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self.stream.readline():
            control.should_training_stop = True
        self.peak = MemoryPeak(args.device)
        self.peak.__enter__()
        self.start = self.now(args)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        end = self.now(args)
        self.peak.__exit__()
        self.measured = {
            "seconds": end - self.start,
            "refresh_seconds": self.refreshed - self.start,
            "peak_bytes": self.peak.peak,
            "logged": control.should_log,
        }
        if not control.should_log:
            self.report(projection_seconds=None)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and "loss" in logs:
            self.report(projection_seconds=logs.get("projection/projection_seconds", 0.0))

    def report(self, projection_seconds: float | None) -> None:
        self.stream.write(json.dumps(self.measured | {"projection_seconds": projection_seconds}) + "\n")
        self.stream.flush()


class _AfterRefresh(TrainerCallback):
    def __init__(self, turns: _Turns) -> None:
        self.turns = turns

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.turns.refreshed = self.turns.now(args)


class _AuthorsRefresh(TrainerCallback):
    def __init__(self, trainer: SFTTrainer | DPOTrainer, job: Job) -> None:
        self.trainer = trainer
        self.job = job
        assert trainer.model is not None
        self.procedure = AuthorsProcedure(trainer.model, job.bf16)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % (self.job.refresh_every or self.job.steps) == 0:
            loaders = [self.trainer.get_eval_dataloader(name) for name in set_names(self.job)]
            self.procedure.refresh([[_cross_entropy_batch(batch) for batch in loader] for loader in loaders])


def _cross_entropy_batch(batch: dict[str, Any]) -> Batch:
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    if "completion_mask" in batch:
        labels = labels.masked_fill(batch["completion_mask"] == 0, -100)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


if __name__ == "__main__":
    main(*sys.argv[1:])
