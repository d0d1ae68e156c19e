"""Both stages' trainers on a tiny random model: the seam, the refresh, and what neither may disturb."""

import copy
import pickle
import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor
from torch._dynamo import OptimizedModule
from transformers import LlamaForCausalLM, TrainerCallback, set_seed
from trl import DPOTrainer, SFTTrainer

from ogpsa.config import Config
from ogpsa.data.rows import load_data
from ogpsa.distributed import processes
from ogpsa.distributed.arguments import save_weights
from ogpsa.subspace.references import ReferenceChunk
from ogpsa.testbed.tokenizer import ASSISTANT, build_tokenizer
from ogpsa.testbed.world import World
from ogpsa.training.resume import newest_whole
from ogpsa.training.seam import ProjectedTrainer
from ogpsa.training.trainer import build_trainer
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import mark_complete
from tests.tiny import tiny_model

TOKENIZER = build_tokenizer(World(0).vocabulary())
FEW_ROWS = [
    "data.safety_rows=32",
    "data.reference_rows=24",
    "stage.batch_size=8",
    "stage.micro_batch_size=4",
    "stage.max_steps=4",
    "stage.log_every=1",
    "stage.warmup_ratio=0",
    "stage.learning_rate=1e-2",
    # Clipping would scale what the tests compare.
    "stage.max_grad_norm=1e9",
]
# Wall-clock measurements, different in every run.
TIMINGS = (
    "train_runtime", "train_samples_per_second", "train_steps_per_second",
    "projection/refresh_seconds", "projection/projection_seconds",
)  # fmt: skip


def tied_model(dropout: float = 0.0) -> LlamaForCausalLM:
    return tiny_model(TOKENIZER, tie_word_embeddings=True, attention_dropout=dropout)


Build = Callable[..., ProjectedTrainer]


@pytest.fixture
def configured(small_config: Callable[..., Config]) -> Callable[..., Config]:
    def configure(stage: str, *overrides: str) -> Config:
        few = [] if {"method=baseline", "method=lora"} & {*overrides} else ["method.samples=7"]
        return small_config(f"stage={stage}", *FEW_ROWS, *few, *overrides)

    return configure


@pytest.fixture
def build(configured: Callable[..., Config], tmp_path: Path) -> Build:
    """``build(stage, *overrides, model=...)``: the stage's trainer as a run would make it."""

    def built(stage: str, *overrides: str, model: LlamaForCausalLM | None = None) -> ProjectedTrainer:
        config = configured(stage, *overrides)
        data, output = load_data(config), tmp_path / "checkpoints"
        trainer = build_trainer(config, config.stages[0], model or tied_model(), TOKENIZER, data, output)
        return cast(ProjectedTrainer, trainer)

    return built


def refreshes(trainer: ProjectedTrainer) -> list[tuple[int, list[Tensor]]]:
    """Fills during training: for each refresh its step and the reference gradients as flat vectors."""
    seen: list[tuple[int, list[Tensor]]] = []

    def record(rows: list[Tensor]) -> None:
        seen.append((trainer.state.global_step, [flat(parts) for parts in zip(*rows, strict=True)]))

    on_refresh(trainer, record)
    return seen


def on_refresh(trainer: ProjectedTrainer, record: Callable[[list[Tensor]], None]) -> None:
    """Have ``record`` called with the rows [m, n] of each parameter at every refresh of the training to come."""

    class Recording(TrainerCallback):
        def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
            inner = trainer.projector.reference_gradients

            def recorded() -> list[Tensor]:
                rows = inner()
                record(rows)
                return rows

            trainer.projector.reference_gradients = recorded  # type: ignore[method-assign]

    trainer.add_callback(Recording())


def first_refresh(trainer: ProjectedTrainer) -> list[Tensor]:
    """Reference gradients at the start of training."""
    trainer.args.max_steps = 1
    seen = refreshes(trainer)
    trainer.train()
    return seen[0][1]


