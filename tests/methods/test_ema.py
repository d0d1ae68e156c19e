"""The moving average of the weights: its formula, resume, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.data.rows import load_data
from ogpsa.testbed.cache import ensure_base
from ogpsa.utils.errors import UserError
from tests.stage import train_alone, train_and_tear, trained

Configure = Callable[..., Config]
FEW = [
    "data.safety_rows=32", "stage.batch_size=8", "stage.micro_batch_size=4", "stage.max_steps=3", "stage.save_every=2",
    "stage.scheduler=constant", "stage.warmup_ratio=0", "stage.learning_rate=1e-2",
]  # fmt: skip


@pytest.fixture
def train(small_config: Configure, tmp_path: Path) -> Callable[..., dict[str, Tensor]]:
    """``train(stage, method, *overrides)``: the weights of a finished stage."""

    def weights(stage: str, method: str, *overrides: str) -> dict[str, Tensor]:
        return trained(small_config(f"stage={stage}", f"method={method}", *FEW, *overrides), tmp_path)[0]

    return weights


@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.slow)])
def test_no_decay_is_naive_tuning_bit_for_bit(stage: str, train: Callable[..., dict[str, Tensor]]) -> None:
    ours, theirs = train(stage, "ema", "method.decay=0"), train(stage, "baseline")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_the_result_is_the_average_of_all_steps(
    small_config: Configure, train: Callable[..., dict[str, Tensor]]
) -> None:
    start = load_file(ensure_base(small_config()) / "model.safetensors")
    first, second = (train("sft", "baseline", f"stage.max_steps={steps}") for steps in (1, 2))
    found = train("sft", "ema", "stage.max_steps=2", "method.decay=0.75")
    for name, weight in found.items():
        wanted = 0.75 * (0.75 * start[name] + 0.25 * first[name]) + 0.25 * second[name]
        torch.testing.assert_close(weight, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_resumed_stage_equals_the_unbroken_one(
    small_config: Configure, train: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    whole = train("sft", "ema")
    config = small_config("stage=sft", "method=ema", *FEW)
    base, data, folder = ensure_base(config), load_data(config), tmp_path / "broken"
    train_and_tear(config, folder, 3)
    train_alone(config, data, base, folder)
    resumed = load_file(folder / "model.safetensors")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


REFUSED = {
    ("method.decay=1",): "method.decay: found 1; allowed is less than 1, or a mapping by stage",
    ("distributed=zero3",): (
        "distributed: zero3 is not supported with method=ema, since DeepSpeed keeps the weights that it updates to "
        "itself; allowed: single, ddp, fsdp2"
    ),
    ("stage.eval_every=5", "stage.keep=best"): (
        "stage.keep: best takes one step's weights, and method=ema an average of all; allowed: last"
    ),
}


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_what_cannot_be_averaged_is_refused_by_name(overrides: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as raised:
        compose_config(["stage=sft", "method=ema", *overrides])
    assert list(raised.value.problems) == [REFUSED[overrides]]
