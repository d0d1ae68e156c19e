"""The ``stage`` group: one or several stages of training."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ogpsa.config.section import Section

StageName = Literal["sft", "dpo"]


class Training(Section):
    """Keys that a model's recipe and a stage share."""

    learning_rate: float = Field(gt=0)
    epochs: float = Field(gt=0)
    batch_size: int = Field(ge=1)
    micro_batch_size: int = Field(ge=1)
    max_length: int = Field(ge=8)
    save_every: int = Field(ge=1)


class StageSettings(Training):
    """Settings that SFT and DPO share."""

    warmup_ratio: float = Field(ge=0, lt=1)
    scheduler: Literal["cosine", "linear", "constant"]
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(ge=0)
    max_steps: int | None = Field(ge=1)
    log_every: int = Field(ge=1)
    optimizer: Literal["adamw", "adamw_8bit", "sgd"]
    # A run of an earlier revision does not say.
    cut_answers: bool = False

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> "StageSettings":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of micro_batch_size={self.micro_batch_size}"
            )
        return self


class SFTSettings(StageSettings):
    name: Literal["sft"]


class DPOSettings(StageSettings):
    name: Literal["dpo"]
    beta: float = Field(gt=0)
    # A run of an earlier revision does not say.
    equal_answers: bool = False


class SFTThenDPOSettings(Section):
    name: Literal["sft_dpo"]
    sft: SFTSettings
    dpo: DPOSettings


Stage = Annotated[SFTSettings | DPOSettings | SFTThenDPOSettings, Field(discriminator="name")]
