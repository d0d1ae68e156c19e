"""GRPO's trainer on a tiny random model: its rollouts, what may not disturb them, and what a resumed one repeats."""

import copy
import itertools
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import GenerationConfig, PreTrainedTokenizerBase, TrainerState, set_seed
from trl import GRPOConfig, GRPOTrainer

from eval.judging.reward import JUDGES
from ogpsa import ProjectionSettings, protect
from ogpsa.config import Config, GRPOSettings, Rollout, Scorer
from ogpsa.data.rows import load_data
from ogpsa.pipeline import run
from ogpsa.runs.run import Run
from ogpsa.runs.stage_cache import shared
from ogpsa.runs.tracking import NoTracker
from ogpsa.subspace.references import ReferenceChunk
from ogpsa.testbed.tokenizer import build_tokenizer
from ogpsa.testbed.world import World
from ogpsa.training.answers import IGNORED, answer_batch
from ogpsa.training.callbacks import ReportCallback
from ogpsa.training.grpo import RolloutCallback, RolloutTrainer
from ogpsa.training.resume import CompletionCallback, newest_whole
from ogpsa.training.trainer import StageGRPOTrainer, build_trainer
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import COMPLETE_FILE, find_damage, read_jsonl
from ogpsa.utils.signals import Interruption
from tests.endpoint_server import EndpointServer, Reply, Request, serve
from tests.stage import run_alone, train_alone
from tests.tiny import save_tiny, tiny_model

TOKENIZER = build_tokenizer(World(0).vocabulary())
# 16 prompts in two generations an epoch, of two updates each: three epochs are 12 steps.
FEW = [
    "stage=grpo", "data.safety_rows=16", "data.reference_rows=24", "stage.batch_size=16", "stage.micro_batch_size=8",
    "stage.num_generations=4", "stage.max_new_tokens=6", "stage.epochs=3", "stage.log_every=1", "stage.save_every=2",
    "stage.learning_rate=1e-2",
]  # fmt: skip
# An update on the whole of each generation, so that it is measured where TRL logs what it penalises.
KL = ["stage.beta=2.0", "stage.updates_per_generation=1", "stage.micro_batch_size=16", "stage.epochs=1"]
OGPSA = ["method=ogpsa", "method.samples=6", "method.refresh_every=3"]
NSPO = ["method=nspo", "method.samples=8"]
Build = Callable[..., RolloutTrainer]


def lengths(rollouts: Sequence[Rollout]) -> list[float | None]:
    """A reward that tells completions apart."""
    return [float(len(rollout.response.split()) + len(rollout.response) % 3) for rollout in rollouts]


@pytest.fixture
def build(small_config: Callable[..., Config], tmp_path: Path) -> Build:
    """``build(*overrides, reward=...)``: the stage's trainer as a run would make it, each in a folder of its own."""
    numbers, start = itertools.count(), save_tiny(tmp_path / "start", TOKENIZER, tie_word_embeddings=True)

    def built(
        *overrides: str,
        reward: Callable[[Sequence[Rollout]], list[float | None]] = lengths,
        tokenizer: PreTrainedTokenizerBase = TOKENIZER,
        generation: Mapping[str, Any] = MappingProxyType({}),
    ) -> RolloutTrainer:
        config = small_config(*FEW, *overrides)
        data, output = load_data(config), tmp_path / f"checkpoints_{next(numbers)}"
        config.method.prepare(start, run_alone(config, data, tmp_path))
        model = tiny_model(tokenizer, tie_word_embeddings=True)
        model.generation_config.update(**generation)
        trainer = build_trainer(config, config.stages[0], model, tokenizer, data, output, scorer=reward)
        assert isinstance(trainer, RolloutTrainer)
        return trainer

    return built


