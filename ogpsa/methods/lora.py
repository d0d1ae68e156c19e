"""LoRA: train low-rank adapters beside frozen weights (the paper's "LoRA" row; ``ogpsa/models/adapters.py``).

The paper states the learning rate alone (``adapter_learning_rate`` in ``conf/model``). The defaults are those of
LLaMA-Factory, which its code is built on [inferred].
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ogpsa.config import AdapterSettings, MethodSettings, StageName, value_for_stage

if TYPE_CHECKING:
    from ogpsa.config import Config

DEFAULT_RANK = 8
DEFAULT_DROPOUT = 0.0
# Every linear layer but the output head: peft's word for it.
ALL_LINEAR = "all-linear"

Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Modules = Literal["all-linear"] | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class AdapterKeys(MethodSettings):
    """What a method with adapters adds; each key is one value, a mapping by stage, or null for the default."""

    lora_rank: Rank | dict[StageName, Rank | None] | None
    lora_alpha: Alpha | dict[StageName, Alpha | None] | None
    lora_dropout: Dropout | dict[StageName, Dropout | None] | None
    lora_target_modules: Modules | dict[StageName, Modules | None] | None

    def adapter(self, stage: StageName) -> AdapterSettings:
        modules = value_for_stage(self.lora_target_modules, stage, ALL_LINEAR)
        rank = value_for_stage(self.lora_rank, stage, DEFAULT_RANK)
        return AdapterSettings(
            rank=rank,
            alpha=value_for_stage(self.lora_alpha, stage, 2 * rank),
            dropout=value_for_stage(self.lora_dropout, stage, DEFAULT_DROPOUT),
            target_modules=modules if isinstance(modules, str) else tuple(modules),
        )

    def check(self, config: "Config") -> list[str]:
        problems = []
        for stage in config.stages:
            wanted = self.adapter(stage.name)
            if stage.name == "dpo" and wanted.dropout:
                problems.append(
                    f"method.lora_dropout: {wanted.dropout} has no effect in dpo, which compares policy and reference "
                    "without dropout; allowed: 0, or {sft: " + f"{wanted.dropout}" + "}"
                )
            if "lm_head" in wanted.target_modules:
                problems.append(
                    "method.lora_target_modules: an adapter on lm_head would never be trained, since the loss reads "
                    "that layer's own weights; leave it out"
                )
        return list(dict.fromkeys(problems))


class Settings(AdapterKeys):
    name: Literal["lora"]
