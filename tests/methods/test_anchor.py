"""The pull towards a stage's starting weights: its formula, its limits, resume, and what is refused."""

import math
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
ROWS = ["data.safety_rows=32", "stage.batch_size=8", "stage.micro_batch_size=4", "stage.max_steps=4"]
# A power of two, so that its inverse times it is one.
CONSTANT = ["stage.scheduler=constant", "stage.warmup_ratio=0", f"stage.learning_rate={2**-10}"]


@pytest.fixture
def train(small_config: Configure, tmp_path: Path) -> Callable[..., dict[str, Tensor]]:
    """``train(stage, method, *overrides)``: the weights of a finished stage."""

    def weights(stage: str, method: str, *overrides: str) -> dict[str, Tensor]:
        return trained(small_config(f"stage={stage}", f"method={method}", *ROWS, *overrides), tmp_path)[0]

    return weights


@pytest.fixture
def start(small_config: Configure) -> dict[str, Tensor]:
    return load_file(ensure_base(small_config()) / "model.safetensors")


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    return math.dist(*(torch.cat([part.flatten() for part in weights.values()]).tolist() for weights in (ours, theirs)))


@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.long)])
def test_no_strength_changes_nothing(
    stage: str, train: Callable[..., dict[str, Tensor]], start: dict[str, Tensor]
) -> None:
    ours = train(stage, "anchor", "method.strength=0")
    assert same(ours, train(stage, "baseline"))
    assert not same(ours, start)


@pytest.mark.slow
def test_one_step_goes_the_rest_of_the_way(train: Callable[..., dict[str, Tensor]], start: dict[str, Tensor]) -> None:
    step = ["stage.max_steps=1", *CONSTANT]
    free, pulled = train("sft", "baseline", *step), train("sft", "anchor", *step, "method.strength=256")
    wanted = {name: start[name] + 0.75 * (free[name] - start[name]) for name in start}
    assert distance(pulled, wanted) < 1e-5 * distance(free, start)


@pytest.mark.slow
def test_stronger_ends_nearer_and_the_strongest_at_the_start(
    train: Callable[..., dict[str, Tensor]], start: dict[str, Tensor]
) -> None:
    found = [
        distance(train("sft", "anchor", *CONSTANT, f"method.strength={strength}"), start)
        for strength in (0, 16, 256, 1024)
    ]
    assert found[0] > found[1] > found[2] > found[3] == 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.long)])
def test_resumed_stage_equals_the_unbroken_one(
    stage: str, small_config: Configure, train: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    # Far from the checkpoint's weights, were those taken for the start.
    overrides = ["stage.save_every=3", "stage.learning_rate=1e-2", "method.strength=20"]
    whole = train(stage, "anchor", *overrides)
    config = small_config(f"stage={stage}", "method=anchor", *ROWS, *overrides)
    base, data, folder = ensure_base(config), load_data(config), tmp_path / "broken"
    train_and_tear(config, folder, 4)
    train_alone(config, data, base, folder)
    assert same(whole, load_file(folder / "model.safetensors"))


REFUSED: dict[tuple[str, ...], str] = {
    ("method.strength=-1",): (
        "method.strength: found -1; allowed is greater than or equal to 0, or a mapping by stage"
    ),
    ("method.strength.dpo=2e4", "stage.dpo.learning_rate=1e-4"): (
        "method.strength: 20000 pulls past the starting weights of dpo, whose stage.dpo.learning_rate is 0.0001; "
        "allowed: 0 to 10000"
    ),
    ("distributed=zero2",): (
        "distributed: zero2 is not supported with method=anchor, since DeepSpeed keeps the weights that it updates to "
        "itself; allowed: single, ddp, fsdp2"
    ),
}  # fmt: skip


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_settings_that_cannot_pull_are_refused_by_name(overrides: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as raised:
        compose_config(["stage=sft_dpo", "method=anchor", *overrides])
    assert list(raised.value.problems) == [REFUSED[overrides]]
