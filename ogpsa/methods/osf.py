"""OSF: train the small singular directions of each linear layer, orthogonal to its large ones, which stay.

Orthogonal subspace fine-tuning, arXiv 2504.07097, as peft has it: W = U S V is cut into the directions of the largest
singular values and the rest. The rest's factors are trained beside the weights as adapters are, and merged after the
stage. Their gradients are projected off the large directions, so that the change of a layer neither reads nor writes
these; an optimizer that rescales each element, such as AdamW, still leaves that projected space.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ogpsa.config import ExtraMemory, Method, StageName, mode_problems
from ogpsa.nullspace.settings import Modules
from ogpsa.utils.errors import UserError

if TYPE_CHECKING:
    from peft import OSFConfig
    from torch.nn import Module
    from transformers import PreTrainedModel, Trainer

    from ogpsa.config import Config


class Osf(Method):
    """``kept`` is the share of a layer's singular directions that stay; each key is one value for all stages."""

    trains_adapters: ClassVar[bool] = True

    variant: Literal["paper", "exact"]
    kept: float = Field(gt=0, lt=1)
    modules: Modules

    def problems(self, config: "Config") -> list[str]:
        problems = mode_problems(config, "whose gradients are projected before they are sharded", ("single", "ddp"))
        if config.model.dtype != "fp32":
            problems.append(
                f"model.dtype: {config.model.dtype} rounds the singular directions of method={self.name}; allowed: "
                "fp32 (model.precision=bf16 is autocast over it)"
            )
        return problems

    def adapter(self, model: "PreTrainedModel", stage: StageName) -> "OSFConfig":
        """peft's configuration for ``model``.

        Raises:
            UserError: ``modules`` fits no layer, or ``kept`` leaves one nothing to keep.
        """
        from peft import OSFConfig

        from ogpsa.models.text import linear_layers
        from ogpsa.nullspace.settings import selected_layers

        layers = linear_layers(model)
        chosen = selected_layers(layers, self.modules)
        if not chosen:
            raise UserError("method.modules: the model has no torch.nn.Linear layer, which OSF decomposes")
        least = min(min(layers[name].weight.shape) for name in chosen)
        if self.kept * least < 1:
            raise UserError(
                f"method.kept: {self.kept:g} keeps none of the {least} directions of a layer; allowed: {1 / least:.2g} "
                "to below 1"
            )
        return OSFConfig(task_type="CAUSAL_LM", target_modules=chosen, effective_rank=self.kept)

    def attach(self, trainer: "Trainer", stage: StageName, seed: int) -> None:
        from ogpsa.training.callbacks import StepCallback

        if self.variant == "exact":
            trainer.add_callback(StepCallback(on_optimizer_step=put_back))

    def memory(self, model: "PreTrainedModel", stage: StageName) -> ExtraMemory:
        # In fp32, at most: the factors as they were, those and the trained ones side by side, which each pass makes
        # and its backward needs, and the large directions of one side.
        return ExtraMemory(bytes_per_weight=12 + 4 * self.kept / (1 - self.kept))


def put_back(model: "Module", **event: object) -> None:
    """Project the trained factors of ``model`` as peft's hooks project their gradients."""
    import torch

    with torch.no_grad():
        for name, factor in model.named_parameters():
            if factor.requires_grad and "osf_svd_params" in name:
                for project in (factor._backward_hooks or {}).values():
                    if (projected := project(factor)) is not None:
                        factor.copy_(projected)


METHOD = Osf
