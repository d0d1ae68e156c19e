"""GPM: the null space by energy is what its memory leaves, and it trains as NSPO with its settings."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.nullspace.space import null_space
from ogpsa.testbed.cache import ensure_base
from ogpsa.utils.errors import UserError
from tests.stage import trained


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.97])
def test_the_null_space_by_energy_is_what_the_memory_leaves(kept: float) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(12, 40).double() * torch.logspace(0, -1, 12).double()[:, None]
    directions, sizes, _ = torch.linalg.svd(inputs, full_matrices=False)
    # The paper's equation 5: the fewest leading directions that hold the share of the energy.
    shares = sizes.square().cumsum(0) / sizes.square().sum()
    memory = directions[:, : int((shares < kept).sum()) + 1]
    assert 0 < memory.shape[1] < 12
    gradient = torch.randn(5, 12)
    ours = null_space(inputs @ inputs.T, "energy", 1 - kept)[0].project(gradient)
    torch.testing.assert_close(ours, (gradient - gradient.double() @ memory @ memory.T).float())


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.long)])
def test_it_trains_as_nspo_with_its_settings_bit_for_bit(
    stage: str, small_config: Callable[..., Config], tmp_path: Path
) -> None:
    few = [
        f"stage={stage}", "data.safety_rows=16", "stage.batch_size=8", "stage.micro_batch_size=4", "stage.max_steps=2",
        "stage.learning_rate=1e-3", "method.samples=20",
    ]  # fmt: skip

    def train(*overrides: str) -> dict[str, Tensor]:
        return trained(small_config(*few, *overrides), tmp_path)[0]

    ours = train("method=gpm")
    spelled = ["method.variant=paper", "method.rule=energy", "method.threshold=0.03", "method.others=freeze"]
    theirs = train("method=nspo", *spelled)
    start = load_file(ensure_base(small_config()) / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert any(not torch.equal(ours[name], start[name]) for name in start)


@pytest.mark.parametrize("words", ["method.variant=exact", "method.rule=relative"])
def test_what_would_make_it_another_method_is_refused(words: str) -> None:
    key, _, found = words.partition("=")
    with pytest.raises(UserError) as error:
        compose_config(["method=gpm", words])
    [problem] = error.value.problems
    assert problem.startswith(f"{key}: found '{found}'; allowed is ")
