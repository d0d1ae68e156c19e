"""Align a model and evaluate it, once or in a sweep: ``python train.py --help``."""

from pathlib import Path
from typing import TYPE_CHECKING

import hydra

from ogpsa.app.program import Program

if TYPE_CHECKING:
    from ogpsa.config import Config


def check(config: "Config", directory: Path) -> None:
    """Refuse what the files, the directory or the benchmarks do not allow, before torch is imported."""
    from eval.validate import check_run

    check_run(config, directory)


program = Program(check)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
@program.task
def main(config: "Config", directory: Path, overrides: list[str]) -> tuple[float, float]:
    """Run the pipeline; returns the safety and the utility score of its last stage."""
    from eval.evaluation import evaluate
    from eval.judging.reward import JUDGES
    from ogpsa.pipeline import run

    return run(config, directory, evaluate, overrides, JUDGES)


if __name__ == "__main__":
    program.start(main)
