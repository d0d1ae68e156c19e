"""The loss on held-out rows while a stage trains: what it may not disturb, and the checkpoint that it chooses."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.data.rows import load_data
from ogpsa.testbed.cache import ensure_base
from ogpsa.training.resume import newest_whole
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import COMPLETE_FILE, read_json, read_jsonl, write_jsonl
from ogpsa.utils.signals import Interruption
from tests.stage import train_alone

FEW = [
    "data.safety_rows=32", "data.reference_rows=24", "stage.batch_size=8", "stage.micro_batch_size=4",
    "stage.max_steps=6", "stage.log_every=1", "stage.save_every=4", "stage.scheduler=constant", "stage.warmup_ratio=0",
]  # fmt: skip
OGPSA = ["method=ogpsa", "method.samples=4", "method.refresh_every=2"]
# At this rate the loss on held-out rows rises again before the last step.
BEST = ["stage=sft", "method=baseline", "stage.eval_every=1", "stage.keep=best", "stage.learning_rate=1e-1"]
Train = Callable[..., Path]


class Stop:
    """A tracker that asks the run to stop at a step, as a signal that comes during it does."""

    def __init__(self, step: int, interruption: Interruption) -> None:
        self.step, self.interruption = step, interruption

    def log(self, values: Mapping[str, Any]) -> None:
        self.interruption.requested |= values["train/global_step"] == self.step - 1

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        raise NotImplementedError


@pytest.fixture
def train(small_config: Callable[..., Config], tmp_path: Path) -> Train:
    """``train(*overrides)``: the folder of a finished stage, with ``stop=STEP`` of one that was interrupted there."""

    def trained(*overrides: str, name: str = "", stop: int | None = None) -> Path:
        config = small_config(*FEW, *overrides)
        folder, interruption = tmp_path / (name or str(len(list(tmp_path.iterdir())))), Interruption()
        arguments = (config, load_data(config), ensure_base(config), folder, interruption)
        if stop is None:
            train_alone(*arguments)
        else:
            with pytest.raises(SystemExit):
                train_alone(*arguments, Stop(stop, interruption))
        return folder

    return trained


def same_weights(first: Path, second: Path) -> bool:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (first, second))
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def held_out_losses(folder: Path, name: str = "safety") -> dict[int, float]:
    key = f"eval_held_out_{name}_loss"
    return {entry["step"]: entry[key] for entry in read_jsonl(folder / "history.jsonl") if key in entry}


@pytest.mark.parametrize(
    "overrides", [["stage=sft", *OGPSA], pytest.param(["stage=dpo", "method=baseline"], marks=pytest.mark.slow)]
)
def test_measuring_leaves_no_trace_in_the_training(overrides: list[str], train: Train) -> None:
    plain, measured = train(*overrides), train(*overrides, "stage.eval_every=2")
    assert same_weights(plain, measured)
    losses = held_out_losses(measured)
    assert list(losses) == [2, 4, 6] and len(set(losses.values())) == 3
    assert list(held_out_losses(measured, "general")) == [2, 4, 6]
    reported = [
        [{key: value for key, value in entry.items() if "seconds" not in key} for entry in lines if "loss" in entry]
        for lines in (read_jsonl(folder / "history.jsonl") for folder in (plain, measured))
    ]
    assert reported[0] == reported[1] and not held_out_losses(plain)


@pytest.mark.slow
def test_an_average_is_not_what_is_measured(train: Train) -> None:
    measured = ["stage=sft", "stage.eval_every=2"]
    plain, averaged = train(*measured, "method=baseline"), train(*measured, "method=ema")
    assert held_out_losses(plain) == held_out_losses(averaged) and not same_weights(plain, averaged)


@pytest.mark.slow
def test_a_margin_is_not_part_of_what_is_measured(train: Train) -> None:
    still = ["stage.max_steps=1", "stage.learning_rate=1e-9", "stage.eval_every=1"]
    folder = train("stage=dpo", "method=safedpo", "method.margin=2", *still)
    # Policy and reference agree.
    assert held_out_losses(folder) == {1: pytest.approx(math.log(2), rel=1e-4)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", [pytest.param(["stage=sft"], marks=pytest.mark.long), ["stage=dpo", "stage.loss={sigmoid: 1, sft: 1}"]]
)
def test_the_loss_does_not_depend_on_the_micro_batch(stage: list[str], train: Train) -> None:
    still = ["method=baseline", "stage.max_steps=1", "stage.learning_rate=1e-9", "stage.eval_every=1"]
    found = [held_out_losses(train(*stage, *still, f"stage.micro_batch_size={size}")) for size in (1, 4, 8)]
    assert found[1:] == [{1: pytest.approx(found[0][1], rel=1e-6)}] * 2


@pytest.mark.slow
def test_the_stage_ends_with_the_weights_of_the_lowest_held_out_loss(train: Train) -> None:
    folder = train(*BEST)
    losses = held_out_losses(folder)
    best = min(losses, key=lambda step: losses[step])
    assert best < 6
    assert read_json(folder / COMPLETE_FILE)["best_step"] == best
    assert same_weights(
        folder, train("stage=sft", "method=baseline", "stage.learning_rate=1e-1", f"stage.max_steps={best}")
    )


@pytest.mark.slow
@pytest.mark.parametrize("stop", [pytest.param(2, marks=pytest.mark.long), 5])
def test_a_resumed_stage_remembers_the_best_so_far(stop: int, train: Train, tmp_path: Path) -> None:
    unbroken = train(*BEST)
    broken = train(*BEST, name="broken", stop=stop)
    newest = newest_whole(broken / "checkpoints")
    assert newest is not None and newest.name == f"checkpoint-{stop}"
    # Its directory may have another name by now.
    broken.rename(tmp_path / "moved")
    resumed = train(*BEST, name="moved")
    assert same_weights(resumed, unbroken)
    assert [read_json(one / COMPLETE_FILE)["session_steps"] for one in (unbroken, resumed)] == [6, 6 - stop]
    assert read_json(resumed / COMPLETE_FILE)["best_step"] == read_json(unbroken / COMPLETE_FILE)["best_step"]


@pytest.mark.slow
def test_a_best_checkpoint_that_is_gone_is_named(train: Train) -> None:
    broken = train(*BEST, name="broken", stop=5)
    state = read_json(broken / "checkpoints" / "checkpoint-5" / "trainer_state.json")
    lost = broken / "checkpoints" / f"checkpoint-{state['best_global_step']}"
    assert lost.name != "checkpoint-5"
    (lost / COMPLETE_FILE).unlink()
    with pytest.raises(UserError, match=f"{lost.name}: the best checkpoint so far: is missing or not whole"):
        train(*BEST, name="broken")


def test_own_held_out_rows_are_read_where_they_are_measured_alone(
    small_config: Callable[..., Config], tmp_path: Path
) -> None:
    row = {"prompt": "how", "chosen": "no", "rejected": "so"}
    for name, rows in (("safety", [row] * 16), ("held_out", [{"prompt": "what", "chosen": "that"}])):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    files = [
        "data=files", f"data.safety={tmp_path}/safety.jsonl", f"+data.held_out={{safety: {tmp_path}/held_out.jsonl}}",
        "model.path=somewhere", "method=baseline",
    ]  # fmt: skip
    config = compose_config([*files, "stage=sft"])
    assert load_data(config).held_out == {}
    # Held-out rows that nothing measures are not part of a run's name.
    plain = compose_config([word for word in files if not word.startswith("+data.held_out")] + ["stage=sft"])
    assert config.run_name() == plain.run_name()
    held_out = load_data(compose_config([*files, "stage=sft", "stage.eval_every=5"])).held_out
    assert held_out == {"safety": [{"prompt": "what", "chosen": "that"}]}
    with pytest.raises(
        UserError, match=r"data\.held_out\.safety: .*held_out\.jsonl:1 has no text in column 'rejected'"
    ):
        load_data(compose_config([*files, "stage=dpo", "stage.eval_every=5"]))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["stage.keep=best"], "stage: keep=best takes the step of the lowest held-out loss, and eval_every=null"),
        (["stage.eval_every=0"], "stage.eval_every: found 0; allowed is greater than or equal to 1"),
        (
            ["data=files", "data.safety=a.jsonl", "stage.eval_every=5"],
            "stage.eval_every: 5, but data=files holds out no rows; give some: +data.held_out={safety: FILE}",
        ),
        (
            [
                "data=files",
                "data.safety=a.jsonl",
                "+data.held_out={mine: b.jsonl}",
                "stage.eval_every=5",
                "stage.keep=best",
            ],
            "stage.keep: best reads the loss on data.held_out.safety, which is missing; found: mine",
        ),
        (
            ["stage.eval_every=5", "stage.keep=best", "distributed=fsdp2"],
            "stage.keep: best is not tested with distributed=fsdp2; allowed: single, ddp",
        ),
        (
            ["stage.eval_every=5", "stage.keep=best", "model.compile=true"],
            "stage.keep: best is not tested with model.compile=true; allowed: last",
        ),
        (
            ["stage.packing=bfd", "model.compile=true"],
            "stage.packing: bfd is not tested with model.compile=true; allowed: null",
        ),
        (["stage=grpo", "stage.eval_every=5"], "stage.eval_every: unknown key"),
    ],
)
def test_contradictions_are_named(words: list[str], problem: str) -> None:
    with pytest.raises(UserError) as raised:
        compose_config(["stage=sft", "method=baseline", *words])
    assert any(line.startswith(problem) for line in raised.value.problems), raised.value.problems
