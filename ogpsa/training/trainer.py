"""A stage's TRL trainer over its training rows, with what the method attaches to it."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, set_seed
from trl import DPOConfig, SFTConfig, SFTTrainer

from ogpsa.config import Config, DPOSettings, SFTSettings, StageName
from ogpsa.data.rows import Data, Row, row_place
from ogpsa.distributed import processes
from ogpsa.distributed.arguments import mode_arguments, shared_rows, summing_in_fp32
from ogpsa.distributed.launch import accumulation_steps
from ogpsa.training.finite import FiniteTrainer
from ogpsa.training.reference_policy import KeptReferenceTrainer, ReferencePolicyCache
from ogpsa.utils.errors import UserError
from ogpsa.utils.signals import Interruption

# transformers' names.
OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_bnb_8bit", "sgd": "sgd"}


class _NoModelCard(Trainer):
    """Leaves out the card beside each checkpoint: the run directory says what it is."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing."""


class StageSFTTrainer(FiniteTrainer, _NoModelCard, SFTTrainer):
    """Supervised fine-tuning."""


class StageDPOTrainer(FiniteTrainer, _NoModelCard, KeptReferenceTrainer):
    """Direct preference optimization."""


def build_trainer(
    config: Config,
    stage: SFTSettings | DPOSettings,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    output: Path,
    interruption: Interruption | None = None,
) -> Trainer:
    """The stage's trainer: TRL's, or the method's own, after the method's ``attach``; checkpoints go to ``output``.

    Raises:
        UserError: rows hold no answer within ``max_length``, or the method refuses the trainer.
        SystemExit: code 85, ``interruption`` asked for it while DPO's reference log-probabilities were computed.
    """
    method = config.method
    uses = method.set_uses(stage.name, len(data.safety))
    sets = {"training": data.training(stage.name)}
    sets |= {use.name: data.reference_sets[use.name] for use in uses if not use.trained_on}
    rows = {name: _conversations(part, stage.name) for name, part in sets.items()}
    arguments = _arguments(config, stage, output)
    adapter = processes.on_all_processes(lambda: method.adapter(model, stage.name))
    base_class: type[Trainer] = StageSFTTrainer
    arguments_class: type[SFTConfig] | type[DPOConfig] = SFTConfig
    if isinstance(stage, DPOSettings):
        base_class, arguments_class = StageDPOTrainer, DPOConfig
        # TRL then needs neither a second model nor a path to load one from.
        arguments |= {"beta": stage.beta, "loss_type": ["sigmoid"], "precompute_ref_log_probs": True}
        rows = {name: shared_rows(part, output / "rows" / name) for name, part in rows.items()}
        if adapter is not None and config.distributed.name == "fsdp2" and torch.cuda.is_available():
            # TRL computes them on the GPU with this model, which FSDP brings there only when training begins.
            model.to("cuda")
    # A subclass of one of TRL's, which take adapters as well.
    trainer_class: Any = method.trainer_class(base_class, stage.name)
    with ExitStack() as held:
        if isinstance(stage, DPOSettings):
            facts = config.model.model_dump(mode="json", include={"attention", "precision", "dtype"})
            pairs = sum(map(len, rows.values()))
            cache = ReferencePolicyCache(output / "reference", pairs, interruption or Interruption(), facts)
            trainer_class = held.enter_context(cache.used_by(trainer_class))
        trainer: Trainer = trainer_class(
            model=model,
            args=summing_in_fp32(arguments_class(**arguments)),
            train_dataset=rows.pop("training"),
            eval_dataset=rows or None,
            processing_class=tokenizer,
            peft_config=adapter,
        )
    trainer.remove_callback(PrinterCallback)
    if isinstance(trainer, FiniteTrainer):
        trainer.row_place = partial(_training_row, config, data, stage.name)

    def complete() -> None:
        _check_nothing_dropped(f"{config.stage_key(stage.name)}.max_length", stage.max_length, trainer, sets)
        method.attach(trainer, stage.name, config.seed)

    processes.on_all_processes(complete)
    # Preparing the sets draws from the generators, more or less by method.
    set_seed(config.seed)
    return trainer


def _training_row(config: Config, data: Data, stage: StageName, number: int) -> str:
    """Where a row that ``stage`` trains on stands: in the safety set, or among the general rows mixed in."""
    if number < len(data.safety):
        return f"{row_place(config, '', number)} of the safety set"
    return f"row {number - len(data.safety) + 1} of the general rows (data/general/{stage}.jsonl)"


def _arguments(config: Config, stage: SFTSettings | DPOSettings, output: Path) -> dict[str, Any]:
    """Arguments that both of TRL's configurations take."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(output),
        "seed": config.seed,
        "learning_rate": stage.learning_rate,
        "num_train_epochs": stage.epochs,
        "max_steps": stage.max_steps or -1,
        "per_device_train_batch_size": stage.micro_batch_size,
        "per_device_eval_batch_size": stage.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(stage, processes.world_size()),
        "max_length": stage.max_length,
        "warmup_steps": stage.warmup_ratio,
        "lr_scheduler_type": stage.scheduler,
        "weight_decay": stage.weight_decay,
        "max_grad_norm": stage.max_grad_norm,
        "optim": OPTIMIZERS[stage.optimizer],
        "bf16": config.model.precision == "bf16",
        "use_cpu": not cuda,
        "activation_checkpointing": config.model.gradient_checkpointing,
        "logging_steps": stage.log_every,
        "logging_nan_inf_filter": False,
        "save_steps": stage.save_every,
        "save_total_limit": 2,
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level_replica": "error",
        "dataloader_pin_memory": cuda,
    } | mode_arguments(config)


def _check_nothing_dropped(key: str, tokens: int, trainer: Trainer, rows: Mapping[str, Sequence[Row]]) -> None:
    """Refuse rows that TRL leaves out without a word, since ``max_length`` cuts them before the answer."""
    sets: Any = trainer.eval_dataset or {}
    prepared: dict[str, Any] = {"training": trainer.train_dataset, **sets}
    problems = [
        f"{key}: {len(rows[name]) - len(kept)} of the {len(rows[name])} rows of the {name} set hold no answer within "
        f"{tokens} tokens; raise it or take the rows out"
        for name, kept in prepared.items()
        if len(kept) < len(rows[name])
    ]
    if problems:
        raise UserError(*problems)


def _conversations(rows: Sequence[Row], stage: str) -> Dataset:
    """Rows in TRL's conversational form: loss on the answer alone."""

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    answers = {"completion": "chosen"} if stage == "sft" else {"chosen": "chosen", "rejected": "rejected"}
    return Dataset.from_list(
        [
            {"prompt": turn("user", row["prompt"])}
            | {column: turn("assistant", row[source]) for column, source in answers.items()}
            for row in rows
        ]
    )