class Seam(TrainerCallback):
    """Keeps the gradient that the optimizer gets, as one flat vector a step."""

    def __init__(self, trainer: ProjectedTrainer) -> None:
        self.trainer = trainer
        self.gradients: list[Tensor] = []
        trainer.add_callback(self)

    def on_pre_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
        self.gradients.append(flat(p.grad for p in self.trainer.model.parameters() if p.grad is not None))


def weights(trainer: Any) -> Tensor:
    return flat(trainer.model.parameters())


def sizes_of(trainer: Any) -> list[int]:
    return [parameter.numel() for parameter in trainer.model.parameters()]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def history(trainer: Any) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in trainer.state.log_history]


def training_history(trainer: Any) -> list[dict[str, float]]:
    """Without what the projection says of itself."""
    return [{key: value for key, value in row.items() if not key.startswith("projection/")} for row in history(trainer)]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def plain_trl(stage: str, config: Config, args: Any, model: LlamaForCausalLM) -> SFTTrainer | DPOTrainer:
    """TRL's own trainer on the same rows, without this package's."""

    def turn(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    columns = {"completion": "chosen"} if stage == "sft" else {"chosen": "chosen", "rejected": "rejected"}
    rows = [
        {"prompt": turn("user", row["prompt"])} | {key: turn("assistant", row[from_]) for key, from_ in columns.items()}
        for row in load_data(config).safety
    ]
    kind = SFTTrainer if stage == "sft" else DPOTrainer
    return kind(model=model, args=args, processing_class=TOKENIZER, train_dataset=Dataset.from_list(rows))


@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.long), 0.1])
@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.slow)])
def test_rank_zero_with_its_passes_is_trl_bit_for_bit(
    stage: str, dropout: float, build: Build, configured: Callable[..., Config]
) -> None:
    passes_only = build(
        stage,
        "method.rank=0",
        "method.refresh_every=2",
        model=tied_model(dropout),
    )
    seen = refreshes(passes_only)
    passes_only.train()
    assert [step for step, _ in seen] == [0, 2]
    assert all(gradient.norm() > 0 for _, gradients in seen for gradient in gradients)

    baseline = build(stage, "method=baseline", model=tied_model(dropout))
    args = copy.deepcopy(baseline.args)
    baseline.train()
    trl = plain_trl(
        stage,
        configured(stage, "method=baseline"),
        args,
        tied_model(dropout),
    )
    # Building a trainer may draw random numbers; training draws from the seed alone.
    set_seed(args.seed)
    trl.train()

    for other in (baseline, trl):
        assert torch.equal(weights(passes_only), weights(other))
        assert training_history(passes_only) == training_history(other)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++) for torch.compile")
@pytest.mark.parametrize(
    ("stage", "method"),
    [
        ("sft", "ogpsa"),
        pytest.param("dpo", "ogpsa", marks=pytest.mark.long),
        pytest.param("sft", "ogpsa_lora", marks=pytest.mark.long),
    ],
)
def test_a_compiled_model_takes_the_projected_steps_of_an_eager_one(
    stage: str, method: str, build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = [f"method={method}", "method.refresh_every=2", "stage.optimizer=sgd", "stage.max_steps=3"]
    moves = []
    for compiled in (False, True):
        trainer = build(stage, *keys, f"model.compile={str(compiled).lower()}")
        start = weights(trainer)
        trainer.train()
        assert isinstance(trainer.model_wrapped, OptimizedModule) == compiled
        moves.append(weights(trainer) - start)
    assert moves[0].norm() > 0
    assert relative(moves[1], moves[0]) < 1e-4
    # As one of several processes gathers them, under the names of the compiled model.
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    save_weights(trainer, tmp_path / "several")
    monkeypatch.undo()
    save_weights(trainer, tmp_path / "one")
    [one, several] = (next((tmp_path / name).glob("*.safetensors")) for name in ("one", "several"))
    assert several.read_bytes() == one.read_bytes()


@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.long)])
def test_accumulation_gives_what_one_large_batch_gives(stage: str, build: Build) -> None:
    results = []
    for micro in (8, 1):
        overrides = [f"stage.micro_batch_size={micro}", "method.refresh_every=2", "stage.learning_rate=1e-3"]
        trainer = build(stage, *overrides)
        seam = Seam(trainer)
        trainer.train()
        assert history(trainer)[0]["projection/norm_retained"] < 0.999
        results.append((seam.gradients, weights(trainer)))
    (whole, weights_whole), (accumulated, weights_accumulated) = results
    assert len(whole) == len(accumulated) == 4
    assert relative(accumulated[0], whole[0]) < 1e-6
    assert relative(weights_accumulated, weights_whole) < 1e-6
    assert relative(weights_whole, flat(tied_model().parameters())) > 1e-2


