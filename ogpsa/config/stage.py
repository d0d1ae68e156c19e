"""The ``stage`` group: one or several stages of training."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ogpsa.config.section import Section

StageName = Literal["sft", "dpo", "grpo"]
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "sgd"]
# TRL's names of DPO's losses, except those that compare the pairs of a micro-batch with each other.
PairLoss = Literal[
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "sppo_hard", "apo_zero", "apo_down",
    "discopop", "sft",
]  # fmt: skip
# Losses that read label_smoothing.
SMOOTHED = {"robust", "exo_pair"}


class Training(Section):
    """Keys that a model's recipe and a stage share."""

    learning_rate: float = Field(gt=0)
    epochs: float = Field(gt=0)
    batch_size: int = Field(ge=1)
    micro_batch_size: int = Field(ge=1)
    max_length: int = Field(ge=8)
    save_every: int = Field(ge=1)


class StageSettings(Training):
    """Settings that all stages share."""

    warmup_ratio: float = Field(ge=0, lt=1)
    scheduler: Literal["cosine", "linear", "constant"]
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(ge=0)
    max_steps: int | None = Field(ge=1)
    log_every: int = Field(ge=1)
    optimizer: Optimizer

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> "StageSettings":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of micro_batch_size={self.micro_batch_size}"
            )
        return self


class MeasuredSettings(StageSettings):
    """Settings of the stages whose loss on held-out rows can be measured.

    Attributes:
        eval_every: optimizer steps between two measurements.
        keep: the weights that the stage ends with: the last step's, or those of the lowest loss on held-out safety
            rows.
    """

    eval_every: int | None = Field(default=None, ge=1)
    keep: Literal["last", "best"] = "last"

    @model_validator(mode="after")
    def _keeps_what_is_measured(self) -> "MeasuredSettings":
        if self.keep == "best" and self.eval_every is None:
            raise ValueError("keep=best takes the step of the lowest held-out loss, and eval_every=null measures none")
        return self


class SFTSettings(MeasuredSettings):
    """Supervised fine-tuning.

    Attributes:
        packing: how rows are packed to ``max_length`` tokens, each attending only to itself; None: no packing.
    """

    name: Literal["sft"]
    cut_answers: bool = False
    packing: Literal["bfd"] | None = None


class DPOSettings(MeasuredSettings):
    """Direct preference optimization.

    Attributes:
        loss: one loss, or several with their weights.
        label_smoothing: share of pairs whose labels are swapped, for ``robust`` and ``exo_pair``.
    """

    name: Literal["dpo"]
    beta: float = Field(gt=0)
    loss: PairLoss | Annotated[dict[PairLoss, Annotated[float, Field(gt=0)]], Field(min_length=1)] = "sigmoid"
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    cut_answers: bool = False
    equal_answers: bool = False

    @property
    def losses(self) -> dict[PairLoss, float]:
        """The weight of each loss."""
        return self.loss if isinstance(self.loss, dict) else {self.loss: 1.0}

    @model_validator(mode="after")
    def _is_smoothed_where_it_counts(self) -> "DPOSettings":
        reading = sorted(SMOOTHED & self.losses.keys())
        if reading and not self.label_smoothing:
            raise ValueError(f"label_smoothing=0 leaves nothing of loss={reading[0]}; give it, as 0.1 of robust DPO")
        if self.label_smoothing and not reading:
            raise ValueError(f"label_smoothing={self.label_smoothing:g} has no effect in loss={self.loss}")
        return self


class GRPOSettings(StageSettings):
    """Group relative policy optimization: ``batch_size`` and ``micro_batch_size`` count completions.

    Attributes:
        max_length: tokens of a prompt and its completion together.
        clip: ε, how far a token's probability ratio may be from 1; ``delta``: the ratio's bound where the advantage is
            negative.
        answerable_sets: reference sets whose prompts are mixed in as requests that should be answered.
    """

    # No answers are trained on, so a reference row that is cut is always refused.
    cut_answers: ClassVar[bool] = False
    # Its measure is the reward.
    eval_every: ClassVar[None] = None
    keep: ClassVar[str] = "last"

    name: Literal["grpo"]
    num_generations: int = Field(ge=2)
    updates_per_generation: int = Field(ge=1)
    max_new_tokens: int = Field(ge=1)
    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)
    clip: float = Field(gt=0)
    delta: float | None
    beta: float = Field(ge=0)
    loss: Literal["dapo", "grpo", "bnpo", "dr_grpo"]
    scale_rewards: Literal["group", "batch", "none"]
    answerable_sets: list[str]
    answerable_ratio: float = Field(ge=0)
    measure_kl: bool
    flat_steps: int = Field(ge=1)

    @property
    def prompts_per_generation(self) -> int:
        """Prompts that are answered before the next updates."""
        return self.batch_size * self.updates_per_generation // self.num_generations

    @model_validator(mode="after")
    def _groups_are_whole(self) -> "GRPOSettings":
        if self.batch_size * self.updates_per_generation % self.num_generations:
            raise ValueError(
                f"batch_size={self.batch_size} completions in updates_per_generation={self.updates_per_generation} "
                f"updates are not a multiple of num_generations={self.num_generations}"
            )
        if self.save_every % self.updates_per_generation:
            raise ValueError(
                f"save_every={self.save_every} is not a multiple of updates_per_generation="
                f"{self.updates_per_generation}, and completions are in no checkpoint"
            )
        if self.max_new_tokens >= self.max_length:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} leaves no prompt within max_length={self.max_length}"
            )
        if self.delta is not None and self.delta <= 1 + self.clip:
            raise ValueError(f"delta={self.delta:g} is within the clip of 1 + {self.clip:g}; raise it, or write null")
        return self


OneStage = SFTSettings | DPOSettings | GRPOSettings


class SFTThenDPOSettings(Section):
    name: Literal["sft_dpo"]
    sft: SFTSettings
    dpo: DPOSettings


class SFTThenGRPOSettings(Section):
    name: Literal["sft_grpo"]
    sft: SFTSettings
    grpo: GRPOSettings


Stage = Annotated[OneStage | SFTThenDPOSettings | SFTThenGRPOSettings, Field(discriminator="name")]


def stages_of(stage: Stage) -> list[OneStage]:
    """The stages of a pipeline in their order."""
    match stage:
        case SFTThenDPOSettings():
            return [stage.sft, stage.dpo]
        case SFTThenGRPOSettings():
            return [stage.sft, stage.grpo]
    return [stage]
