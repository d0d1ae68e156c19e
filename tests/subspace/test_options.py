"""What the method's options promise: streaming, targets, basis precision, any trainer, and what is logged of them."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from ogpsa.app.compose import CONF, compose_config
from ogpsa.config.stage import SFTThenDPOSettings
from ogpsa.projection import orthonormal_basis
from ogpsa.subspace.settings import ProjectionSettings
from ogpsa.subspace.subspace import Layout, Subspace
from ogpsa.training.seam import ProjectedTrainer, protect
from ogpsa.utils.errors import UserError
from tests.training.test_seam import (
    TOKENIZER,
    Build,
    Seam,
    build,
    configured,
    flat,
    history,
    on_refresh,
    refreshes,
    tied_model,
    weights,
)

__all__ = ["build", "configured"]

STAGES = ["sft", "dpo"]


class Bases(TrainerCallback):
    """The basis [d, k] that each step's gradient meets."""

    def __init__(self, trainer: ProjectedTrainer) -> None:
        self.trainer = trainer
        self.seen: list[Tensor] = []
        trainer.add_callback(self)

    def on_step_begin(self, *_: Any, **kwargs: Any) -> None:
        self.seen.append(basis_of(self.trainer))


def basis_of(trainer: ProjectedTrainer) -> Tensor:
    state = trainer.projector.subspace.state_dict()
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    return torch.cat([state[f"basis.{index}"] for index in range(len(trained))], dim=1).T


def largest_angle(one: Tensor, other: Tensor) -> float:
    """The largest principal angle between the spans of two bases [d, k], from its sine."""
    one, other = (orthonormal_basis(basis.double(), basis.shape[1]) for basis in (one, other))
    assert one.shape == other.shape
    return float(torch.linalg.matrix_norm(other - one @ (one.T @ other), ord=2))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.long)])
def test_streaming_at_k_one_is_a_refresh_every_step_bit_for_bit(stage: str, build: Build) -> None:
    results = []
    for streaming in ("true", "false"):
        trainer = build(stage, "method.refresh_every=1", f"method.streaming={streaming}", "stage.micro_batch_size=2")
        trainer.train()
        results.append((weights(trainer), basis_of(trainer), history(trainer)))
    (streamed, basis, logged), (refreshed, other, expected) = results
    assert torch.equal(streamed, refreshed)
    assert torch.equal(basis, other)
    assert logged == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "rank"),
    [
        ("sft", 2),
        ("dpo", 3),
        pytest.param("sft", 3, marks=pytest.mark.long),
        pytest.param("dpo", 2, marks=pytest.mark.long),
    ],
)
def test_at_frozen_weights_streaming_reaches_the_refreshed_subspace(stage: str, rank: int, build: Build) -> None:
    # 11 samples in slices of 4, 4 and 3 rows, or a chunk of 5 or 6 in slices of one and two.
    options = ["method.samples=11", f"method.rank={rank}", "method.refresh_every=3", "method.streaming=true"]
    trainer = build(stage, *options, "stage.max_steps=9", "stage.micro_batch_size=2")
    trainer.args.learning_rate = 0.0
    streamed = Bases(trainer)
    trainer.train()
    trainer.projector.refresh()
    whole = basis_of(trainer)
    angles = [largest_angle(basis, whole) for basis in streamed.seen]
    assert max(angles[2], angles[5], angles[8]) <= 1e-4
    # One slice alone is another gradient, and later passes stand on the one before.
    assert angles[0] > 1e-2
    assert max(angles[2:]) <= 1e-4 or max(angles[3:]) < angles[0]


def trained_on(trainer: ProjectedTrainer, steps: int, checkpoint: Path | None = None) -> ProjectedTrainer:
    trainer.args.max_steps, trainer.args.save_steps, trainer.args.save_total_limit = steps, 3, None
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("method.streaming=true", "method.refresh_every=4"),
        ("method.refresh_every=2", "method.basis_dtype=int8"),
        ("method.refresh_every=4", "method.basis_dtype=bf16", "method.scope=tensor"),
        ("method.refresh_every=never", "method.target=update", "method.sided=conflict"),
    ],
)
def test_a_resumed_run_equals_an_unbroken_one(options: tuple[str, ...], build: Build, tmp_path: Path) -> None:
    unbroken = trained_on(build("sft", *options), 7)
    resumed = trained_on(build("sft", *options), 7, tmp_path / "checkpoints" / "checkpoint-3")
    assert torch.equal(weights(unbroken), weights(resumed))
    # TRL's own count of tokens starts anew; a run of this package restores it.
    logs = [[row | {"num_tokens": 0} for row in history(trainer)[3:-1]] for trainer in (unbroken, resumed)]
    assert logs[0] == logs[1]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.long)])
