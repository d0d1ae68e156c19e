"""From a composed configuration to a valid one. Imports nothing heavy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ogpsa.config import (
    Config,
    GRPOSettings,
    Method,
    Reward,
    SFTSettings,
    describe,
    missing_stage_values,
    set_name_problems,
)
from ogpsa.methods import method_class
from ogpsa.rewards import load_reward
from ogpsa.utils.errors import UserError


def load_config(raw: Mapping[str, Any], folders: Sequence[Path] = ()) -> Config:
    """Validate a composed configuration.

    Args:
        folders: folders of option groups; their ``method`` and ``reward`` may hold the user's own.

    Raises:
        UserError: every problem at once, one line each.
    """
    problems: list[str] = []
    sections = dict(raw)
    method = sections.get("method")
    name = str(method.get("name")) if isinstance(method, Mapping) else "baseline"
    try:
        sections["method"] = method_class(name, [folder / "method" for folder in folders]).model_validate(method)
    except ValidationError as error:
        problems += describe(error, raw, ("method",))
        sections["method"] = Method(name=name)
    if isinstance(reward := sections.get("reward"), Mapping):
        sections["reward"] = Reward(name=str(reward.get("name")))
        try:
            sections["reward"] = load_reward(raw, [folder / "reward" for folder in folders])
        except UserError as error:
            problems += error.problems
    try:
        config = Config.model_validate(sections)
    except ValidationError as error:
        raise UserError(*describe(error, raw), *problems) from None
    problems = problems or missing_stage_values(config.method, [stage.name for stage in config.stages])
    if config.eval.template_kwargs != config.model.template_kwargs:
        problems.append("eval.template_kwargs: not as in training; set model.template_kwargs, which both read")
    problems = problems or [
        *_dtype_problems(config),
        *config.method.problems(config),
        *_rollout_problems(config),
        *_held_out_problems(config),
    ]
    if problems:
        raise UserError(*problems)
    return config


def _rollout_problems(config: Config) -> list[str]:
    """Problems of the RL stage that only the whole configuration shows, one line each."""
    problems: list[str] = []
    for stage in config.stages:
        if not isinstance(stage, GRPOSettings):
            continue
        key = config.stage_key(stage.name)
        problems += set_name_problems(f"{key}.answerable_sets", stage.answerable_sets, stage.name, config)
        problems += ["reward: null, but grpo needs one"] if config.reward is None else config.reward.problems(config)
        mode = config.distributed.name
        if mode in ("zero2", "zero3"):
            problems.append(
                f"distributed.name: {mode} is not tested with rollouts; allowed with grpo: single, ddp, fsdp2"
            )
    return problems


def _held_out_problems(config: Config) -> list[str]:
    """Held-out losses without rows, and untested uses of ``keep=best`` and packing, one line each."""
    problems, names, mode = [], config.data.held_out_names, config.distributed.name
    for stage in config.stages:
        key = config.stage_key(stage.name)
        if stage.eval_every is not None and not names:
            problems.append(
                f"{key}.eval_every: {stage.eval_every}, but data={config.data.name} holds out no rows; give some: "
                "+data.held_out={safety: FILE}"
            )
        elif stage.keep == "best" and "safety" not in names:
            problems.append(
                f"{key}.keep: best reads the loss on data.held_out.safety, which is missing; found: {', '.join(names)}"
            )
        if isinstance(stage, SFTSettings) and stage.packing is not None and config.model.compile:
            problems.append(f"{key}.packing: {stage.packing} is not tested with model.compile=true; allowed: null")
        if stage.keep == "best" and config.model.compile:
            problems.append(f"{key}.keep: best is not tested with model.compile=true; allowed: last")
        if stage.keep == "best" and mode not in ("single", "ddp"):
            problems.append(f"{key}.keep: best is not tested with distributed={mode}; allowed: single, ddp")
    return problems


def _dtype_problems(config: Config) -> list[str]:
    """Problems of weights stored in bf16, which must not be trained: rounding swallows their steps."""
    if config.model.dtype == "fp32":
        return []
    if not config.method.trains_adapters:
        return [
            "model.dtype: weights stored in bf16 do not move at the learning rates of full fine-tuning, so "
            f"method={config.method.name} would not train; allowed: fp32 (model.precision=bf16 is autocast over it), "
            "or method=lora, ogpsa_lora"
        ]
    if config.model.precision == "fp32":
        return ["model.precision: fp32 with model.dtype=bf16; allowed: bf16, or model.dtype=fp32"]
    if config.distributed.name == "zero3":
        # TRL stores the adapters as the model under ZeRO-3.
        return ["model.dtype: bf16 makes distributed=zero3 train adapters in bf16, which would not move; allowed: fp32"]
    return []
