"""Which checkpoint a stage is resumed from, and by how many processes."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.data.rows import load_data
from ogpsa.testbed.tokenizer import build_tokenizer
from ogpsa.testbed.world import World
from ogpsa.training.resume import last_complete_checkpoint
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import mark_complete, read_jsonl
from tests.program import KilledError
from tests.stage import train_alone
from tests.tiny import tiny_model


def saved(folder: Path, by: int) -> Path:
    """A whole checkpoint of ``by`` processes."""
    checkpoint = folder / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    mark_complete(checkpoint, {"step": 3, "processes": by})
    return checkpoint


@pytest.mark.parametrize("words", [("distributed=ddp",), ("distributed=fsdp2",), ("distributed=fsdp2", "stage=dpo")])
def test_another_number_of_processes_is_said(
    words: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = compose_config(["stage=sft", *words])
    [stage] = config.stages
    checkpoint = saved(tmp_path, by=8)
    with caplog.at_level(logging.INFO):
        assert last_complete_checkpoint(tmp_path, config, stage) == checkpoint
    assert caplog.messages == [
        f"{stage.name}: checkpoint-3 was saved by 8 processes and is resumed by 1: the batch stays {stage.batch_size}, "
        "sums round differently, and of an epoch's last batch, if it is not full, other rows are repeated"
    ]
    caplog.clear()
    mark_complete(checkpoint, {"step": 3, "processes": 1})
    assert last_complete_checkpoint(tmp_path, config, stage) == checkpoint
    assert not caplog.messages


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("stage=sft", "distributed=zero2"), "zero2 keeps a part of the optimizer's state per process"),
        (("stage=dpo", "distributed=zero3"), "zero3 keeps a part of the optimizer's state per process"),
        (("stage=grpo", "distributed=ddp"), "grpo draws completions per process"),
        (("stage=sft", "distributed=fsdp2", "method.basis_dtype=int8"),
         "the scales of an int8 basis are those of its shards"),
    ],
)  # fmt: skip
def test_what_is_bound_to_its_processes_is_refused(words: tuple[str, ...], why: str, tmp_path: Path) -> None:
    config = compose_config(list(words))
    checkpoint = saved(tmp_path, by=8)
    with pytest.raises(UserError) as error:
        last_complete_checkpoint(tmp_path, config, config.stages[0])
    assert error.value.problems == (
        f"distributed.processes: {checkpoint} was saved by 8 processes, this run has 1, and {why}; start 8, or delete "
        f"{tmp_path} to train the stage from its beginning",
    )


def test_a_stage_that_was_killed_behind_its_last_step_takes_no_other(
    small_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last step divides save_every, and at a constant rate another one would move the weights."""
    config = small_config(
        "stage=sft", "method=ema", "stage.max_steps=2", "stage.save_every=1", "stage.scheduler=constant",
        "stage.warmup_ratio=0", "stage.log_every=1",
    )  # fmt: skip
    tokenizer = build_tokenizer(World(0).vocabulary())
    tiny_model(tokenizer).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    train_alone(config, load_data(config), tmp_path / "start", tmp_path / "unbroken")
    with monkeypatch.context() as patch:

        def kill(*_: object) -> None:
            raise KilledError

        patch.setattr("ogpsa.training.stage.save_weights", kill)
        with pytest.raises(KilledError):
            train_alone(config, load_data(config), tmp_path / "start", tmp_path / "broken")
    train_alone(config, load_data(config), tmp_path / "start", tmp_path / "broken")
    broken, unbroken = (tmp_path / name / "model.safetensors" for name in ("broken", "unbroken"))
    assert broken.read_bytes() == unbroken.read_bytes()
    steps = [row["step"] for row in read_jsonl(tmp_path / "broken" / "history.jsonl") if "loss" in row]
    assert steps == [1, 2]
