"""Soft SFT: its weights, what is SFT bit for bit, resume, and where it is refused."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import logsigmoid

from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.data.rows import load_data
from ogpsa.methods.soft_sft import Weighting, betas
from ogpsa.models.load import load_model
from ogpsa.testbed.cache import ensure_base
from ogpsa.training.trainer import build_trainer
from ogpsa.utils.errors import UserError
from tests.stage import train_alone, train_and_tear, trained

FEW = ["stage=sft", "data.safety_rows=32", "stage.batch_size=8", "stage.micro_batch_size=4", "stage.max_steps=4",
       "stage.log_every=1", "stage.learning_rate=1e-3", "stage.scheduler=constant", "stage.warmup_ratio=0"]  # fmt: skip
NONE = ["method.first=[]", "method.later=0"]
Train = Callable[..., tuple[dict[str, Tensor], list[dict[str, Any]]]]


@pytest.fixture
def train(small_config: Callable[..., Config], tmp_path: Path) -> Train:
    """``train(*overrides)``: the weights of a finished SFT stage, and what it logged."""
    return lambda *overrides: trained(small_config(*FEW, *overrides), tmp_path)


def test_each_answer_begins_anew() -> None:
    answers = torch.tensor([[0, 0, 1, 1, 1, 0, 1, 1], [1, 0, 0, 1, 1, 1, 1, 0]]).bool()
    found = betas(answers, [5.0, 7.0], 3.0)
    assert found[answers].tolist() == [5, 7, 3, 5, 7, 5, 5, 7, 3, 3]
    assert betas(answers, [], 3.0)[answers].tolist() == [3] * 10


@pytest.mark.parametrize(
    "more",
    [
        [],
        pytest.param(["stage.packing=bfd"], marks=pytest.mark.slow),
        pytest.param(["model.gradient_checkpointing=true"], marks=pytest.mark.slow),
    ],
    ids="".join,
)
def test_no_strength_is_sft_bit_for_bit(more: list[str], train: Train) -> None:
    plain, log = train("method=baseline", *more)
    ours, same_log = train("method=soft_sft", *NONE, *more)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    assert [line.get("loss") for line in same_log] == [line.get("loss") for line in log]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_step_is_sfts(precision: str, train: Train) -> None:
    words = [f"model.precision={precision}", "stage.max_steps=1"]
    plain, log = train("method=baseline", *words)
    soft, weighted = train("method=soft_sft", "method.later=2", *words)
    # Each weight is 1 at the start.
    assert weighted[0]["loss"] == log[0]["loss"]
    assert all(torch.equal(soft[name], plain[name]) for name in plain)


def test_the_answers_are_learned_less_far(train: Train, small_config: Callable[..., Config], tmp_path: Path) -> None:
    config = small_config(*FEW, "method=baseline")

    def loss(weights: dict[str, Tensor]) -> float:
        model, tokenizer = load_model(ensure_base(config), torch.float32)
        model.load_state_dict(weights, strict=False)
        trainer: Any = build_trainer(config, config.stages[0], model, tokenizer, load_data(config), tmp_path / "loss")
        with torch.no_grad():
            return float(model.eval()(**trainer.data_collator(list(trainer.train_dataset))).loss)

    untuned, plain = loss({}), loss(train("method=baseline")[0])
    soft = loss(train("method=soft_sft", "method.later=20", "stage.max_steps=4")[0])
    assert plain < soft < untuned


def test_a_pack_holds_an_answer_for_each_of_its_rows(small_config: Callable[..., Config], tmp_path: Path) -> None:
    config = small_config(*FEW, "method=baseline", "stage.packing=bfd")
    model, tokenizer = load_model(ensure_base(config), torch.float32)
    trainer: Any = build_trainer(config, config.stages[0], model, tokenizer, load_data(config), tmp_path)
    packs = list(trainer.train_dataset)
    assert len(packs) < 32
    labels = trainer.data_collator(packs)["labels"]
    assert int((betas(labels[:, 1:] != -100, [1.0], 0.0) == 1).sum()) == 32


class _Start(torch.nn.Module):
    """A policy with these log-probabilities."""

    def __init__(self, log_probs: Tensor) -> None:
        super().__init__()
        self._log_probs = log_probs

    def forward(self) -> SimpleNamespace:
        return SimpleNamespace(log_probs=self._log_probs)


def test_the_gradient_is_that_of_the_papers_loss() -> None:
    start = torch.tensor([[-3.0, -3.0, -2.0, -1.0]])
    now = torch.tensor([[-1.0, -4.0, -2.0, -0.1]], requires_grad=True)
    beta, answer = torch.tensor([[0.5, 2.0, 2.0, 0.1]]), torch.ones(1, 4, dtype=torch.bool)
    (wanted,) = torch.autograd.grad((-2 / beta * logsigmoid(beta * (now - start))).sum(), now)
    outputs = SimpleNamespace(log_probs=now, label_mask=answer)
    model = torch.nn.Identity()
    near, far = _Start(start), _Start(start - 99)
    Weighting(near, [0.5, 2.0, 2.0], 0.1)(model, (), {}, outputs)
    (found,) = torch.autograd.grad(-outputs.log_probs.sum(), now)
    torch.testing.assert_close(found, wanted)
    # A token learned long ago still counts by a thousandth; what is measured counts in full.
    outputs = SimpleNamespace(log_probs=now, label_mask=answer)
    Weighting(far, [], 2.0)(model, (), {}, outputs)
    torch.testing.assert_close(outputs.log_probs, now * 1e-3)
    outputs.log_probs = now
    Weighting(far, [], 2.0)(model.eval(), (), {}, outputs)
    assert outputs.log_probs is now


@pytest.mark.slow
def test_a_resumed_stage_weights_by_its_start(
    small_config: Callable[..., Config], train: Train, tmp_path: Path
) -> None:
    overrides = ["method=soft_sft", "stage.save_every=3"]
    whole, _ = train(*overrides)
    config = small_config(*FEW, *overrides)
    base, data, folder = ensure_base(config), load_data(config), tmp_path / "broken"
    train_and_tear(config, folder, 4)
    train_alone(config, data, base, folder)
    resumed = load_file(folder / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["stage=dpo"], "method: soft_sft is a loss of sft, and stage=dpo has none; allowed: sft, sft_dpo, sft_grpo"),
        (["stage=sft", "method.later=-1"], "method.later: found -1; allowed is greater than or equal to 0"),
        (["stage=sft", "method.first=[1,-2]"], "method.first.1: found -2; allowed is greater than or equal to 0"),
        (
            ["stage=sft", "distributed=zero3"],
            "distributed: zero3 is not supported with method=soft_sft, whose copy of the starting weights DeepSpeed "
            "does not shard; allowed: single, ddp, fsdp2",
        ),
    ],
)
def test_what_it_cannot_weight_is_refused_by_name(words: list[str], problem: str) -> None:
    with pytest.raises(UserError) as raised:
        compose_config(["method=soft_sft", *words])
    assert list(raised.value.problems) == [problem]
