"""What methods keep beside the model, on a fake GPU: it lies with the weights, or on the host where that is said."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer

from ogpsa.methods.anchor import Pull
from ogpsa.methods.ema import Average
from ogpsa.nullspace.projector import NullSpaceProjector
from ogpsa.nullspace.settings import Rule, Variant
from ogpsa.nullspace.space import NullSpace, null_space
from tests.fake_cuda import CUDA, fake_cuda


def layers() -> nn.Sequential:
    """Two linear layers on the device."""
    with CUDA:
        return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))


def devices(tensors: Any) -> set[str]:
    return {tensor.device.type for tensor in tensors}


def step(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3, 6, device=CUDA)).square().mean().backward()
    optimizer.step()
    return optimizer


def test_the_anchor_pulls_on_the_device_by_a_copy_that_was_made_on_the_host() -> None:
    with fake_cuda() as gpu:
        # TRL brings the model to the device after the method was attached.
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
        pull = Pull(model, 0.5)
        model = layers()
        pull.begin(model)
        pull.apply(step(model))
        assert devices(pull._start) == devices(model.parameters()) == {"cuda"}
        assert not gpu.reads


def test_the_average_lies_beside_the_weights_also_from_a_checkpoint(tmp_path: Path) -> None:
    with fake_cuda() as gpu:
        model, average = layers(), Average(0.5)
        arguments: Any = SimpleNamespace(output_dir=tmp_path, process_index=0, world_size=1)
        average.begin(model, arguments, cast(Any, SimpleNamespace(global_step=0)))
        step(model)
        average.update()
        average.take()
        assert devices(average._average) == devices(model.parameters()) == {"cuda"}
        folder = tmp_path / "checkpoint-1"
        folder.mkdir()
        sizes = [parameter.numel() for parameter in model.parameters()]
        save_file({str(index): torch.zeros(size) for index, size in enumerate(sizes)}, folder / "average.safetensors")
        average.begin(model, arguments, cast(Any, SimpleNamespace(global_step=1)))
        assert devices(average._average) == {"cuda"}
        assert not gpu.reads


@pytest.mark.parametrize("variant", get_args(Variant))
def test_null_spaces_project_on_the_device(variant: Variant) -> None:
    with fake_cuda() as gpu:
        model = layers()
        state = SimpleNamespace(global_step=0, logging_steps=1)
        trainer: Any = SimpleNamespace(model=model, state=state, args=SimpleNamespace(device=CUDA))
        # As ``Nspo.attach`` brings what was kept on disk to the device.
        spaces = {
            name: NullSpace(torch.eye(6)[:, :2], of_null_side=of_null_side).to(CUDA)
            for name, of_null_side in (("0", True), ("1", False))
        }
        projector = NullSpaceProjector(cast(Trainer, trainer), spaces, variant, retract_every=1)
        projector.begin()
        # ``paper`` needs its starting weights for the log alone.
        assert devices(projector._start.values()) == {"cpu" if variant == "paper" else "cuda"}
        model(torch.ones(3, 6, device=CUDA)).square().mean().backward()
        projector.project()
        assert devices(parameter.grad for parameter in model.parameters()) == {"cuda"}
        step(model)
        reads = len(gpu.reads)
        projector.after_step()
        assert devices(model.parameters()) == {"cuda"}
        # A norm inside and one outside, for each line of the log.
        assert len(gpu.reads) - reads == (2 if variant == "paper" else 4)
        assert projector.recorder.means()["projection/leak"] == 1


@pytest.mark.parametrize("rule", get_args(Rule))
def test_a_null_space_is_found_on_the_device(rule: Rule) -> None:
    with fake_cuda() as gpu:
        space, levels = null_space(torch.empty(6, 6, dtype=torch.float64, device=CUDA), rule, 1e-3)
        assert devices([space.basis, levels]) == {"cuda"}
        # How many directions are null, and whether there is any energy.
        assert gpu.reads == [(), ()]
