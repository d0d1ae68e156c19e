"""An optimizer step without projection, with ours and with the authors' procedure, taken in turn in one run.

A small model trains in TRL, each procedure in a process of its own. With --one-model the three take turns over one
model (SFT, plain loop; torch and transformers alone), so that a 7B model fits a GPU.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import cast, get_args

import torch

from benchmarks.architectures import architecture
from benchmarks.common import GIB, Row, in_turn, listed, parser, positive, run, write
from benchmarks.one_model import OneModel
from benchmarks.worker import Job, Procedure, Stage, Worker, projection_seconds
from ogpsa.utils.errors import UserError, closest_match

PROCEDURES: tuple[Procedure, ...] = get_args(Procedure)
# The paper's K.
REFRESH_EVERY = {"sft": 30, "dpo": 5}
# The default of ``stage.log_every``.
LOG_EVERY = 10
WARMUP = 1
NOTES = (
    "step: median seconds of a step, without the refresh and the log line; over baseline: ratio of the medians. "
    "projection: what `Subspace.project_` takes, in percent of a baseline step. log line: what a logged step takes "
    "beyond that, its diagnostics included. refresh: median seconds.",
    f"overhead: (step + log line/{LOG_EVERY} + refresh/K) over the baseline's, less 1. reference share: samples of the "
    "reference passes per training sample, M·N/(K·rows). beyond share: the one less the other. The run logs and "
    "refreshes more often than that, so that there are several of each to take the median of.",
    "peak: of a process with all it holds (CPU: resident set, libraries included; GPU: the allocator), refreshes too.",
    "authors: re-implemented from the description (`benchmarks/authors.py`). On a CPU the host is the device, so its "
    "references are not copied.",
)


def main() -> None:
    command = parser(__doc__.splitlines()[0])
    command.add_argument("--model", default="llama_50m", help="architecture, name or name:layers")
    command.add_argument("--one-model", action="store_true", help="take turns over one model; SFT alone")
    command.add_argument("--stage", type=listed, default=["sft", "dpo"], help="stages, separated by commas")
    command.add_argument("--rank", type=positive, default=2, help="directions r, from as many reference sets M")
    command.add_argument("--samples", type=positive, default=64, help="rows (DPO: pairs) of each reference set (N)")
    command.add_argument("--refresh-every", type=positive, help="K; by default the paper's, 30 for SFT and 5 for DPO")
    command.add_argument("--rows", type=positive, default=8, help="rows of an optimizer step; half as many pairs")
    command.add_argument("--micro-rows", type=positive, default=2, help="rows of a micro-batch; half as many pairs")
    command.add_argument("--tokens", type=positive, default=32, help="tokens of a row")
    command.add_argument("--bf16", action="store_true", help="bf16 autocast over fp32 weights")
    options = command.parse_args()
    device = torch.device(options.device)
    rounds = options.rounds or 24
    if options.smoke:
        options.model, options.samples, options.rows, options.micro_rows, options.tokens = "smoke", 4, 4, 2, 8
        rounds = 3
    architecture(options.model)
    for stage in options.stage:
        if stage not in REFRESH_EVERY:
            raise UserError(f"--stage: '{stage}' is none; allowed: sft, dpo{closest_match(stage, REFRESH_EVERY)}")
    if options.micro_rows % 2 or options.rows % options.micro_rows:
        raise UserError(
            f"--micro-rows: {options.micro_rows} found, but it must be even and divide --rows={options.rows}"
        )
    tables, measured = {}, {}
    # At least three refreshes in the measured rounds.
    turns = max(1, rounds // 3)
    for stage in ["sft"] if options.one_model else options.stage:
        rows, micro_rows = (options.rows, options.micro_rows)
        if stage == "dpo":
            rows, micro_rows = rows // 2, micro_rows // 2
        job = Job(
            procedure="baseline",
            stage=cast(Stage, stage),
            architecture=options.model,
            rows=rows,
            micro_rows=micro_rows,
            tokens=options.tokens,
            rank=options.rank,
            samples=options.samples,
            refresh_every=turns,
            steps=WARMUP + rounds,
            device=device.type,
            bf16=options.bf16,
        )
        found = (over_one_model if options.one_model else in_processes)(job, rounds)
        every = options.refresh_every or REFRESH_EVERY[stage]
        title = f"{stage.upper()}, {options.model}, r = {job.rank}, N = {job.samples}, K = {every}"
        tables[f"{title}, {rows} {'pairs' if stage == 'dpo' else 'rows'} of {job.tokens} tokens a step"] = [
            *table(found, turns, every, job.rank * job.samples / (every * rows))
        ]
        measured[stage] = found
    settings = {name: value for name, value in vars(options).items() if name != "out"} | {"rounds": rounds}
    write("train_step", options.out, device, settings | {"measured": measured}, tables, NOTES)


def in_processes(job: Job, rounds: int) -> dict[str, list[Row]]:
    """Measure the three procedures in TRL, each in its own process."""
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(job.of(name))) for name in PROCEDURES}
        for worker in workers.values():
            worker.wait_until_ready()
        return in_turn({name: worker.step for name, worker in workers.items()}, rounds, WARMUP)


def over_one_model(job: Job, rounds: int) -> dict[str, list[Row]]:
    """Measure the three procedures over one model."""
    model = OneModel(job)
    return in_turn({name: partial(model.step, name) for name in PROCEDURES}, rounds, WARMUP)


def table(found: Mapping[str, Sequence[Row]], turns: int, every: int, share: float) -> list[Row]:
    """A row for each procedure.

    Args:
        turns: steps between two refreshes in the run; ``every``: K, steps between two in the figures.
        share: samples of the reference passes per training sample.
    """
    steps, lines = {}, {}
    for name, taken in found.items():
        plain = {logged: [row["seconds"] - row["refresh_seconds"] for row in taken if row["logged"] == logged]
                 for logged in (False, True)}  # fmt: skip
        steps[name] = median(plain[False])
        lines[name] = max(0.0, median(plain[True]) - steps[name]) if plain[True] else 0.0
    base = steps["baseline"]
    rows = []
    for name, taken in found.items():
        cost: Row = {
            "procedure": name,
            "step_s": steps[name],
            "over_baseline": steps[name] / base,
            "projection_%": None,
            "log_line_s": lines[name],
            "refresh_s": None,
            "overhead_%": None,
            "reference_share_%": None,
            "beyond_share_%": None,
            "peak_GiB": max(row["peak_bytes"] for row in taken) / GIB,
        }
        if name != "baseline":
            refresh = median(row["refresh_seconds"] for i, row in enumerate(taken) if (i + WARMUP) % turns == 0)
            whole = steps[name] + lines[name] / LOG_EVERY + refresh / every
            overhead = whole / (base + lines["baseline"] / LOG_EVERY) - 1
            cost |= {
                "refresh_s": refresh,
                "overhead_%": 100 * overhead,
                "reference_share_%": 100 * share,
                "beyond_share_%": 100 * (overhead - share),
            }
        if name == "ogpsa":
            cost["projection_%"] = 100 * projection_seconds(taken) / base
        rows.append(cost)
    return rows


if __name__ == "__main__":
    sys.exit(run(main))