def test_a_stage_that_ended_between_its_last_checkpoint_and_its_result_takes_no_step_more(
    stage: str, build: Build, tmp_path: Path
) -> None:
    options = ["stage.scheduler=constant", "method.refresh_every=2", "stage.micro_batch_size=2"]
    ended = trained_on(build(stage, *options), 3)
    resumed = trained_on(build(stage, *options), 3, tmp_path / "checkpoints" / "checkpoint-3")
    assert resumed.state.global_step == 3
    assert torch.equal(weights(ended), weights(resumed))
    assert torch.equal(basis_of(ended), basis_of(resumed))
    assert history(ended)[:3] == history(resumed)[:3]


def test_a_checkpoint_without_a_subspace_is_refused(build: Build, tmp_path: Path) -> None:
    trained_on(build("sft", "method=baseline"), 3)
    with pytest.raises(UserError, match=r"checkpoint-3: holds no subspace\.safetensors"):
        trained_on(build("sft"), 7, tmp_path / "checkpoints" / "checkpoint-3")


class Steps(TrainerCallback):
    """The optimizer's finished steps as flat vectors."""

    def __init__(self, trainer: ProjectedTrainer) -> None:
        self.trainer = trainer
        self.steps: list[Tensor] = []
        trainer.add_callback(self)

    def on_step_begin(self, *_: Any, **kwargs: Any) -> None:
        self.before = weights(self.trainer).double()

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        self.steps.append(weights(self.trainer).double() - self.before)


def shares_of_steps(trainer: ProjectedTrainer) -> list[float]:
    """The share of each step that lies inside the basis of that step."""
    bases, steps = Bases(trainer), Steps(trainer)
    trainer.train()
    return [
        float((orthonormal_basis(basis.double(), basis.shape[1]).T @ step).norm() / step.norm())
        for basis, step in zip(bases.seen, steps.steps, strict=True)
    ]


@pytest.mark.parametrize("scope", [pytest.param("global", marks=pytest.mark.slow), "tensor"])
def test_a_projected_update_leaves_the_subspace_alone(scope: str, build: Build) -> None:
    options = ["method.refresh_every=2", f"method.scope={scope}", "stage.max_steps=6"]
    trainer = build("sft", "method.target=update", *options)
    if scope == "global":
        assert max(shares_of_steps(trainer)) <= 1e-4
        assert min(shares_of_steps(build("sft", *options))) > 1e-3
    else:
        trainer.train()
    logged = [row["projection/step_share"] for row in history(trainer)[:-1]]
    assert max(logged) <= 1e-4
    assert all(row["projection/norm_retained"] < 1 for row in history(trainer)[:-1])


@pytest.mark.slow
def test_projecting_sgd_s_update_is_projecting_its_gradient(build: Build) -> None:
    for sided in ("two", "conflict"):
        options = ["stage.optimizer=sgd", "stage.learning_rate=0.5", "method.refresh_every=2", f"method.sided={sided}"]
        results = []
        for target in ("gradient", "update"):
            trainer = build("sft", f"method.target={target}", *options)
            trainer.train()
            results.append(weights(trainer))
        assert (results[0] - results[1]).norm() <= 1e-5 * (results[0] - flat(tied_model().parameters())).norm()


@pytest.mark.parametrize(
    ("dtype", "leak"),
    [
        pytest.param("fp32", 1e-6, marks=pytest.mark.slow),
        pytest.param("bf16", 1e-3, marks=pytest.mark.long),
        ("int8", 1e-2),
    ],
)
def test_a_rounded_basis_leaks_little(dtype: str, leak: float, build: Build) -> None:
    trainer = build("sft", f"method.basis_dtype={dtype}", "method.refresh_every=1")
    exact: list[Tensor] = []
    on_refresh(trainer, lambda rows: exact.append(torch.cat([part.float() for part in rows], dim=1)))
    seam = Seam(trainer)
    trainer.train()
    for gradient, references in zip(seam.gradients, exact, strict=True):
        for reference in references.double():
            cosine = gradient.double() @ reference / (gradient.double().norm() * reference.norm())
            assert abs(float(cosine)) <= leak
    assert all(row["projection/cosine_after"] <= 1e-6 for row in history(trainer)[:-1])