@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.long)])
def test_reference_gradients_do_not_depend_on_the_micro_batch(stage: str, build: Build) -> None:
    # 3 leaves a last micro-batch of one row.
    whole, others = (
        first_refresh(build(stage, f"stage.micro_batch_size={micro}", f"stage.batch_size={3 * micro}"))
        for micro in (8, 3)
    )
    for found, wanted in zip(others, whole, strict=True):
        assert relative(found, wanted) < 1e-6


def rows_of(trainer: Any, chunk: ReferenceChunk) -> list[dict[str, Any]]:
    return [trainer.eval_dataset[chunk.name][row] for row in chunk.rows]


def answer_log_probability(model: LlamaForCausalLM, prompt: list[int], answer: list[int]) -> Tensor:
    """Summed log-probability of an answer, one row alone and without padding."""
    logits: Tensor = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(dim=-1).gather(1, torch.tensor(answer)[:, None]).sum()


def test_sft_reference_gradient_is_that_of_the_mean_over_answer_tokens(build: Build) -> None:
    trainer = build("sft", "method.samples=11", "method.rank=4")
    gradients = first_refresh(trainer)
    assert [chunk.name for chunk in trainer.projector.chunks] == ["helpfulness"] * 2 + ["truthfulness"] * 2
    assistant = TOKENIZER.convert_tokens_to_ids(ASSISTANT)
    for chunk, found in zip(trainer.projector.chunks, gradients, strict=True):
        model = tied_model()
        cuts = [(ids, ids.index(assistant) + 1) for ids in (row["input_ids"] for row in rows_of(trainer, chunk))]
        total = torch.stack([answer_log_probability(model, ids[:cut], ids[cut:]) for ids, cut in cuts]).sum()
        (-total / sum(len(ids) - cut for ids, cut in cuts)).backward()
        assert relative(found, flat(p.grad for p in model.parameters() if p.grad is not None)) < 1e-5


@pytest.mark.slow
def test_dpo_reference_gradient_is_that_of_the_mean_over_pairs(build: Build) -> None:
    trainer = build("dpo", "method.samples=11", "method.rank=2", "stage.beta=0.7")
    policy, reference = tied_model(), tied_model()
    # Away from the reference policy, whose log-probabilities would otherwise cancel.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for ours, theirs in zip(policy.parameters(), trainer.model.parameters(), strict=True):
            ours.add_(torch.randn(ours.shape, generator=generator), alpha=0.02)
            theirs.copy_(ours)
    gradients = first_refresh(trainer)
    assert [chunk.name for chunk in trainer.projector.chunks] == ["preference"] * 2
    for chunk, found in zip(trainer.projector.chunks, gradients, strict=True):
        losses = []
        for row in rows_of(trainer, chunk):
            margins = []
            for model in (policy, reference):
                chosen, rejected = (
                    answer_log_probability(model, row["prompt_ids"], row[f"{answer}_ids"])
                    for answer in ("chosen", "rejected")
                )
                margins.append(chosen - rejected)
            losses.append(-torch.nn.functional.logsigmoid(0.7 * (margins[0] - margins[1].detach())))
        policy.zero_grad()
        torch.stack(losses).mean().backward()
        assert relative(found, flat(p.grad for p in policy.parameters() if p.grad is not None)) < 1e-5


