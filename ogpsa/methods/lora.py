"""LoRA: train low-rank adapters next to frozen weights, merged after each stage (the paper's "LoRA" row).

LoRA: arXiv 2106.09685; QLoRA, over a base in 4 bits: arXiv 2305.14314; DoRA, with a magnitude for each output: arXiv
2402.09353. The paper states the learning rate alone (``adapter_learning_rate`` in ``conf/model``).
"""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ogpsa.config import Method, Quantization, StageName, stage_value
from ogpsa.utils.errors import UserError, closest_match

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

    from ogpsa.config import Config

Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[int, Field(ge=1)] | Literal["2r"]
# Stages without dropout, of adapters as well, and why.
WITHOUT_DROPOUT: dict[StageName, str] = {
    "dpo": "which compares policy and reference without dropout",
    "grpo": "whose completions are sampled without dropout",
}
Dropout = Annotated[float, Field(ge=0, lt=1)]
# ``all-linear``, peft's word: every linear layer but the output head.
Modules = Literal["all-linear"] | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class Lora(Method):
    """Each key is one value, or a mapping by stage."""

    trains_adapters: ClassVar[bool] = True

    lora_rank: Rank | dict[StageName, Rank]
    lora_alpha: Alpha | dict[StageName, Alpha]
    lora_dropout: Dropout | dict[StageName, Dropout]
    lora_target_modules: Modules | dict[StageName, Modules]
    lora_dora: bool | dict[StageName, bool] = False
    lora_quantize: Quantization | dict[StageName, Quantization | None] | None = None

    def problems(self, config: "Config") -> list[str]:
        problems = []
        for stage in config.stages:
            dropout = stage_value(self.lora_dropout, stage.name)
            if stage.name in WITHOUT_DROPOUT and dropout:
                others = f", or {{sft: {dropout}, {stage.name}: 0.0}}" if len(config.stages) > 1 else ""
                problems.append(
                    f"method.lora_dropout: {dropout} has no effect in {stage.name}, {WITHOUT_DROPOUT[stage.name]}; "
                    f"allowed: 0{others}"
                )
            if "lm_head" in stage_value(self.lora_target_modules, stage.name):
                problems.append(
                    "method.lora_target_modules: an adapter on lm_head would never be trained, since the loss reads "
                    "that layer's own weights; leave it out"
                )
        return list(dict.fromkeys(problems))

    def adapter(self, model: "PreTrainedModel", stage: StageName) -> "LoraConfig":
        """peft's configuration for ``model``.

        Raises:
            UserError: a target module is not a linear layer of the model.
        """
        from peft import LoraConfig

        from ogpsa.models.text import missed_layers

        modules: Any = stage_value(self.lora_target_modules, stage)
        if isinstance(modules, list):
            _check_modules(modules, model)
        return LoraConfig(
            task_type="CAUSAL_LM",
            exclude_modules=missed_layers(model) or None,
            r=stage_value(self.lora_rank, stage),
            lora_alpha=self.alpha(stage),
            lora_dropout=stage_value(self.lora_dropout, stage),
            target_modules=modules,
            use_dora=stage_value(self.lora_dora, stage),
        )

    def quantization(self, stage: StageName) -> Quantization | None:
        return stage_value(self.lora_quantize, stage)

    def alpha(self, stage: StageName) -> int:
        """An adapter's output counts ``alpha / rank`` times."""
        alpha: int | Literal["2r"] = stage_value(self.lora_alpha, stage)
        return 2 * stage_value(self.lora_rank, stage) if alpha == "2r" else alpha

    def training_key(self, stage: StageName) -> dict[str, Any]:
        keys = {key: value for key, value in self.model_dump(mode="json").items() if key.startswith("lora_")}
        return {key: stage_value(value, stage) for key, value in keys.items()} | {"lora_alpha": self.alpha(stage)}


def _check_modules(names: list[str], model: "PreTrainedModel") -> None:
    from ogpsa.models.text import linear_layers

    linear = {name.rpartition(".")[2] for name in linear_layers(model)}
    problems = [
        f"method.lora_target_modules: '{name}' is not a linear layer of the model; "
        f"allowed: all-linear, or some of {', '.join(sorted(linear))}{closest_match(name, linear)}"
        for name in names
        if name not in linear
    ]
    if problems:
        raise UserError(*problems)


METHOD = Lora
