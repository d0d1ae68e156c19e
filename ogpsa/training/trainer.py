"""A stage's TRL trainer over its training rows, with what the method attaches to it."""

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    set_seed,
)
from trl import DPOConfig, GRPOConfig, SFTConfig, SFTTrainer

from ogpsa.config import (
    HELD_OUT,
    Config,
    DPOSettings,
    FileData,
    GRPOSettings,
    Model,
    OneStage,
    Scorer,
    SFTSettings,
    StageName,
)
from ogpsa.data.conversations import turn, turns
from ogpsa.data.rows import Data, Row, row_place, set_uses
from ogpsa.distributed import processes
from ogpsa.distributed.arguments import mode_arguments, one_gpu_and_fp32_sums, shared_rows
from ogpsa.distributed.launch import accumulation_steps
from ogpsa.models.adapters import keep_in_fp32
from ogpsa.models.generate import ReplyDecoder
from ogpsa.models.load import load_model
from ogpsa.models.template import render
from ogpsa.models.tokenizer import end_tokens
from ogpsa.training.callbacks import StepCallback
from ogpsa.training.finite import FiniteTrainer
from ogpsa.training.grpo import RolloutCallback, RolloutTrainer, ScoredRollouts
from ogpsa.training.packing import check_rows_apart
from ogpsa.training.reference_policy import KeptReferenceTrainer, ReferencePolicyCache
from ogpsa.utils.answers import template_opens_thought
from ogpsa.utils.errors import UserError, settings_of
from ogpsa.utils.random_state import preserved_random_state
from ogpsa.utils.signals import Interruption

# The section of the YAML that a method's keys stand in.
METHOD_SECTION = "method"
# transformers' names.
OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "sgd": "sgd",
}


class _StageTrainer(Trainer):
    """What the trainers of all stages do: name the method's settings in full, end at the last step, write no card, and
    read every weight of a checkpoint.
    """

    _names_differ = False

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; what the method refuses only now is reported as at ``attach``."""
        with settings_of(METHOD_SECTION):
            return super().train(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The next step's micro-batches; none once all steps are taken.

        From a checkpoint of the last step, within an epoch, transformers would take one step more.
        """
        left = self.state.global_step < self.state.max_steps
        found = super().get_batch_samples(epoch_iterator, num_batches if left else 0, device)
        # At an epoch's end accelerate cuts what is gathered to the rows that are not repeated. TRL gathers one sum per
        # process, so that whole processes would be lost; not so in the epoch in which a run is resumed.
        if (loader := self.accelerator.gradient_state.active_dataloader) is not None:
            loader.remainder = 0
        return found

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the held-out sets alone, drawing no random number: ``eval_held_out_<set>_loss``, a mean over rows."""
        trainer: Any = super()
        if eval_dataset is not None or not isinstance(self.eval_dataset, dict):
            measured: dict[str, float] = trainer.evaluate(eval_dataset, *args, **kwargs)
            return measured
        found: dict[str, float] = {}
        with preserved_random_state():
            for name in self.eval_dataset:
                if str(name).startswith(HELD_OUT):
                    found |= trainer.evaluate(name, *args, **kwargs | {"metric_key_prefix": f"eval_{name}"})
        return found

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._names_differ = False
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._read_by_class(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self._names_differ = False
        super()._load_best_model()
        self._read_by_class(str(self.state.best_model_checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Note that a checkpoint's weights were left out by name, of which transformers only warns."""
        weights = cast(nn.Module, self.model).state_dict(keep_vars=True)
        read = {id(weight) for name, weight in weights.items() if name not in load_result.missing_keys}
        # A tied weight is saved under one of its names.
        lost = [name for name in load_result.missing_keys if id(weights[name]) not in read]
        self._names_differ = bool(lost or load_result.unexpected_keys)

    def _read_by_class(self, checkpoint: str) -> None:
        """Read a checkpoint whose names are not the model's.

        Models that read images and mixtures of experts are saved as they are published, under names that their class
        alone takes.
        """
        if self._names_differ:
            model = cast(PreTrainedModel, self.model)
            model.load_state_dict(load_model(Path(checkpoint), model.dtype)[0].state_dict())

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: the run directory describes the model."""


class StageSFTTrainer(FiniteTrainer, _StageTrainer, SFTTrainer):
    """Supervised fine-tuning."""


class StageDPOTrainer(FiniteTrainer, _StageTrainer, KeptReferenceTrainer):
    """Direct preference optimization."""


class StageGRPOTrainer(_StageTrainer, RolloutTrainer):
    """Group relative policy optimization."""


@dataclass(frozen=True)
class _Procedure:
    """What is a stage's own: its trainer, its arguments beside the shared ones, and what else the trainer is given."""

    trainer: type[Trainer]
    configuration: type[SFTConfig] | type[DPOConfig] | type[GRPOConfig]
    arguments: dict[str, Any]
    given: dict[str, Any] = field(default_factory=dict)


