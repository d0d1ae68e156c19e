"""Measure the testbed's untuned models: ``python -m experiments.bases [--bases 0.0,0.1,…] [--out DIR] [--ship]``.

For each base, a world (``data.seed``) and a seed (``model.base.seed``): accuracy on every general task, safety, and how
far the gradients of two halves of each reference set agree at the first step of each stage (a base at a stationary
point of its reference sets has no reference gradient to protect). Writes ``base.json`` and ``base.md``. The rest of the
testbed's calibration is the experiment ``calibration``. ``--ship`` trains the first base of world 0 once more and puts
it into the package.
"""

import re
import shutil
import sys
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import TrainerCallback

from eval.evaluation import evaluate
from eval.scores.aggregate import AVERAGES
from ogpsa.app.compose import compose_config
from ogpsa.config import Config
from ogpsa.data.rows import load_data
from ogpsa.models.load import load_model
from ogpsa.projection import dots
from ogpsa.testbed.cache import RECIPE, WEIGHTS, ensure_base, recipe, train
from ogpsa.training.seam import ProjectedTrainer
from ogpsa.training.trainer import build_trainer
from ogpsa.utils.command_line import Parser, run_program
from ogpsa.utils.errors import EXIT_DONE
from ogpsa.utils.files import COMPLETE_FILE, write_atomically, write_json
from ogpsa.utils.libraries import common_kernels, one_thread, quiet_libraries
from ogpsa.utils.table import Table, markdown

OUT = Path("outputs/reports/testbed/calibration")
# Of the experiments: five of world 0, three of world 1.
BASES = "0.0,0.1,0.2,0.3,0.4,1.0,1.1,1.2"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m experiments.bases", description=__doc__)
    parser.add_argument(
        "--bases", type=_bases, default=BASES, help="WORLD.SEED, separated by commas (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder of base.json and base.md (default: %(default)s)")
    parser.add_argument("--ship", action="store_true", help="put the base of world 0 into the package, and end")
    options = parser.parse_args(arguments)
    common_kernels()
    quiet_libraries()
    if options.ship:
        ship()
        return EXIT_DONE
    bases = {name: measure(*map(int, name.split("."))) for name in options.bases}
    write_json(options.out / "base.json", bases)
    text = markdown(table(bases)).rstrip() + "\n"
    write_atomically(options.out / "base.md", text)
    sys.stdout.write(text)
    return EXIT_DONE


def _bases(text: str) -> list[str]:
    """The names of bases, or ``ArgumentTypeError``."""
    names = text.split(",")
    for name in names:
        if not re.fullmatch(r"\d+\.\d+", name):
            raise ArgumentTypeError(f"found '{name}'; expected WORLD.SEED, as 0.1")
    return names


def ship() -> None:
    """Train the base of world 0 and put it, with its recipe, where the package ships it."""
    with tempfile.TemporaryDirectory() as cache:
        trained, config = Path(cache) / "base", compose_config([])
        train(config, trained)
        shutil.rmtree(WEIGHTS, ignore_errors=True)
        shutil.copytree(trained, WEIGHTS, ignore=shutil.ignore_patterns(COMPLETE_FILE))
    write_json(RECIPE, recipe(config))


def measure(world: int, seed: int) -> dict[str, Any]:
    """One base: scores and, per stage, the halves' cosine for each reference set."""
    # Twice as many directions as sets cut each set into two chunks: the halves.
    which = [f"data.seed={world}", f"model.base.seed={seed}", "method=ogpsa"]
    halves = {
        "sft": compose_config([*which, "stage=sft", "method.rank=4"]),
        "dpo": compose_config([*which, "stage=dpo", "method.rank=2"]),
    }
    base = ensure_base(halves["sft"])
    with tempfile.TemporaryDirectory() as folder, one_thread():
        load_data(halves["sft"]).write(Path(folder))
        place = Path(folder)
        scores = evaluate(base, place / "evaluation", place / "eval", halves["sft"].eval, precision="fp32")
        agreement = {stage: half_agreement(config, base) for stage, config in halves.items()}
    return {"base": base.name, "scores": scores, "half_agreement": agreement}


def half_agreement(config: Config, base: Path) -> dict[str, float]:
    """Cosine of the two halves' gradients of each reference set at the first step."""
    names, gradients = reference_gradients(config, base)
    gram = torch.stack([dots(rows, rows) for rows in gradients]).sum(dim=0)
    cosines = gram / (gram.diagonal()[:, None] * gram.diagonal()).sqrt()
    return {name: float(cosines[2 * index, 2 * index + 1]) for index, name in enumerate(names[::2])}


def reference_gradients(config: Config, checkpoint: Path) -> tuple[list[str], list[Tensor]]:
    """The set of each chunk of reference rows, and the chunks' gradients at the first step of training ``checkpoint``.

    Returns:
        The m names, and for each parameter a tensor [m, n].
    """
    [stage] = config.stages
    model, tokenizer = load_model(checkpoint, torch.float32, template_kwargs=config.model.template_kwargs)
    with tempfile.TemporaryDirectory() as output:
        trainer = build_trainer(config, stage, model, tokenizer, load_data(config), Path(output))
        projecting = cast(ProjectedTrainer, trainer)
        trainer.add_callback(_Capture(projecting))
        try:
            trainer.train()
        except _CapturedError as captured:
            found = captured.references
    return [chunk.name for chunk in projecting.projector.chunks], found


class _CapturedError(Exception):
    """Ends a training that has given its reference gradients."""

    def __init__(self, references: list[Tensor]) -> None:
        super().__init__()
        self.references = references


class _Capture(TrainerCallback):
    """Takes the reference gradients before the first estimate, and ends the training there."""

    def __init__(self, trainer: ProjectedTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        raise _CapturedError(self.trainer.projector.reference_gradients())


def table(bases: dict[str, dict[str, Any]]) -> Table:
    """One column per base."""
    first = next(iter(bases.values()))
    scores = {f"base: {group}": [base["scores"][group] for base in bases.values()] for group in AVERAGES}
    scores |= {
        f"base: {name} accuracy": [base["scores"]["benchmarks"][name]["value"] for base in bases.values()]
        for name, entry in first["scores"]["benchmarks"].items()
        if entry["metric"] == "accuracy"
    }
    scores |= {
        f"{stage}: cosine of the halves of {name}": [base["half_agreement"][stage][name] for base in bases.values()]
        for stage, sets in first["half_agreement"].items()
        for name in sets
    }
    lines = [[title, *(f"{value:.2f}" for value in values)] for title, values in scores.items()]
    return Table(["", *bases], lines, align="l" + "r" * len(bases))


if __name__ == "__main__":
    sys.exit(run_program(main))