def weights(trainer: RolloutTrainer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def trained(trainer: RolloutTrainer) -> Tensor:
    trainer.train()
    return weights(trainer)


def test_what_removes_nothing_equals_plain_grpo_bit_for_bit(build: Build) -> None:
    without = build("method=baseline", "stage.epochs=2")
    start, plain = weights(without), trained(without)
    assert not torch.equal(plain, start)
    # Reference passes at every step, and the distance measured: rollouts, rewards and weights are as without.
    passes = build(*OGPSA, "method.rank=0", "method.refresh_every=1", "stage.measure_kl=true", "stage.epochs=2")
    assert torch.equal(trained(passes), plain)
    seen = [[(line["reward"], line["entropy"], line["completions/mean_length"]) for line in trainer.state.log_history
             if "reward" in line] for trainer in (without, passes)]  # fmt: skip
    assert seen[0] == seen[1] and len(seen[0]) == 4
    assert sum("projection/reference_loss/helpfulness" in line for line in passes.state.log_history) == 8
    assert torch.equal(trained(build("method=replay", "method.weight=0", "stage.epochs=2")), plain)
    measured = [entry["kl_to_start"] for entry in passes.state.log_history if "kl_to_start" in entry]
    assert measured[0] == 0 and measured[-1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["method=baseline", pytest.param("method=lora", marks=pytest.mark.long)])
def test_the_divergence_that_is_penalised_is_the_one_that_is_measured(build: Build, method: str) -> None:
    """From where the stage starts, which with adapters takes no second model; to measure it as well changes nothing."""
    plain = build(method, *KL, "stage.beta=0")
    start, free = weights(plain), trained(plain)
    held = trained(build(method, *KL))
    seen = build(method, *KL, "stage.measure_kl=true")
    assert plain.ref_model is None and (seen.ref_model is None) == (method == "method=lora")
    assert torch.equal(trained(seen), held)
    if seen.ref_model is not None:
        assert torch.equal(torch.cat([one.flatten() for one in seen.ref_model.parameters()]), start)
    # A penalty keeps the policy near its start.
    assert (held - start).norm() < (free - start).norm()
    lines = [line for line in seen.state.log_history if "kl_to_start" in line]
    assert len(lines) == 4 and lines[0]["kl_to_start"] == 0 and lines[-1]["kl_to_start"] > 0
    for line in lines:
        assert line["kl"] == pytest.approx(line["kl_to_start"], rel=1e-4, abs=1e-7)


@pytest.mark.slow
def test_projection_and_replay_move_elsewhere(build: Build) -> None:
    plain = trained(build("method=baseline", "stage.epochs=1"))
    projected = build(*OGPSA, "method.refresh_every=1", "stage.epochs=1")
    assert not torch.equal(trained(projected), plain)
    seen = [entry for entry in projected.state.log_history if "projection/norm_retained" in entry]
    assert len(seen) == 4 and all(abs(entry["projection/cosine_after"]) < 1e-4 for entry in seen)
    assert not torch.equal(trained(build("method=replay", "stage.epochs=1")), plain)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["method.streaming=true"], marks=pytest.mark.slow),
        pytest.param(["method.scope=tensor", "method.rank=4"], marks=pytest.mark.slow),
        ["method.target=update"],
    ],
    ids=["streaming", "tensor", "update"],
)
def test_ogpsas_options_work_on_rollouts(build: Build, options: list[str]) -> None:
    trainer = build(*OGPSA, "stage.epochs=1", *options)
    start = weights(trainer)
    assert not torch.equal(trained(trainer), start)
    lines = [line for line in trainer.state.log_history if "projection/norm_retained" in line]
    assert len(lines) == 4 and all(line["projection/norm_retained"] < 1 for line in lines)
    key = "step_share" if "update" in options[0] else "cosine_after"
    assert all(abs(line[f"projection/{key}"]) < 1e-3 for line in lines)


