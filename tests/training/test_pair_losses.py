"""DPO's other losses: each trains, does not depend on how a batch is cut, and is the reference gradients' too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.config.stage import SMOOTHED, PairLoss
from ogpsa.utils.errors import UserError
from tests.stage import trained

Configure = Callable[..., Config]
ROWS = [
    "data.safety_rows=8",
    "stage.batch_size=8",
    "stage.max_steps=2",
    "stage.log_every=1",
    "stage.learning_rate=1e-3",
]


@pytest.fixture
def train(small_config: Configure, tmp_path: Path) -> Callable[..., tuple[dict[str, Tensor], list[dict[str, Any]]]]:
    """``train(*overrides)``: the weights of a finished DPO stage, and what it logged."""

    return lambda *overrides: trained(small_config("stage=dpo", *ROWS, *overrides), tmp_path)


def chosen(loss: str) -> list[str]:
    return [f"stage.loss={loss}", *(["stage.label_smoothing=0.1"] if loss in SMOOTHED else [])]


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(
            loss,
            marks=[pytest.mark.slow] * (loss != "ipo")
            + [pytest.mark.long] * (loss not in ("ipo", "sigmoid", "hinge", "sft")),
        )
        for loss in get_args(PairLoss)
    ],
)
def test_a_loss_trains_and_does_not_depend_on_how_a_batch_is_cut(
    loss: str, train: Callable[..., tuple[dict[str, Tensor], list[dict[str, Any]]]]
) -> None:
    whole, log = train("method=baseline", *chosen(loss), "stage.micro_batch_size=8")
    cut, _ = train("method=baseline", *chosen(loss), "stage.micro_batch_size=2")
    usual, _ = train("method=baseline", "stage.micro_batch_size=8")
    assert log[0]["loss"] > 0
    same = all(torch.equal(whole[name], usual[name]) for name in whole)
    assert same == (loss == "sigmoid")
    # AdamW's first step is the sign of the gradient, so that a rounding error may be a whole step where that is zero.
    if loss != "sft":
        moved = sum((whole[name] - cut[name]).abs().gt(1e-4).sum().item() for name in whole)
        assert moved <= 0.01 * sum(weight.numel() for weight in whole.values())


@pytest.mark.slow
def test_a_mixture_of_one_is_that_loss_and_references_read_it_too(
    train: Callable[..., tuple[dict[str, Tensor], list[dict[str, Any]]]],
) -> None:
    ogpsa = ["method=ogpsa", "method.samples=4", "method.refresh_every=1", "stage.micro_batch_size=4"]
    one, log = train(*ogpsa, "stage.loss=ipo")
    mixture, _ = train(*ogpsa, "stage.loss={ipo: 1.0}")
    assert all(torch.equal(one[name], mixture[name]) for name in one)
    # At the start policy and reference agree, and IPO's loss is (1 / 2τ)² whatever the pairs.
    assert log[0]["loss"] == pytest.approx(1 / (2 * 0.2) ** 2)
    assert log[0]["projection/reference_loss/preference"] == pytest.approx(1 / (2 * 0.2) ** 2)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["stage.loss=ippo"], "stage.loss: found 'ippo'"),
        (["stage.loss={sigmoid: 1.0, sft: 0}"], "stage.loss.sft: found 0; allowed is greater than 0"),
        (["stage.loss=robust"], "label_smoothing=0 leaves nothing of loss=robust"),
        (["stage.label_smoothing=0.1"], "label_smoothing=0.1 has no effect in loss=sigmoid"),
    ],
)
def test_mistakes_take_one_line(words: list[str], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_config(["stage=dpo", "tracker=none", *words])
    assert len(caught.value.problems) == 1 and problem in caught.value.problems[0]
