"""A file that was cut short or changed is found, and the newest whole checkpoint is resumed from."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from eval.generation.fingerprint import checkpoint_folder
from ogpsa.config import Config
from ogpsa.data.rows import load_data
from ogpsa.models.files import check_weights
from ogpsa.runs.tracking import NoTracker
from ogpsa.testbed.cache import ensure_base
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import read_jsonl
from ogpsa.utils.signals import Interruption
from tests.stage import train_alone

# Written at steps 2 and 4, at 5 by the signal; two are kept.
OVERRIDES = [
    "stage=sft", "method=ogpsa", "method.samples=8", "method.refresh_every=2", "stage.max_steps=7",
    "stage.save_every=2", "stage.log_every=1",
]  # fmt: skip
STOPPED, BEFORE = "checkpoint-5", "checkpoint-4"


class StopAfter(NoTracker):
    """Asks for an interruption once a step has been logged, which ends the next one."""

    def __init__(self, step: int) -> None:
        self.interruption = Interruption()
        self._step = step

    def log(self, values: Mapping[str, Any]) -> None:
        self.interruption.requested = values["train/global_step"] >= self._step


@pytest.fixture(scope="module")
def config(small_config: Callable[..., Config]) -> Config:
    return small_config(*OVERRIDES)


@pytest.fixture(scope="module")
def unbroken(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage's folder after a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("unbroken") / "01-sft"
    train_alone(config, load_data(config), ensure_base(config), folder)
    return folder


@pytest.fixture(scope="module")
def stopped(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder when a signal stopped the training after five of seven steps."""
    folder, tracker = tmp_path_factory.mktemp("stopped") / "01-sft", StopAfter(4)
    with pytest.raises(SystemExit):
        train_alone(config, load_data(config), ensure_base(config), folder, tracker.interruption, tracker)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [BEFORE, STOPPED]
    return folder


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def resume(config: Config, stopped: Path, folder: Path, damaged: dict[Path, Callable[[Path], None]]) -> None:
    shutil.copytree(stopped, folder)
    for path, damage in damaged.items():
        damage(folder / path)
    train_alone(config, load_data(config), ensure_base(config), folder)


def check_equal(folder: Path, unbroken: Path) -> None:
    assert (folder / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "projection/seconds")
    ours, theirs = (
        [{key: value for key, value in row.items() if not key.startswith(timed)} for row in read_jsonl(file)]
        for file in (folder / "history.jsonl", unbroken / "history.jsonl")
    )
    assert [sorted(row) for row in ours] == [sorted(row) for row in theirs]
    assert [row["loss"] for row in ours[:-1]] == [row["loss"] for row in theirs[:-1]]
    assert ours[-1]["train_loss"] == theirs[-1]["train_loss"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("optimizer.pt", cut),
        ("tokenizer.json", change),
        ("scheduler.pt", Path.unlink),
        ("COMPLETE.json", cut),
        *(pytest.param(name, cut, marks=pytest.mark.long) for name in (
            "trainer_state.json", "model.safetensors", "scheduler.pt", "rng_state.pth", "config.json",
            "tokenizer.json", "generation_config.json",
        )),
        pytest.param("optimizer.pt", change, marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_the_checkpoint_before_a_damaged_one_is_resumed_from(
    name: str,
    damage: Callable[[Path], None],
    config: Config,
    stopped: Path,
    unbroken: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="ogpsa")
    resume(config, stopped, tmp_path / "01-sft", {Path("checkpoints", STOPPED, name): damage})
    assert f"{STOPPED} is not whole and is left out: " in caplog.text
    assert f"sft: resumes from {BEFORE}" in caplog.text
    check_equal(tmp_path / "01-sft", unbroken)


@pytest.mark.parametrize(("damaged", "resumed_from"), [((), STOPPED), ((BEFORE, STOPPED), None)])
def test_the_newest_whole_checkpoint_is_resumed_from_or_the_stage_begins_again(
    damaged: tuple[str, ...],
    resumed_from: str | None,
    config: Config,
    stopped: Path,
    unbroken: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="ogpsa")
    resume(config, stopped, tmp_path / "01-sft", {Path("checkpoints", name, "optimizer.pt"): cut for name in damaged})
    assert caplog.text.count("resumes from") == (resumed_from is not None)
    assert resumed_from is None or f"sft: resumes from {resumed_from}" in caplog.text
    check_equal(tmp_path / "01-sft", unbroken)


@pytest.mark.parametrize("damage", [cut, change, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "generation_config.json", "config.json"])
def test_a_finished_stage_is_not_used_with_another_file(
    name: str, damage: Callable[[Path], None], config: Config, unbroken: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "01-sft"
    shutil.copytree(unbroken, folder)
    damage(folder / name)
    with pytest.raises(UserError, match=rf"01-sft: {name} .*; delete the folder to have the stage trained again"):
        train_alone(config, load_data(config), ensure_base(config), folder)
    with pytest.raises(UserError, match=r"checkpoint: .*(is not a checkpoint|make the checkpoint again)"):
        checkpoint_folder(folder)
    if damage is not change:
        with pytest.raises(UserError, match=rf"model\.path: .*{name}.*; write it again"):
            check_weights(folder, "model.path", "write it again")