def build_trainer(
    config: Config,
    stage: OneStage,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    output: Path,
    interruption: Interruption | None = None,
    scorer: Scorer | None = None,
) -> Trainer:
    """The stage's trainer: TRL's, or the method's own, after the method's ``attach``; checkpoints go to ``output``.

    Args:
        scorer: the reward of GRPO's completions.

    Raises:
        UserError: rows hold no answer within ``max_length``, or the method refuses the trainer.
        SystemExit: code 85, ``interruption`` asked for it while DPO's reference log-probabilities were computed.
    """
    method, key = config.method, config.stage_key(stage.name)
    sets = _sets(config, stage, data)
    rows = {name: _conversations(part, stage.name) for name, part in sets.items()}
    processes.on_all_processes(lambda: method.freeze(model, stage.name))
    adapter = processes.on_all_processes(lambda: method.adapter(model, stage.name))
    if isinstance(stage, GRPOSettings):
        procedure = _grpo(stage, model, tokenizer, scorer)
    elif isinstance(stage, DPOSettings):
        procedure = _dpo(stage, config.model)
        rows = {name: shared_rows(part, output / "rows" / name) for name, part in rows.items()}
        if adapter is not None and config.distributed.name == "fsdp2" and torch.cuda.is_available():
            # TRL computes them on the GPU with this model, which FSDP brings there only when training begins.
            model.to("cuda")
    else:
        procedure = _sft(stage, config.model)
    arguments = _arguments(config, stage, output, model) | procedure.arguments
    # A subclass of one of TRL's, which take adapters as well.
    trainer_class: Any = method.trainer_class(procedure.trainer, stage.name)
    with ExitStack() as held:
        if isinstance(stage, DPOSettings):
            facts = config.model.model_dump(mode="json", include={"attention", "precision", "dtype"})
            pairs = sum(map(len, rows.values()))
            cache = ReferencePolicyCache(output / "reference", pairs, interruption or Interruption(), facts)
            trainer_class = held.enter_context(cache.used_by(trainer_class))
        trainer: Trainer = trainer_class(
            model=model,
            args=one_gpu_and_fp32_sums(procedure.configuration(**arguments)),
            train_dataset=rows.pop("training"),
            eval_dataset=rows or None,
            processing_class=tokenizer,
            peft_config=adapter,
            **procedure.given,
        )
    if method.quantization(stage.name) is not None:
        keep_in_fp32(cast(nn.Module, trainer.model))
    trainer.remove_callback(PrinterCallback)
    if isinstance(trainer, FiniteTrainer):
        trainer.row_place = partial(_training_row, config, data, stage.name)
    packed = isinstance(stage, SFTSettings) and stage.packing is not None
    # Packs are fewer than rows.
    whole = {name: part for name, part in sets.items() if not (packed and name == "training")}

    def complete() -> None:
        _check_nothing_dropped(f"{key}.max_length", stage.max_length, trainer, whole)
        with settings_of(METHOD_SECTION):
            method.attach(trainer, stage.name, config.seed)

    processes.on_all_processes(complete)
    if packed:
        trainer.add_callback(StepCallback(on_train_begin=partial(check_rows_apart, trainer, f"{key}.packing")))
    if isinstance(stage, GRPOSettings) and isinstance(trainer, RolloutTrainer):
        trainer.add_callback(RolloutCallback(trainer, stage, key))
        trainer.keep_start(stage)
    # Preparing the sets draws from the generators, more or less by method. Each process samples completions of its own.
    set_seed(_seed(config.seed, processes.rank()) if isinstance(stage, GRPOSettings) else config.seed)
    return trainer


def _sets(config: Config, stage: OneStage, data: Data) -> dict[str, list[Row]]:
    """The rows that the stage trains on, refers to and measures, by the name of their set."""
    uses = set_uses(config, stage, len(data.safety))
    sets = {"training": data.training(stage.name)}
    sets |= {use.name: data.reference_sets[use.name] for use in uses if not use.trained_on}
    if stage.eval_every is not None:
        sets |= {f"{HELD_OUT}{name}": rows for name, rows in data.held_out.items()}
    return sets


def _sft(stage: SFTSettings, model: Model) -> _Procedure:
    arguments: dict[str, Any] = {"max_length": stage.max_length, "activation_offloading": model.activation_offload}
    if stage.packing is not None:
        # Reference and held-out rows stay by themselves; in a batch they are put behind each other as well.
        arguments |= {"packing": True, "packing_strategy": stage.packing, "eval_packing": False}
    return _Procedure(StageSFTTrainer, SFTConfig, arguments)


def _dpo(stage: DPOSettings, model: Model) -> _Procedure:
    arguments = {
        "max_length": stage.max_length,
        "activation_offloading": model.activation_offload,
        "beta": stage.beta,
        # TRL then needs neither a second model nor a path to load one from.
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": stage.micro_batch_size,
        "loss_type": list(stage.losses),
        "loss_weights": list(stage.losses.values()),
        "label_smoothing": stage.label_smoothing,
    }
    return _Procedure(StageDPOTrainer, DPOConfig, arguments)