def test_the_gradient_of_replay_is_that_of_the_mean_over_the_rows_tokens(build: Build) -> None:
    trainer = build("method=replay", "method.weight=0.5", "method.ratio=1")
    from ogpsa.methods.replay import ReplayedAnswers

    trainer.create_optimizer_and_scheduler(1)
    trainer.model.zero_grad()
    trainer.model_wrapped = trainer.model
    replayed = ReplayedAnswers(trainer, 0.5, 1.0, 0)
    trainer.model.eval()
    replayed.add()
    # Gradients are checkpointed in training alone.
    assert trainer.model.training
    found = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    batch = answer_batch(TOKENIZER, replayed._rows[:4])
    trainer.model.zero_grad()
    (0.5 * trainer.model(**batch).loss).backward()
    wanted = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


# An epoch has four steps: within the first, on its end, within the second.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "method"),
    [
        pytest.param(2, ["method=baseline"], marks=pytest.mark.long),
        pytest.param(4, OGPSA, marks=pytest.mark.long),
        pytest.param(6, OGPSA, marks=pytest.mark.long),
        (6, ["method=replay"]),
        pytest.param(6, [*NSPO, "method.variant=paper"], marks=pytest.mark.long),
        # Between two retractions, after the first and the fifth generation.
        (6, [*NSPO, "method.variant=code", "method.retract_every=4"]),
        pytest.param(6, [*NSPO, "method.variant=exact"], marks=pytest.mark.long),
        # The control's spaces are drawn at each start.
        pytest.param(6, [*NSPO, "method.variant=exact", "method.basis=random"], marks=pytest.mark.long),
    ],
)
def test_a_resumed_stage_equals_the_unbroken_one_over_epochs(build: Build, stop: int, method: list[str]) -> None:
    unbroken = build(*method)
    whole = trained(unbroken)
    broken = build(*method)
    broken.add_callback(CompletionCallback(broken))
    broken.args.max_steps = stop
    broken.train()
    checkpoint = newest_whole(Path(str(broken.args.output_dir)))
    assert checkpoint is not None and checkpoint.name == f"checkpoint-{stop}"
    set_seed(7)
    resumed = build(*method)
    resumed.add_callback(CompletionCallback(resumed, checkpoint))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(weights(resumed), whole)
    # The leak is measured from where the stage started.
    for key in ("reward", "entropy", "projection/leak"):
        courses = [[entry[key] for entry in one.state.log_history if key in entry] for one in (unbroken, resumed)]
        assert courses[0] == courses[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", [["method=baseline"], [*OGPSA, "method.streaming=true"]])
def test_a_signal_while_a_reward_is_asked_is_obeyed_after_the_step(
    small_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: list[str]
) -> None:
    start = save_tiny(tmp_path / "start", TOKENIZER)
    config = small_config(*FEW, *method, "stage.save_every=12", "stage.log_every=5")
    data, interruption, asked = load_data(config), Interruption(), itertools.count(1)

    def scorer(*_: Any) -> Scorer:
        def score(rollouts: Sequence[Rollout]) -> list[float | None]:
            interruption.requested = next(asked) == 3
            return lengths(rollouts)

        return score

    monkeypatch.setattr(type(config.reward), "scorer", scorer)
    with pytest.raises(SystemExit):
        train_alone(config, data, start, tmp_path / "broken", interruption)
    assert newest_whole(tmp_path / "broken" / "checkpoints").name == "checkpoint-6"
    train_alone(config, data, start, tmp_path / "broken")
    train_alone(config, data, start, tmp_path / "whole")
    whole, broken = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_a_reward_that_is_not_finite_is_told_from_a_training_that_diverges(build: Build) -> None:
    trainer = build("method=baseline", reward=lambda rollouts: [float("inf")] * len(rollouts))
    trainer.add_callback(ReportCallback("grpo", NoTracker()))
    with pytest.raises(UserError, match="a reward is a finite number, or None where there is none"):
        trainer.train()


@pytest.mark.parametrize("generation", [{"min_p": 1.0}, {"no_repeat_ngram_size": 1}, {"suppress_tokens": [5, 6, 7]}])
def test_rollouts_are_sampled_as_the_stage_says_and_not_as_the_model_does(
    build: Build, generation: dict[str, Any]
) -> None:
    few = ("method=baseline", "stage.epochs=1", "stage.max_steps=2")
    assert torch.equal(trained(build(*few, generation=generation)), trained(build(*few)))


@pytest.mark.slow
def test_a_models_own_settings_of_generation_stay_with_it(small_config: Callable[..., Config], tmp_path: Path) -> None:
    start = save_tiny(tmp_path / "start", TOKENIZER)
    GenerationConfig(do_sample=True, min_p=0.5, eos_token_id=TOKENIZER.eos_token_id).save_pretrained(start)
    config = small_config(*FEW, "method=baseline", "stage.epochs=1")
    train_alone(config, load_data(config), start, tmp_path / "01-grpo")
    assert GenerationConfig.from_pretrained(tmp_path / "01-grpo").min_p == 0.5


@pytest.mark.slow
def test_a_stage_that_ended_between_its_last_checkpoint_and_its_result_takes_no_step_more(build: Build) -> None:
    stages = [build(*OGPSA, "stage.scheduler=constant") for _ in range(2)]
    for trainer in stages:
        trainer.args.max_steps = 2
        trainer.add_callback(CompletionCallback(trainer))
    ended, resumed = stages
    whole = trained(ended)
    checkpoint = newest_whole(Path(str(ended.args.output_dir)))
    assert checkpoint is not None and checkpoint.name == "checkpoint-2"
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 2
    assert torch.equal(weights(resumed), whole)


@pytest.mark.slow
def test_prompts_come_in_another_order_in_each_epoch(build: Build) -> None:
    asked: list[str] = []

    def reward(rollouts: Sequence[Rollout]) -> list[float | None]:
        asked.extend(rollout.prompt for rollout in rollouts[::4])
        return lengths(rollouts)

    build("method=baseline", reward=reward).train()
    epochs = [asked[start : start + 16] for start in range(0, 48, 16)]
    assert len({tuple(epoch) for epoch in epochs}) == 3 and len({frozenset(epoch) for epoch in epochs}) == 1


def test_rewards_see_the_row_and_the_end_of_a_completion(build: Build) -> None:
    seen: list[Rollout] = []

    def reward(rollouts: Sequence[Rollout]) -> list[float | None]:
        seen.extend(rollouts)
        return [None if number % 5 == 0 else 1.0 for number in range(len(rollouts))]

    trainer = build(
        "method=baseline", "stage.answerable_sets=[helpfulness]", "stage.answerable_ratio=0.5", reward=reward
    )
    trainer.train()
    assert {rollout.harmful for rollout in seen} == {True, False}
    assert all((rollout.target is None) == rollout.harmful for rollout in seen)
    assert not all(rollout.finished for rollout in seen)
    first = trainer.state.log_history[0]
    assert first["reward"] == 1 and first["reward_missing"] == pytest.approx(1 / 5, abs=0.02)
    assert {"refused/harmful", "refused/answerable", "completions/clipped_ratio"} <= first.keys()


@pytest.mark.slow
def test_rewards_see_a_thought_that_the_template_begins(build: Build) -> None:
    seen: list[Rollout] = []

    def reward(rollouts: Sequence[Rollout]) -> list[float | None]:
        seen.extend(rollouts)
        return lengths(rollouts)

    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    tokenizer.chat_template = f"{TOKENIZER.chat_template}{{% if add_generation_prompt %}}<think>{{% endif %}}"
    build("method=baseline", reward=reward, tokenizer=tokenizer).train()
    ended = [rollout for rollout in seen if "</think>" in rollout.response]
    assert all(rollout.in_thought for rollout in seen)
    # Untrained as it is, it writes the mark, a special token, now and then.
    assert 0 < len(ended) < len(seen)
    assert all(rollout.answer is None for rollout in seen if rollout not in ended)


@pytest.mark.slow
def test_a_constant_rate_is_warmed_up(build: Build) -> None:
    trainer = build("method=baseline", "stage.warmup_ratio=0.5", "stage.max_steps=8", "stage.learning_rate=1e-3")
    trainer.train()
    rates = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    assert rates == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3, 1e-3])


