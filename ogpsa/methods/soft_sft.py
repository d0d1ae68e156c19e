"""Soft SFT: SFT in which a token counts the less the likelier it has become (arXiv 2406.05946, eq. 3).

The loss of a token is ``-(2 / β_t) log sigmoid(β_t Δ_t)``, with Δ_t the log-ratio of the policy to the stage's start.
Its gradient is that of cross-entropy times ``2 sigmoid(-β_t Δ_t)``: 1 at the start, towards 0 as the token is learned,
the sooner the larger β_t. As in the authors' code the weight is at least 1e-3, and what is logged as the loss is the
weighted cross-entropy. The paper protects an aligned model's first tokens from other rows; here the rows are the
refusals themselves, whose first tokens are thereby learned less far.
"""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ogpsa.config import ExtraMemory, Method, StageName, mode_problems

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn
    from transformers import PreTrainedModel, Trainer

    from ogpsa.config import Config

Beta = Annotated[float, Field(ge=0)]
# The authors' code.
SMALLEST = 1e-3


class SoftSFT(Method):
    """``first`` holds β of an answer's first tokens, in their order, and ``later`` that of all others."""

    first: list[Beta]
    later: Beta

    def problems(self, config: "Config") -> list[str]:
        problems = []
        if all(stage.name != "sft" for stage in config.stages):
            problems.append(
                f"method: {self.name} is a loss of sft, and stage={config.stage.name} has none; "
                "allowed: sft, sft_dpo, sft_grpo"
            )
        return problems + mode_problems(config, "since DeepSpeed keeps the weights to itself")

    def attach(self, trainer: "Trainer", stage: StageName, seed: int) -> None:
        if stage != "sft":
            return
        from ogpsa.training.start import frozen_copy

        model: Any = trainer.model
        model.register_forward_hook(Weighting(frozen_copy(trainer), self.first, self.later), with_kwargs=True)

    def training_key(self, stage: StageName) -> dict[str, Any]:
        # After SFT it trains as the baseline does.
        return super().training_key(stage) if stage == "sft" else {}

    def memory(self, model: "PreTrainedModel", stage: StageName) -> ExtraMemory:
        # The start in fp32.
        return ExtraMemory(bytes_per_weight=4 if stage == "sft" else 0)


class Weighting:
    """A forward hook that weights the log-probabilities of which TRL's trainer sums its loss; held-out rows have none.

    Args:
        start: the stage's starting policy, called as the model is.
        first: β of an answer's first tokens; ``later``: of the others.
    """

    def __init__(self, start: "Callable[..., Any]", first: list[float], later: float) -> None:
        self._start = start
        self._first = first
        self._later = later

    def __call__(self, model: "nn.Module", _: tuple[()], inputs: dict[str, Any], outputs: Any) -> None:
        import torch

        if not model.training:
            return
        with torch.no_grad():
            start = self._start(**inputs).log_probs
            beta = betas(outputs.label_mask, self._first, self._later)
            weights = (2 * torch.sigmoid(-beta * (outputs.log_probs - start))).clamp(min=SMALLEST)
        outputs.log_probs = outputs.log_probs * weights


def betas(answers: "Tensor", first: list[float], later: float) -> "Tensor":
    """β of each token, of the shape of ``answers`` (rows x tokens), which is true in answers.

    A run of true values is one answer, of which a pack of rows holds several.
    """
    import torch

    count = answers.long().cumsum(1)
    before = torch.where(answers, 0, count).cummax(1).values
    # 1 for an answer's first token.
    position = (count - before).clamp(max=len(first) + 1)
    return torch.tensor([later, *first, later], device=answers.device)[position]


METHOD = SoftSFT