@pytest.mark.slow
def test_reference_rows_are_drawn_once_by_the_seed_and_cut_into_chunks(build: Build) -> None:
    def drawn(*overrides: str) -> list[list[str]]:
        trainer = build("sft", "method.samples=11", "method.rank=6", *overrides)
        first_refresh(trainer)
        return [[row["prompt"][0]["content"] for row in rows_of(trainer, chunk)] for chunk in trainer.projector.chunks]

    chunks = drawn()
    assert [len(rows) for rows in chunks] == [4, 4, 3, 4, 4, 3]
    assert len(set(chunks[0] + chunks[1] + chunks[2])) == 11
    assert drawn("method.refresh_every=1", "stage.micro_batch_size=2") == chunks
    assert drawn("seed=1") != chunks


def test_reference_micro_batches_hold_rows_of_similar_length(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build("sft", "method.samples=12", "stage.micro_batch_size=4")
    widths: list[int] = []
    step = trainer.reference_step

    def measured(model: Any, inputs: dict[str, Any], items: Any) -> Tensor:
        widths.append(inputs["input_ids"].shape[1])
        return step(model, inputs, items)

    monkeypatch.setattr(trainer, "reference_step", measured)
    first_refresh(trainer)
    lengths = [
        sorted((len(row["input_ids"]) for row in rows_of(trainer, chunk)), reverse=True)
        for chunk in trainer.projector.chunks
    ]
    assert widths == [length for chunk in lengths for length in chunk[::4]] and len(set(widths)) > 1


def test_rows_whose_answer_is_cut_off_are_not_left_out_silently(build: Build) -> None:
    # Prompts of most rows alone fill this length, so that no answer is left to learn from.
    with pytest.raises(UserError, match=r"stage\.max_length: \d+ of the 24 rows of the helpfulness set hold no answer"):
        build("sft", "method.samples=24", "stage.max_length=12")


class RefreshAgain(TrainerCallback):
    """Refreshes once more at every step and notes whatever that changed beside the basis."""

    def __init__(self, trainer: ProjectedTrainer) -> None:
        self.trainer = trainer
        self.differences: list[str] = []
        self.refreshed = 0
        trainer.add_callback(self)

    def state(self) -> dict[str, Any]:
        trainer = self.trainer
        gradients = trainer.accelerator.gradient_state
        return copy.deepcopy(
            {
                "python": random.getstate(),
                "numpy": pickle.dumps(np.random.get_state()),
                "torch": torch.get_rng_state().tolist(),
                "gradients": [parameter.grad for parameter in trainer.model.parameters()],
                "metrics": trainer._metrics,
                "tokens": trainer._total_train_tokens,
                "accumulation": trainer.current_gradient_accumulation_steps,
                "synchronised": gradients.sync_gradients,
                "loader": (gradients.end_of_dataloader, gradients.remainder),
                "weights": weights(trainer).tolist(),
                "optimizer": pickle.dumps(trainer.optimizer and trainer.optimizer.state_dict()),
                "progress": str(trainer.state),
            }
        )

    def on_step_begin(self, *_: Any, **kwargs: Any) -> None:
        before = self.state()
        assert before["gradients"] == [None] * len(before["gradients"])
        training = self.trainer.model.training
        self.trainer.projector.refresh()
        self.refreshed += 1
        after = self.state()
        self.differences += [key for key in before if before[key] != after[key]]
        assert self.trainer.model.training == training


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.long)])
def test_a_refresh_changes_nothing_but_the_basis(stage: str, build: Build) -> None:
    model = tied_model(0.1)
    # A model that draws from every generator, as augmentation would.
    drawn: list[tuple[float, ...]] = []
    model.register_forward_pre_hook(
        lambda *_: drawn.append((random.random(), float(np.random.random()), float(torch.rand(()))))
    )
    trainer = build(stage, "method.refresh_every=never", "stage.micro_batch_size=2", "stage.log_every=3", model=model)
    trainer.model.train()
    again = RefreshAgain(trainer)
    trainer.train()
    assert again.refreshed == 4
    assert len(drawn) > 4 * 4 * 2
    assert again.differences == []