def _grpo(stage: GRPOSettings, model: Any, tokenizer: PreTrainedTokenizerBase, scorer: Scorer | None) -> _Procedure:
    if scorer is None:
        raise ValueError("GRPO needs a scorer")
    ends = end_tokens(model.generation_config, tokenizer)
    # transformers would take whatever TRL does not set, as min_p, from the model's own settings.
    model.generation_config = GenerationConfig(eos_token_id=ends)
    opened = template_opens_thought(partial(render, tokenizer))
    reward = ScoredRollouts(scorer, ReplyDecoder(tokenizer, ends), opened, stage.num_generations)
    arguments = {
        "num_generations": stage.num_generations,
        "steps_per_generation": accumulation_steps(stage, processes.world_size()) * stage.updates_per_generation,
        "max_completion_length": stage.max_new_tokens,
        "temperature": stage.temperature,
        "top_p": stage.top_p,
        "epsilon": stage.clip,
        "delta": stage.delta,
        # What it penalises is set once the start is kept.
        "beta": 0.0,
        "loss_type": stage.loss,
        "scale_rewards": stage.scale_rewards,
        # Rollouts are sampled in training mode.
        "disable_dropout": True,
    }
    return _Procedure(StageGRPOTrainer, GRPOConfig, arguments, {"reward_funcs": reward})


def _seed(seed: int, rank: int) -> int:
    """The seed of a process: the run's own for the first, and for the others one that no other run has."""
    return random.Random(f"{seed} {rank}").getrandbits(32) if rank else seed


def _training_row(config: Config, data: Data, stage: StageName, number: int) -> str:
    """The place of a row that ``stage`` trains on: in the safety set, or among the general rows mixed in."""
    if number < len(data.safety):
        path = config.data.safety if isinstance(config.data, FileData) else None
        return f"{row_place(path, number)} of the safety set"
    return f"row {number - len(data.safety) + 1} of the general rows (data/general/{stage}.jsonl)"


def _arguments(config: Config, stage: OneStage, output: Path, model: PreTrainedModel) -> dict[str, Any]:
    """Arguments that TRL's configurations share."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(output),
        "seed": config.seed,
        "learning_rate": stage.learning_rate,
        "num_train_epochs": stage.epochs,
        "max_steps": stage.max_steps or -1,
        "per_device_train_batch_size": stage.micro_batch_size,
        # A held-out loss is then a mean over rows, whatever the number of processes.
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": accumulation_steps(stage, processes.world_size()),
        "warmup_steps": stage.warmup_ratio,
        # transformers' own constant leaves the warm-up out.
        "lr_scheduler_type": "constant_with_warmup" if stage.scheduler == "constant" else stage.scheduler,
        "weight_decay": stage.weight_decay,
        "max_grad_norm": stage.max_grad_norm,
        "optim": OPTIMIZERS[stage.optimizer],
        "bf16": config.model.precision == "bf16",
        "use_cpu": not cuda,
        "activation_checkpointing": config.model.gradient_checkpointing,
        "torch_compile": config.model.compile,
        "logging_steps": stage.log_every,
        "logging_nan_inf_filter": False,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "log_level_replica": "error",
        "dataloader_pin_memory": cuda,
        **_measuring_arguments(stage),
        **mode_arguments(config, model),
    }


def _measuring_arguments(stage: OneStage) -> dict[str, Any]:
    """Arguments for saving, measuring held-out rows and choosing the result."""
    if stage.eval_every is None:
        return {"save_steps": stage.save_every, "eval_strategy": "no"}
    measured = {"save_steps": stage.save_every, "eval_strategy": "steps", "eval_steps": stage.eval_every}
    if stage.keep == "last":
        return measured
    # The best is among what is saved.
    return measured | {
        "save_steps": stage.eval_every,
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{HELD_OUT}safety_loss",
        "greater_is_better": False,
    }


def _check_nothing_dropped(key: str, tokens: int, trainer: Trainer, rows: Mapping[str, Sequence[Row]]) -> None:
    """Refuse rows that TRL silently leaves out, since ``max_length`` cuts them before the answer."""
    sets: Any = trainer.eval_dataset or {}
    prepared: dict[str, Any] = {"training": trainer.train_dataset, **sets}
    problems = [
        f"{key}: {len(rows[name]) - len(kept)} of the {len(rows[name])} rows of the {name} set hold no answer within "
        f"{tokens} tokens; raise it or take the rows out"
        for name, kept in prepared.items()
        if name in rows and len(kept) < len(rows[name])
    ]
    if problems:
        raise UserError(*problems)


def _conversations(rows: Sequence[Row], stage: str) -> Dataset:
    """Rows in TRL's conversational form: loss on the answer alone, of several turns on the last one."""
    answers = {"chosen": "chosen", "rejected": "rejected"} if stage == "dpo" else {"completion": "chosen"}
    return Dataset.from_list(
        [
            {"prompt": turns(row["prompt"])}
            | {column: [turn("assistant", row[source])] for column, source in answers.items() if source in row}
            | {column: row[column] for column in ("harmful", "target") if column in row}
            for row in rows
        ]
    )
