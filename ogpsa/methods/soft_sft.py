"""Soft SFT: SFT in which a token counts the less the likelier it has become (arXiv 2406.05946, eq. 3).

The loss of a token is ``-(2 / β_t) log sigmoid(β_t Δ_t)``, with Δ_t the log-ratio of the policy to the stage's start.
Its gradient is that of cross-entropy times ``2 sigmoid(-β_t Δ_t)``: 1 at the start, towards 0 as the token is learned,
the sooner the larger β_t, and up to 2 where it has become less likely. As in the authors' code the weight is at least
1e-3, and what is logged as the loss is the weighted cross-entropy. The paper protects an aligned model's first tokens
from other rows; here the rows are the refusals themselves.
"""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ogpsa.config import ExtraMemory, Method, StageName, mode_problems

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, Trainer

    from ogpsa.config import Config

Beta = Annotated[float, Field(ge=0)]
# The least weight of a token, as in the authors' code.
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
        return problems + mode_problems(config, "whose copy of the starting weights DeepSpeed does not shard")

    def attach(self, trainer: "Trainer", stage: StageName, seed: int) -> None:
        if stage != "sft":
            return
        from ogpsa.training.callbacks import StepCallback
        from ogpsa.training.start import frozen_copy

        model: Any = trainer.model
        weighting = Weighting(frozen_copy(trainer), self.first, self.later)
        model.register_forward_hook(weighting, with_kwargs=True)
        trainer.add_callback(StepCallback(on_train_begin=partial(weighting.begin, trainer)))

    def training_key(self, stage: StageName) -> dict[str, Any]:
        # After SFT it trains as the baseline does.
        return super().training_key(stage) if stage == "sft" else {}

    def memory(self, model: "PreTrainedModel", stage: StageName) -> ExtraMemory:
        return ExtraMemory(frozen_copy=stage == "sft")


class Weighting:
    """A forward hook that weights the log-probabilities of which TRL's trainer sums its loss; held-out rows have none.

    Args:
        start: the stage's starting policy, called as the model is.
        first: β of an answer's first tokens; ``later``: of the others.
    """

    def __init__(self, start: "nn.Module", first: list[float], later: float) -> None:
        self._start = start
        self._first = first
        self._later = later

    def begin(self, trainer: "Trainer", **event: Any) -> None:
        """Prepare the start, as the model has been by now."""
        from ogpsa.training.start import prepared

        self._start = prepared(trainer, self._start)

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
    """β of each token; ``answers`` (rows x tokens) is true at an answer's tokens.

    Each run of true values is one answer: a pack of rows holds several.
    """
    import torch

    count = answers.long().cumsum(1)
    before = torch.where(answers, 0, count).cummax(1).values
    # 1 for an answer's first token.
    position = (count - before).clamp(max=len(first) + 1)
    return torch.tensor([later, *first, later], device=answers.device)[position]


METHOD = SoftSFT