# The stage's batch of 8 rows and two sets of 7: 6 steps have 48 rows, of which 60% are two estimates' 28.
@pytest.mark.parametrize(
    ("refresh_every", "steps"),
    [
        pytest.param("1", [0, 1, 2, 3, 4, 5], marks=pytest.mark.long),
        ("4", [0, 4]),
        pytest.param("never", [0], marks=pytest.mark.slow),
        pytest.param("60%", [0, 3], marks=pytest.mark.long),
        pytest.param("10%", [0], marks=pytest.mark.slow),
    ],
)
def test_refreshes_come_every_k_optimizer_steps(refresh_every: str, steps: list[int], build: Build) -> None:
    trainer = build("sft", f"method.refresh_every={refresh_every}", "stage.max_steps=6", "stage.micro_batch_size=2")
    seen = refreshes(trainer)
    trainer.train()
    assert [step for step, _ in seen] == steps


@pytest.mark.parametrize(
    ("stage", "rank", "scope"),
    [
        ("sft", 2, "global"),
        pytest.param("sft", 5, "global", marks=pytest.mark.long),
        ("sft", 2, "tensor"),
        pytest.param("dpo", 1, "global", marks=pytest.mark.slow),
        pytest.param("dpo", 3, "tensor", marks=pytest.mark.slow),
    ],
)
def test_the_optimizer_gets_gradients_orthogonal_to_every_reference(
    stage: str, rank: int, scope: str, build: Build
) -> None:
    # Rank 5 leaves one of six chunks' directions out; it is checked against the basis alone.
    trainer = build(stage, f"method.rank={rank}", f"method.scope={scope}", "method.refresh_every=2")
    seen, seam = refreshes(trainer), Seam(trainer)
    bases: list[Tensor] = []

    class Basis(TrainerCallback):
        def on_step_begin(self, *_: Any, **kwargs: Any) -> None:
            state = trainer.projector.subspace.state_dict()
            bases.append(torch.cat([state[f"basis.{index}"] for index in range(len(sizes_of(trainer)))], dim=1))

    trainer.add_callback(Basis())
    trainer.train()
    sizes = [sum(sizes_of(trainer))] if scope == "global" else sizes_of(trainer)
    for step, gradient in enumerate(seam.gradients):
        references = [] if rank == 5 else seen[step // 2][1]
        for direction in [*bases[step], *references]:
            for ours, theirs in zip(gradient.double().split(sizes), direction.double().split(sizes), strict=True):
                assert abs(float(ours @ theirs)) <= 1e-6 * float(ours.norm() * theirs.norm())
    logged = history(trainer)
    norms = [float(gradient.norm()) for gradient in seam.gradients]
    assert [row["grad_norm"] for row in logged[:4]] == pytest.approx(norms, rel=1e-5)
    assert logged[0]["projection/norm_retained"] < 0.999


@pytest.mark.slow
def test_conflict_hands_on_gradients_that_oppose_no_reference(build: Build) -> None:
    trainer = build("sft", "method.sided=conflict", "method.refresh_every=1", "stage.max_steps=6")
    seen, seam = refreshes(trainer), Seam(trainer)
    trainer.train()
    for gradient, (_, references) in zip(seam.gradients, seen, strict=True):
        for reference in references:
            cosine = gradient.double() @ reference.double() / (gradient.double().norm() * reference.double().norm())
            assert float(cosine) >= -1e-6


def test_clipping_comes_after_the_projection(build: Build) -> None:
    trainer = build("sft", "stage.max_grad_norm=0.01", "method.refresh_every=1")
    seam = Seam(trainer)
    trainer.train()
    assert [float(gradient.norm()) for gradient in seam.gradients] == pytest.approx([0.01] * 4, rel=1e-3)


def test_only_a_whole_checkpoint_is_resumed_from(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"weight": torch.ones(8)}, folder / "model.safetensors")
        if step < 6:
            mark_complete(folder, {"step": step, "processes": 1})
    damaged = tmp_path / "checkpoint-4" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert newest_whole(tmp_path) == tmp_path / "checkpoint-2"
    # Saved over, the old mark would stand beside a half-written file.
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