def test_one_tensor_inside_its_basis_is_projected_as_well_as_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    references = [torch.randn(1, 300, generator=generator), torch.randn(1, 300, generator=generator)]
    subspace = Subspace(1, "tensor")
    subspace.estimate([rows.clone() for rows in references], ["a"])
    hard = references[0][0] + 1e-6 * torch.randn(300, generator=generator)
    gradients = [hard, torch.randn(300, generator=generator)]
    subspace.project_(gradients)
    assert abs(float(torch.cosine_similarity(gradients[0].double(), references[0][0].double(), dim=0))) <= 1e-4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_reported_as_such(value: float) -> None:
    subspace = Subspace(1, sided="conflict")
    subspace.estimate([torch.ones(1, 4)], ["a"])
    report = subspace.project_([torch.tensor([1.0, value, 0.0, 0.0])])
    assert all(number != number for number in report.values())


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("sided", ["two", "conflict"])
def test_layer_groups_are_reported_each_on_its_own(scope: Any, sided: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes, groups = [30, 50, 20, 40], ["head", "body", "body", "head"]
    references = [torch.randn(3, size, generator=generator) for size in sizes]
    gradients = [
        torch.randn(size, generator=generator) - rows.sum(dim=0) for size, rows in zip(sizes, references, strict=True)
    ]
    subspace = Subspace(3, scope, sided, layout=Layout(groups=groups))
    subspace.estimate([rows.clone() for rows in references], ["a", "b", "c"])
    before = [gradient.clone() for gradient in gradients]
    report = subspace.project_(gradients)
    for group in ("head", "body"):
        members = [index for index, name in enumerate(groups) if name == group]
        norm = torch.cat([before[index] for index in members]).norm()
        assert report[f"{group}/norm_retained"] == pytest.approx(
            float(torch.cat([gradients[index] for index in members]).norm() / norm), rel=1e-5
        )
        if scope == "global":
            basis = orthonormal_basis(torch.cat([references[index] for index in members], dim=1).double().T, 3)
            inside = basis.T @ torch.cat([before[index] for index in members]).double()
            assert report[f"{group}/cosine"] == pytest.approx(float(inside.norm() / norm), rel=1e-5)


def test_shards_that_every_process_holds_count_once() -> None:
    generator = torch.Generator().manual_seed(0)
    references = [torch.randn(2, 30, generator=generator), torch.randn(2, 20, generator=generator)]
    gradients = [torch.randn(30, generator=generator), torch.randn(20, generator=generator)]
    alone = Subspace(2)
    sums: list[torch.Size] = []

    def all_reduce(table: Tensor) -> Tensor:
        sums.append(table.shape)
        return 4 * table

    replicated = Subspace(2, layout=Layout(copies=[4, 4], all_reduce=all_reduce))
    reports, results = [], []
    for subspace in (alone, replicated):
        subspace.estimate([rows.clone() for rows in references], ["a", "b"])
        sums.clear()
        copies = [gradient.clone() for gradient in gradients]
        reports.append(subspace.project_(copies))
        results.append(flat(copies))
    # A projection is one sum over the processes, of r + 1 numbers.
    assert sums == [(1, 3)]
    assert reports[0] == pytest.approx(reports[1], rel=1e-12)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)


