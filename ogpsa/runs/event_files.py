"""TensorBoard's event files of a run, in its directory: ``tensorboard --logdir outputs`` shows every run below it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from ogpsa.runs.score_table import table

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class EventFiles:
    """Training's numbers in one TensorBoard run per stage, the scores in another; leaving ``with`` closes them.

    A stage's steps begin at one again, and a resumed stage's first step hides what an earlier session logged beyond it.

    Args:
        directory: the run's; the files go to ``tensorboard/`` in it.
        config: shown as text beside each stage's numbers.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        self._folder = directory / FOLDER
        self._config = config
        self._writers: dict[str, SummaryWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()

    def log(self, values: Mapping[str, Any]) -> None:
        """Write the numbers of one training step, as ``training_values`` gives them."""
        stage, step = values["train/stage"], values["train/global_step"]
        writer = self._writer(stage, step)
        for name, value in values.items():
            if name.startswith(f"{stage}/"):
                writer.add_scalar(name.removeprefix(f"{stage}/"), value, step)
        # What a kill takes from the file is logged again when the stage resumes.
        writer.flush()

    def summarize(self, metrics: Mapping[str, Any]) -> None:
        """Write the scores by checkpoint, the base's at step 0, and their table as text."""
        writer = self._writer("scores", 0)
        for step, scores in enumerate([metrics["base"], *metrics["stages"].values()]):
            averages = {name: scores[name] for name in ("safety", "utility", "over_refusal")}
            values = averages | {name: entry["value"] for name, entry in scores["benchmarks"].items()}
            for name, value in values.items():
                if value is not None and math.isfinite(value):
                    writer.add_scalar(name, value, step)
        writer.add_text("scores", table(metrics["base"], metrics["stages"]))
        writer.flush()

    def _writer(self, name: str, step: int) -> "SummaryWriter":
        if name not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            self._writers[name] = SummaryWriter(str(self._folder / name), purge_step=step)
            text = yaml.safe_dump(dict(self._config), sort_keys=False)
            self._writers[name].add_text("configuration", "".join(f"    {line}\n" for line in text.splitlines()), step)
        return self._writers[name]