FLAT_REWARDS: dict[str, Callable[[Sequence[Rollout]], list[float | None]]] = {
    "all the same": lambda rollouts: [0.0] * len(rollouts),
    "the same of a prompt": lambda rollouts: [float(len(rollout.prompt)) for rollout in rollouts],
    "of some prompts none": lambda rollouts: [0.0 if len(rollout.prompt) % 2 else None for rollout in rollouts],
    "of a prompt one": lambda rollouts: [float(number) if number % 4 == 0 else None for number in range(len(rollouts))],
}


@pytest.mark.parametrize(
    ("reward", "scale"),
    [
        pytest.param(
            reward,
            scale,
            id=f"{name}-{scale}",
            marks=[pytest.mark.slow] * ((name, scale) != ("all the same", "group"))
            + [pytest.mark.long] * (name not in ("all the same", "of a prompt one") or scale == "batch"),
        )
        for name, reward in FLAT_REWARDS.items()
        for scale in ("group", "batch")
    ],
)
def test_flat_groups_are_told_once(build: Build, scale: str, reward: Any, caplog: pytest.LogCaptureFixture) -> None:
    trainer = build(
        "method=baseline", "stage.epochs=2", "stage.flat_steps=3", f"stage.scale_rewards={scale}", reward=reward
    )
    with caplog.at_level(logging.WARNING, "ogpsa"):
        trainer.train()
    told = [record.getMessage() for record in caplog.records if "same reward" in record.getMessage()]
    assert len(told) == 1 and "stage.temperature" in told[0]
    assert {line["frac_reward_zero_std"] for line in trainer.state.log_history if "reward" in line} == {1}


