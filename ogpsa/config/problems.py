"""Problems that only the whole configuration shows."""

from ogpsa.config.method import set_name_problems
from ogpsa.config.run import Config
from ogpsa.config.stage import GRPOSettings, SFTSettings


def config_problems(config: Config) -> list[str]:
    """Problems of sections that are valid each by itself, one line each."""
    return [
        *_dtype_problems(config),
        *config.method.problems(config),
        *_rollout_problems(config),
        *_held_out_problems(config),
    ]


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
