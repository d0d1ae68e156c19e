"""One stage trained alone, without the run around it."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ogpsa.config import NO_JUDGES, Config, Judges
from ogpsa.data.rows import Data, load_data
from ogpsa.models.load import load_model
from ogpsa.runs.run import Run
from ogpsa.runs.tracking import NoTracker, Tracker
from ogpsa.testbed.cache import ensure_base
from ogpsa.training.resume import CompletionCallback
from ogpsa.training.stage import train_stage
from ogpsa.training.trainer import build_trainer
from ogpsa.utils.files import read_jsonl
from ogpsa.utils.signals import Interruption


def train_alone(
    config: Config,
    data: Data,
    start: Path,
    folder: Path,
    interruption: Interruption | None = None,
    tracker: Tracker | None = None,
    judges: Judges = NO_JUDGES,
) -> None:
    """Train the configuration's first stage from ``start`` into ``folder``."""
    run = run_alone(config, data, folder.parent, interruption, tracker, judges)
    config.method.prepare(start, run)
    train_stage(run, config.stages[0], start, folder)


def trained(config: Config, place: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The weights of the first stage, trained from the base into a new folder of ``place``, and what it logged."""
    folder = place / str(len(list(place.iterdir())))
    train_alone(config, load_data(config), ensure_base(config), folder)
    return load_file(folder / "model.safetensors"), read_jsonl(folder / "history.jsonl")


def train_and_tear(config: Config, folder: Path, step: int, start: Path | None = None) -> None:
    """Train the first stage as far as its last checkpoint, that at ``step``, and tear it: the one before counts."""
    model, tokenizer = load_model(start or ensure_base(config), torch.float32)
    trainer = build_trainer(config, config.stages[0], model, tokenizer, load_data(config), folder / "checkpoints")
    trainer.add_callback(CompletionCallback(trainer))
    trainer.train()
    (folder / "checkpoints" / f"checkpoint-{step}" / "COMPLETE.json").unlink()


def run_alone(
    config: Config,
    data: Data,
    directory: Path,
    interruption: Interruption | None = None,
    tracker: Tracker | None = None,
    judges: Judges = NO_JUDGES,
) -> Run:
    """The run around a stage, which evaluates nothing."""
    stop, mirror = interruption or Interruption(), tracker or NoTracker()
    return Run(config, directory, data, _not_evaluated, judges, stop, mirror)


def _not_evaluated(*_: Any) -> dict[str, Any]:
    raise NotImplementedError("a stage alone is not evaluated")