PRESETS = [
    # The others inherit the recipe of these two.
    pytest.param(
        preset,
        id=" ".join(preset),
        marks=[pytest.mark.slow] * (preset != ("model=tiny", "method=ogpsa"))
        + [pytest.mark.long] * (model not in ("tiny", "qwen2_5_7b") or "method=lora" in preset),
    )
    for model in sorted(file.stem for file in (CONF / "model").glob("*.yaml"))
    for preset in ((f"model={model}", "method=ogpsa"), (f"model={model}", "method=lora"))
] + [pytest.param(("+experiment=one_card/qwen2_5_7b",), id="one_card", marks=pytest.mark.slow)]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.slow)])
def test_every_preset_moves_the_weights(stage: str, preset: tuple[str, ...], build: Build) -> None:
    config = compose_config([*preset, "stage=sft_dpo"])
    assert isinstance(config.stage, SFTThenDPOSettings)
    wanted = config.stage.sft if stage == "sft" else config.stage.dpo
    if wanted.optimizer == "adamw_8bit":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (make install-8bit)")
    trainer = build(
        stage,
        f"method={'lora' if 'method=lora' in preset else 'ogpsa'}",
        f"stage.learning_rate={wanted.learning_rate}",
        f"stage.optimizer={wanted.optimizer}",
        f"model.precision={config.model.precision}",
        f"model.dtype={config.model.dtype}",
    )
    before = [parameter.detach().clone() for parameter in trainer.model.parameters() if parameter.requires_grad]
    trainer.train()
    after = [parameter.detach() for parameter in trainer.model.parameters() if parameter.requires_grad]
    for start, end in zip(before, after, strict=True):
        moved = end != start
        assert moved.any()
        # Rows of tokens that the data lacks keep their embedding.
        assert moved.float().mean() > 0.9 or len(start) == len(TOKENIZER)


# Paged ones are in one memory on a CPU.
@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw_8bit", pytest.param("paged_adamw_8bit", marks=pytest.mark.long)])
def test_moments_in_eight_bits_move_the_weights_and_are_resumed(optimizer: str, build: Build, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (make install-8bit)")
    # From 4096 elements on a moment takes 8 bits.
    config = copy.deepcopy(tied_model().config)
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    models = [LlamaForCausalLM(config)]
    models.append(copy.deepcopy(models[0]))
    start = flat(models[0].parameters())
    unbroken = trained_on(build("sft", f"stage.optimizer={optimizer}", model=models[0]), 7)
    states = [state["state1"].dtype for state in unbroken.optimizer.state.values()]  # type: ignore[union-attr]
    assert torch.uint8 in states
    assert float((weights(unbroken) != start).float().mean()) > 0.5
    checkpoint = tmp_path / "checkpoints" / "checkpoint-3"
    resumed = trained_on(build("sft", f"stage.optimizer={optimizer}", model=models[1]), 7, checkpoint)
    assert torch.equal(weights(unbroken), weights(resumed))


SETTINGS = ProjectionSettings(reference_sets=("facts",), rank=2, samples=6, refresh_every=2)


def conversations(count: int) -> Dataset:
    words = sorted(word for word in TOKENIZER.get_vocab() if word.isalpha())
    rows = [
        {
            "prompt": [{"role": "user", "content": " ".join(words[5 * i : 5 * i + 4])}],
            "completion": [{"role": "assistant", "content": words[7 * i]}],
        }
        for i in range(count)
    ]
    return Dataset.from_list(rows)


def arguments(kind: Callable[..., Any], folder: Path, **more: Any) -> Any:
    return kind(output_dir=str(folder), max_steps=4, per_device_train_batch_size=4,
                learning_rate=1e-2, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, save_steps=2,
                **more)  # fmt: skip


@pytest.mark.long
def test_a_trl_trainer_is_protected_in_one_line(tmp_path: Path) -> None:
    results = []
    for rank in (0, 2, None):
        trainer = SFTTrainer(
            model=tied_model(),
            args=arguments(SFTConfig, tmp_path / str(rank)),
            processing_class=TOKENIZER,
            train_dataset=conversations(24),
            eval_dataset={"facts": conversations(12)},
        )
        if rank is not None:
            settings = ProjectionSettings(reference_sets=("facts",), rank=rank, samples=6, refresh_every=2)
            assert protect(trainer, settings) is trainer
            assert isinstance(trainer, SFTTrainer)
        trainer.train()
        results.append(weights(trainer))
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[1], results[2])