def test_a_stage_that_learns_nothing_says_so_at_its_end_if_not_before(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build("method=baseline", "stage.epochs=1", reward=FLAT_REWARDS["all the same"])
    with caplog.at_level(logging.WARNING, "ogpsa"):
        trainer.train()
    assert len([line for line in caplog.messages if "same reward" in line and "for 3 steps" in line]) == 1


def test_flat_groups_are_counted_over_sessions(
    small_config: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    """As when a job is requeued every two steps."""
    stage = small_config(*FEW, "method=baseline", "stage.flat_steps=5").stages[0]
    assert isinstance(stage, GRPOSettings)
    state, told = TrainerState(), []
    for step, flat in enumerate([1, 1, 0.5, 1, 1, 1, 1, 1, 1, 1], start=1):
        line = {"frac_reward_zero_std": flat}
        state.log_history += [{"step": step, "projection/cosine": 0.5}, {"step": step} | line]
        caplog.clear()
        with caplog.at_level(logging.WARNING, "ogpsa"):
            RolloutCallback(None, stage, "stage").on_log(None, state, None, logs=line)
        told += [step] if caplog.records else []
    assert told == [8]


@pytest.mark.slow
def test_protect_with_rank_0_changes_nothing_in_a_trainer_of_ones_own(tmp_path: Path) -> None:
    def trainer() -> GRPOTrainer:
        def turns(prompt: str, reply: str) -> dict[str, Any]:
            return {
                "prompt": [{"role": "user", "content": prompt}],
                "completion": [{"role": "assistant", "content": reply}],
            }

        rows = [turns("what is 1 plus 2 ?", "3"), turns("reverse the list ka lo .", "lo ka")]
        arguments = GRPOConfig(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, num_generations=2, use_cpu=True,
            max_completion_length=5, report_to="none", save_strategy="no", disable_dropout=True, learning_rate=1e-2,
        )  # fmt: skip
        return GRPOTrainer(
            model=tiny_model(TOKENIZER), args=arguments, processing_class=TOKENIZER,
            reward_funcs=lambda completions, **_: [float(len(one[0]["content"])) for one in completions],
            train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
            eval_dataset={"general": Dataset.from_list(rows)},
        )  # fmt: skip

    def final(wrapped: GRPOTrainer) -> Tensor:
        set_seed(0)
        wrapped.train()
        return torch.cat([parameter.detach().flatten() for parameter in wrapped.model.parameters()])

    plain = final(trainer())
    settings = ProjectionSettings(("general",), rank=0, samples=2, refresh_every=1)
    assert torch.equal(final(protect(trainer(), settings)), plain)


def test_reference_answers_are_sorted_by_their_length() -> None:
    rows: Any = [
        {"prompt": [{"role": "user", "content": "w" * size}], "completion": [{"role": "assistant", "content": "w"}]}
        for size in (2, 9, 5)
    ]
    assert ReferenceChunk("general", range(3), DataLoader(rows)).longest_first(range(3)) == [1, 2, 0]


def test_labels_of_an_answer_batch_are_the_answers_tokens() -> None:
    rows = [
        {"prompt": [{"role": "user", "content": "reverse the list ka lo ."}],
         "completion": [{"role": "assistant", "content": "lo ka"}]},
        {"prompt": [{"role": "user", "content": "a fruit ?"}], "completion": [{"role": "assistant", "content": "red"}]},
    ]  # fmt: skip
    batch = answer_batch(TOKENIZER, rows)
    read = [TOKENIZER.decode(labels[labels != IGNORED], skip_special_tokens=True) for labels in batch["labels"]]
    assert read == ["lo ka", "red"]
    assert torch.equal(batch["attention_mask"], (batch["input_ids"] != TOKENIZER.pad_token_id).long())


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["stage.num_generations=3"], "not a multiple of num_generations=3"),
        (["stage.save_every=3"], "save_every=3 is not a multiple of updates_per_generation=2"),
        (["stage.max_new_tokens=64"], "max_new_tokens=64 leaves no prompt within max_length=64"),
        (["stage.delta=1.1"], "delta=1.1 is within the clip"),
        ([*OGPSA, "method.selection=conflict"], "method.selection: conflict compares with answers"),
        (["method=baseline", "stage.answerable_sets=[helpfulnes]"], "did you mean 'helpfulness'"),
    ],
)
def test_what_cannot_be_is_one_line(small_config: Callable[..., Config], overrides: list[str], told: str) -> None:
    with pytest.raises(UserError) as refused:
        small_config(*FEW, *overrides)
    assert len(refused.value.problems) == 1 and told in refused.value.problems[0]


