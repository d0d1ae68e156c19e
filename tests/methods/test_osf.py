"""OSF: what it keeps, what leaks, how it gets into the weights, resume, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.data.rows import load_data
from ogpsa.models.adapters import merged_model
from ogpsa.models.load import load_model
from ogpsa.preflight.report import stage_shapes
from ogpsa.testbed.cache import ensure_base
from ogpsa.training.trainer import build_trainer
from ogpsa.utils.errors import UserError
from tests.stage import train_alone, train_and_tear

Configure = Callable[..., Config]
FEW = [
    "method=osf", "data.safety_rows=56", "stage.batch_size=8", "stage.micro_batch_size=4", "stage.max_steps=7",
    "stage.scheduler=constant", "stage.warmup_ratio=0", "stage.weight_decay=0.1",
]  # fmt: skip
ADAMW = ["stage.optimizer=adamw", "stage.learning_rate=5e-3"]
SGD = ["stage.optimizer=sgd", "stage.learning_rate=0.1"]


def trainer_of(config: Config, output: Path) -> Any:
    model, tokenizer = load_model(ensure_base(config), torch.float32)
    return build_trainer(config, config.stages[0], model, tokenizer, load_data(config), output)


def leaks(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[float]:
    """The shares of the change of all linear layers that write into and read from the kept half of the directions."""
    sizes = torch.zeros(3).double()
    for name in before:
        change, start = after[name].double() - before[name].double(), before[name].double()
        if "_proj" not in name:
            assert not change.any(), name
            continue
        left, _, right = torch.linalg.svd(start, full_matrices=False)
        kept = min(start.shape) // 2
        parts = [change, left[:, :kept].T @ change, change @ right[:kept].T]
        sizes += torch.stack([part.square().sum() for part in parts])
    shares: list[float] = (sizes[1:] / sizes[0]).sqrt().tolist()
    return shares


@pytest.mark.parametrize(
    ("stage", "variant", "optimizer", "least", "most"),
    [
        pytest.param("sft", "paper", SGD, 0.0, 2e-5, marks=pytest.mark.slow),
        pytest.param("sft", "paper", ADAMW, 0.05, 0.4, marks=pytest.mark.slow),
        ("sft", "exact", ADAMW, 0.0, 2e-5),
        pytest.param("dpo", "exact", ADAMW, 0.0, 2e-5, marks=pytest.mark.long),
    ],
)
def test_large_directions_stay_but_for_what_adamw_leaks(
    stage: str,
    variant: str,
    optimizer: list[str],
    least: float,
    most: float,
    small_config: Configure,
    tmp_path: Path,
) -> None:
    config = small_config(*FEW, *optimizer, f"stage={stage}", f"method.variant={variant}")
    base = ensure_base(config)
    train_alone(config, load_data(config), base, tmp_path / "stage")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "stage"))
    assert before.keys() == after.keys()
    assert all(least <= leak < most for leak in leaks(before, after))


def test_merged_weights_answer_as_the_adapted_model(small_config: Configure, tmp_path: Path) -> None:
    config = small_config(*FEW, *ADAMW, "stage=sft", "method.kept=0.25", "method.modules=[q_proj,down_proj]")
    trainer = trainer_of(config, tmp_path / "checkpoints")
    trainer.train()
    adapted = trainer.accelerator.unwrap_model(trainer.model).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    merged, start = (
        merged_model(ensure_base(config), tmp_path / "adapter"),
        load_model(ensure_base(config), torch.float32)[0],
    )
    ids = torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, found, untuned = (model.eval()(input_ids=ids).logits for model in (adapted, merged, start))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - untuned).abs().max() > 0.01
    moved = {
        name.split(".")[-2]
        for name, weight in merged.named_parameters()
        if not torch.equal(weight, start.get_parameter(name))
    }
    assert moved == {"q_proj", "down_proj"}


@pytest.mark.slow
@pytest.mark.parametrize("variant", [pytest.param("paper", marks=pytest.mark.long), "exact"])
def test_a_resumed_stage_equals_the_unbroken_one(variant: str, small_config: Configure, tmp_path: Path) -> None:
    config = small_config(*FEW, *ADAMW, "stage=sft", "stage.save_every=4", f"method.variant={variant}")
    base, data, folder = ensure_base(config), load_data(config), tmp_path / "broken"
    train_alone(config, data, base, tmp_path / "whole")
    train_and_tear(config, folder, 7)
    train_alone(config, data, base, folder)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_the_preflight_counts_its_factors(small_config: Configure) -> None:
    whole, shape = stage_shapes(small_config("method=osf", "stage=sft"), "sft")
    attention, mlp = 4 * (16 * (32 + 32) + 16), 3 * (16 * (32 + 80) + 16)
    assert shape.trained == shape.layers * (attention + mlp)
    assert shape.parameters == whole.parameters + shape.trained
    assert (shape.block, shape.matrices, shape.adapted) == (whole.block, whole.matrices, 6 * 32 + 80)


REFUSED: dict[tuple[str, ...], str] = {
    ("distributed=fsdp2",): (
        "distributed: fsdp2 is not supported with method=osf, whose gradients are projected before they are sharded; "
        "allowed: single, ddp"
    ),
    ("model.dtype=bf16", "model.precision=bf16"): (
        "model.dtype: bf16 rounds the singular directions of method=osf; allowed: fp32 (model.precision=bf16 is "
        "autocast over it)"
    ),
    ("method.kept=1",): "method.kept: found 1; allowed is less than 1",
}  # fmt: skip


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_what_cannot_work_is_refused_by_name(overrides: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as raised:
        compose_config(["stage=sft", "method=osf", *overrides])
    assert list(raised.value.problems) == [REFUSED[overrides]]


def test_what_fits_no_layer_is_refused_by_name(small_config: Configure, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"method.kept: 0.01 keeps none of the 32 directions of a layer; allowed"):
        trainer_of(small_config(*FEW, "stage=sft", "method.kept=0.01"), tmp_path)
    with pytest.raises(UserError, match=r"method.modules: 'q_porj' fits no linear layer.*did you mean 'q_proj'\?"):
        trainer_of(small_config(*FEW, "stage=sft", "method.modules=[q_porj]"), tmp_path)


def test_a_model_without_linear_layers_is_refused(small_config: Configure) -> None:
    config = small_config(*FEW, "stage=sft")
    # Its layers are Conv1D.
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(
        UserError, match=r"^method.modules: the model has no torch.nn.Linear layer, which OSF decomposes"
    ):
        config.method.adapter(model, "sft")