class Doubled(Trainer):
    """A user's own trainer, with its own loss."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * super().compute_loss(*args, **kwargs)


def own_trainer(kind: type[Trainer], folder: Path, model: LlamaForCausalLM | None = None) -> Trainer:
    ids = [{"input_ids": [5 + i, 6 + i, 7 + i, 8], "labels": [-100, 6 + i, 7 + i, 8]} for i in range(24)]
    return kind(
        model=model or tied_model(),
        args=arguments(TrainingArguments, folder),
        train_dataset=Dataset.from_list(ids),
        eval_dataset={"facts": Dataset.from_list(ids[:12])},
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(Trainer, marks=pytest.mark.long), Doubled])
def test_the_reference_gradient_of_a_users_loss_does_not_depend_on_the_micro_batch(
    kind: type[Trainer], tmp_path: Path
) -> None:
    found = []
    for size in (6, 4, 1):
        trainer = own_trainer(kind, tmp_path)
        trainer.args.per_device_train_batch_size = size
        protect(trainer, SETTINGS)
        seen = refreshes(trainer)
        trainer.train()
        found.append(torch.stack(seen[0][1]))
    assert float((found[0] - found[1]).norm()) <= 1e-5 * float(found[0].norm())
    assert float((found[0] - found[2]).norm()) <= 1e-5 * float(found[0].norm())


@pytest.mark.parametrize("kind", [pytest.param(Trainer, marks=pytest.mark.slow), Doubled])
def test_any_transformers_trainer_is_protected_and_resumed(kind: type[Trainer], tmp_path: Path) -> None:
    trainer = protect(own_trainer(kind, tmp_path), SETTINGS)
    seam, bases = Seam(trainer), Bases(trainer)
    trainer.train()
    for gradient, basis in zip(seam.gradients, bases.seen, strict=True):
        # Clipping scales the gradient and leaves its direction.
        assert float((basis.double().T @ gradient.double()).norm() / gradient.double().norm()) <= 1e-6
    again = protect(own_trainer(kind, tmp_path), SETTINGS)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(weights(trainer), weights(again))
    cosines = {f"projection/signed_cosine/facts/{chunk}" for chunk in range(1, SETTINGS.chunks + 1)}
    assert {"projection/reference_loss/facts", *cosines} <= history(trainer)[0].keys()


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "streaming: chunks of 3 rows": {"streaming": True, "refresh_every": 4},
    "streaming: needs a number of steps": {"streaming": True, "refresh_every": None},
    "rank: 8 needs 8 chunks a set": {"rank": 8},
    "refresh_every: found 0; allowed: 1 or more": {"refresh_every": 0},
    "refresh_every: found -3; allowed: 1 or more": {"streaming": True, "refresh_every": -3},
    "reference_sets: found none": {"reference_sets": ()},
    "rank: found 33": {"rank": 33, "samples": 40},
    "rank: found '1'; expected a whole number": {"rank": "1"},
    "samples: found 2.5; expected a whole number": {"samples": 2.5},
    "reference_sets: found a text; write ('facts',) for one set": {"reference_sets": "facts"},
    "did you mean 'update'": {"target": "updates"},
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_settings_that_contradict_themselves_are_refused(message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        protect(own_trainer(Trainer, tmp_path), replace(SETTINGS, **CONTRADICTIONS[message]))


def test_what_cannot_be_protected_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^reference_sets: no key 'fact' in the trainer's eval_dataset; found: facts"):
        protect(own_trainer(Trainer, tmp_path), replace(SETTINGS, reference_sets=("fact",)))
    with pytest.raises(UserError, match=r"^samples: 13 rows wanted, but reference set 'facts' holds 12 usable ones"):
        protect(own_trainer(Trainer, tmp_path), replace(SETTINGS, samples=13))
    with pytest.raises(UserError, match="projects already"):
        protect(protect(own_trainer(Trainer, tmp_path), SETTINGS), SETTINGS)
    with pytest.raises(UserError, match=r"is trained and torch\.bfloat16, whose rounding swallows steps"):
        protect(own_trainer(Trainer, tmp_path, tied_model().to(torch.bfloat16)), SETTINGS)


class Infinite(Trainer):
    """A trainer whose loss is infinite."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs) * torch.inf


def test_what_training_refuses_of_the_settings_is_named_as_in_them(tmp_path: Path) -> None:
    trainer = protect(own_trainer(Infinite, tmp_path), replace(SETTINGS, selection="conflict"))
    with pytest.raises(UserError, match=r"^selection: the gradient of the training rows is infinite or NaN"):
        trainer.train()
