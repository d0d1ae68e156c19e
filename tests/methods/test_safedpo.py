"""SafeDPO: DPO's loss with a margin, and where it is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.utils.errors import UserError
from tests.stage import trained

FEW = [
    "data.safety_rows=16", "stage.batch_size=8", "stage.micro_batch_size=4", "stage.max_steps=2", "stage.log_every=1",
    "stage.learning_rate=1e-2",
]  # fmt: skip
Train = Callable[..., tuple[dict[str, Tensor], list[dict[str, Any]]]]


@pytest.fixture
def train(small_config: Callable[..., Config], tmp_path: Path) -> Train:
    """``train(*overrides)``: the weights of a finished DPO stage, and what it logged."""

    return lambda *overrides: trained(small_config("stage=dpo", *FEW, *overrides), tmp_path)


def test_no_margin_is_dpo_bit_for_bit_and_one_asks_for_more(train: Train) -> None:
    plain, log = train("method=baseline")
    ours, _ = train("method=safedpo", "method.margin=0")
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    moved, with_margin = train("method=safedpo", "method.margin=2")
    # At the start policy and reference agree, so that the loss is the margin's alone.
    assert log[0]["loss"] == pytest.approx(math.log(2))
    assert with_margin[0]["loss"] == pytest.approx(math.log1p(math.exp(2)))
    assert any(not torch.equal(moved[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["stage=sft"], "method: safedpo is a loss of dpo, and stage=sft has none; allowed: dpo, sft_dpo"),
        (["stage=dpo", "stage.loss=ipo"], "stage.loss: safedpo's is sigmoid with a margin; found ipo"),
        (["stage=dpo", "method.margin=-1"], "method.margin: found -1; allowed is greater than or equal to 0"),
    ],
)
def test_settings_without_a_margin_are_refused_by_name(words: list[str], problem: str) -> None:
    with pytest.raises(UserError) as raised:
        compose_config(["method=safedpo", *words])
    assert list(raised.value.problems) == [problem]