CONFLICT = "method.selection=conflict"


def test_what_the_method_refuses_of_the_trainer_is_named_as_its_keys(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    config = configured("sft")
    data = load_data(config)
    few = replace(data, reference_sets={name: rows[:3] for name, rows in data.reference_sets.items()})
    with pytest.raises(UserError, match=r"^method\.samples: 7 rows wanted, but reference set 'helpfulness' holds 3 "):
        build_trainer(config, config.stages[0], tied_model(), TOKENIZER, few, tmp_path)


def drawn_rows(trainer: ProjectedTrainer) -> list[list[int]]:
    """The rows of each chunk in a training without a selection."""
    first_refresh(trainer)
    return [list(chunk.rows) for chunk in trainer.projector.chunks]


def answer_gradients(rows: Any) -> list[tuple[Tensor, int]]:
    """For each row of SFT alone the gradient of its answer's summed loss at the start, and its tokens."""
    assistant = TOKENIZER.convert_tokens_to_ids(ASSISTANT)
    found = []
    for row in rows:
        model = tied_model()
        ids = row["input_ids"]
        cut = ids.index(assistant) + 1
        (-answer_log_probability(model, ids[:cut], ids[cut:])).backward()
        found.append((flat(p.grad for p in model.parameters() if p.grad is not None).double(), len(ids) - cut))
    return found


@pytest.mark.slow
def test_conflict_takes_the_rows_that_a_safety_step_harms_most(build: Build) -> None:
    overrides = ["method.rank=4", "stage.micro_batch_size=3", "stage.batch_size=6"]
    drawn = drawn_rows(build("sft", *overrides))
    trainer = build("sft", *overrides, CONFLICT)
    # All rows of so small a set are the safety sample.
    safety = torch.stack([gradient for gradient, _ in answer_gradients(trainer.train_dataset)]).sum(dim=0)
    trainer.train()
    assert isinstance(trainer.eval_dataset, dict)
    for position, name in enumerate(("helpfulness", "truthfulness")):
        rows = answer_gradients(trainer.eval_dataset[name])
        products = torch.stack([gradient @ safety / tokens for gradient, tokens in rows])
        first, second = trainer.projector.chunks[2 * position : 2 * position + 2]
        assert first.name == second.name == name
        taken = [*first.rows, *second.rows]
        assert sorted(taken) == sorted(products.argsort()[:7].tolist())
        # The chunks share them out in turn, the sharpest conflict first.
        assert (first.rows[0], second.rows[0]) == tuple(products.argsort()[:2].tolist())
        assert sorted(taken) != sorted(drawn[2 * position] + drawn[2 * position + 1])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.long)])
def test_choosing_the_rows_leaves_no_trace_in_training(stage: str, build: Build) -> None:
    drawn = drawn_rows(build(stage, "method.rank=0"))
    selected = build(stage, "method.rank=0", CONFLICT, model=tied_model(0.1))
    selected.train()
    assert [list(chunk.rows) for chunk in selected.projector.chunks] != drawn
    baseline = build(stage, "method=baseline", model=tied_model(0.1))
    baseline.train()
    assert torch.equal(weights(selected), weights(baseline))
    assert training_history(selected) == training_history(baseline)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", pytest.param("dpo", marks=pytest.mark.long)])
def test_selection_is_made_once_a_stage_and_kept_in_its_checkpoints(stage: str, build: Build) -> None:
    # The trainer that is resumed from step 3 estimates the basis anew at step 4.
    overrides = [CONFLICT, "method.refresh_every=4", "stage.save_every=3", "stage.max_steps=6"]
    whole = build(stage, *overrides)
    whole.train()
    resumed = build(stage, *overrides)
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-3")
    assert [chunk.rows for chunk in resumed.projector.chunks] == [chunk.rows for chunk in whole.projector.chunks]
    assert torch.equal(weights(resumed), weights(whole))