@pytest.mark.slow
def test_a_judge_that_does_not_answer_ends_a_run_before_anything_is_evaluated(
    small_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = small_config(
        *FEW, "method=baseline", "reward=llama_guard", "reward.endpoint.base_url=http://127.0.0.1:9/v1"
    )

    def evaluate(*_: Any) -> Any:
        raise AssertionError("evaluated")

    with pytest.raises(UserError, match=r"^reward\.endpoint: http://127\.0\.0\.1:9/v1: does not answer"):
        run(config, tmp_path / "run", evaluate, judges=JUDGES)


def killed_in_micro_batch(number: int, train: Callable[[], None]) -> None:
    """Train until the completions of this session's micro-batch are rewarded, and end before it counts."""
    numbers, step = itertools.count(1), StageGRPOTrainer.compute_loss

    def compute_loss(*arguments: Any, **keywords: Any) -> Any:
        if next(numbers) == number:
            raise KeyboardInterrupt
        return step(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageGRPOTrainer, "compute_loss", compute_loss)
        with pytest.raises(KeyboardInterrupt):
            train()


@pytest.mark.slow
def test_a_judge_is_asked_nothing_twice_and_what_it_said_stays_with_the_stage(
    small_config: Callable[..., Config], tmp_path: Path
) -> None:
    def verdict(request: Request, before: int) -> Reply:
        return Reply("safe" if len(request.text) % 3 else "unsafe\nS2", tokens=(len(request.text), 2))

    def asked(server: EndpointServer) -> list[str]:
        return sorted(request.text for request in server.requests)

    start = save_tiny(tmp_path / "start", TOKENIZER, tie_word_embeddings=True)
    broken, whole, linked = (tmp_path / name for name in ("broken", "whole", "linked"))
    with serve(verdict) as server, serve(verdict) as undisturbed:

        def train(folder: Path, judge: EndpointServer = server) -> None:
            given = ["method=baseline", "reward=llama_guard", f"reward.endpoint.base_url={judge.url}"]
            config = small_config(*FEW, *given, "stage.epochs=1")
            key = "undisturbed" if judge is undisturbed else "key"
            with shared(tmp_path / "store", key, folder, COMPLETE_FILE, lambda: None):
                train_alone(config, load_data(config), start, folder, judges=JUDGES)

        train(whole, undisturbed)
        # Before the first checkpoint, and behind one, whose next generation is rewarded but not yet learned from.
        killed_in_micro_batch(2, lambda: train(broken))
        killed_in_micro_batch(6, lambda: train(broken))
        assert newest_whole(broken / "checkpoints") == broken / "checkpoints" / "checkpoint-2"
        train(broken)
        questions = asked(undisturbed)
        assert asked(server) == questions and len(set(questions)) == len(questions)
        weights = [load_file(folder / "model.safetensors") for folder in (whole, broken)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

        kept = broken / "rewards" / "reward.jsonl"
        lines = [line for one in read_jsonl(kept)[1:] for [line] in one.values()]
        texts = ["\n".join(message["content"] for message in line["asked"]) for line in lines]
        assert sorted(texts) == questions
        assert [(line["tokens_in"], line["tokens_out"]) for line in lines] == [(len(text), 2) for text in texts]
        assert {line["text"] for line in lines} == {"safe", "unsafe\nS2"}
        # Runs that take the stage from the store have it as well.
        train(linked)
        assert (linked / "rewards" / "reward.jsonl").read_bytes() == kept.read_bytes()
        # Trained again from nothing but what was paid for.
        shutil.rmtree(tmp_path / "store")
        for path in broken.iterdir():
            if path.name != "rewards":
                path.unlink()
        train(broken)
        assert asked(server) == questions and find_damage(broken, contents=True) is None
        kept.write_bytes(kept.read_bytes()[:-1] + b" ")
        assert find_damage(broken, contents=True) == "rewards/reward.jsonl has other content than was written"


def nspo_history(small_config: Callable[..., Config], place: Path, *overrides: str) -> list[dict[str, float]]:
    """What a stage under NSPO logs."""
    config = small_config(*FEW, *NSPO, *overrides)
    save_tiny(place / "start", TOKENIZER, tie_word_embeddings=True)
    train_alone(config, load_data(config), place / "start", place / "stage")
    return read_jsonl(place / "stage" / "history.jsonl")


def test_nspos_exact_variant_stays_in_the_null_space_on_rollouts(
    small_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The world's rules find all completions of random weights alike.
    monkeypatch.setattr(Run, "scorer", lambda *_: lengths)
    history = nspo_history(small_config, tmp_path, "method.variant=exact", "stage.epochs=1")
    leaks = [entry["projection/leak"] for entry in history if "projection/leak" in entry]
    assert leaks and 0 < max(leaks) < 1e-6


@pytest.mark.slow
def test_nspo_retracts_after_whole_generations(small_config: Callable[..., Config], tmp_path: Path) -> None:
    history = nspo_history(small_config, tmp_path, "method.variant=code", "method.retract_every=3")
    # Two updates a generation: after the first generation, and after the fourth.
    assert [entry["step"] for entry in history if "projection/retracted" in entry] == [2, 8]
    assert history[-2]["projection/leak"] > 0
