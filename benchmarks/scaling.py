"""The cost of a step against the number of processes and against K, as a ratio to the baseline in the same run.

The global batch is the same for any number of processes. Needs the whole environment (TRL).
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from statistics import fmean, median

import torch

from benchmarks.architectures import architecture
from benchmarks.common import Row, in_turn, listed, parser, positive, run, write
from benchmarks.worker import LOG_TURNS, Job, Worker, projection_seconds
from ogpsa.utils.errors import UserError

KS = (1, 5, 10, 30, 100, None)
MEASURED_K = 5
NOTES = (
    "step: median seconds of a step, without the refresh; over baseline: ratio of the medians. refresh: median "
    "seconds. The largest value over the processes counts.",
    "cost over baseline at K: (step + refresh/K) over the baseline's step, from the medians at K = 5; measured: the "
    f"mean over whole periods of K steps, with a log line every {LOG_TURNS}. never: one estimate for the whole run. "
    "streaming: 1/K of the samples at every step.",
    "reference share: samples of the reference passes per training sample, M·N/(K·rows).",
)


def main() -> None:
    command = parser(__doc__.splitlines()[0])
    command.add_argument("--model", default="llama_50m", help="architecture, name or name:layers")
    command.add_argument("--processes", type=listed, default=["1", "2"], help="numbers of processes (DDP)")
    command.add_argument("--rank", type=positive, default=2, help="directions r, from as many reference sets M")
    command.add_argument("--samples", type=positive, default=16, help="rows of each reference set (N)")
    command.add_argument("--rows", type=positive, default=8, help="rows of an optimizer step, over all processes")
    command.add_argument("--micro-rows", type=positive, default=2, help="rows of a micro-batch in a process")
    command.add_argument("--tokens", type=positive, default=32, help="tokens of a row")
    command.add_argument("--bf16", action="store_true", help="bf16 autocast over fp32 weights")
    options = command.parse_args()
    device = torch.device(options.device)
    # Whole periods of K.
    rounds = MEASURED_K * max(1, (options.rounds or 20) // MEASURED_K)
    if options.smoke:
        options.model, options.samples, options.rows, options.tokens, rounds = "smoke", 8, 4, 8, MEASURED_K
    architecture(options.model)
    for number in options.processes:
        if not number.isdecimal() or int(number) < 1 or options.rows % (int(number) * options.micro_rows):
            raise UserError(
                f"--processes: '{number}' found, but --rows={options.rows} must be a multiple of it times "
                f"--micro-rows={options.micro_rows}"
            )
    job = Job(
        procedure="baseline",
        stage="sft",
        architecture=options.model,
        rows=options.rows,
        micro_rows=options.micro_rows,
        tokens=options.tokens,
        rank=options.rank,
        samples=options.samples,
        refresh_every=MEASURED_K,
        # The warm-up is a whole period, too.
        steps=MEASURED_K + rounds,
        device=device.type,
        bf16=options.bf16,
    )
    share = job.rank * job.samples / job.rows
    worlds: list[Row] = []
    intervals: list[Row] = []
    measured = {}
    for number in map(int, options.processes):
        jobs = {"baseline": replace(job, processes=number)}
        jobs[f"K = {MEASURED_K}"] = replace(jobs["baseline"], procedure="ogpsa")
        if not intervals:
            jobs["K = 1"] = replace(jobs[f"K = {MEASURED_K}"], refresh_every=1)
            jobs["streaming"] = replace(jobs[f"K = {MEASURED_K}"], streaming=True)
        found = measure(jobs, rounds)
        measured[number] = found
        worlds.append(world_row(number, found))
        intervals = intervals or interval_rows(found, share)
    settings = {name: value for name, value in vars(options).items() if name != "out"} | {"rounds": rounds}
    title = f"{job.architecture}, SFT, r = {job.rank}, N = {job.samples}, {job.rows} rows of {job.tokens} tokens a step"
    tables = {f"Processes: {title}": worlds, f"Steps between two refreshes: {title}": intervals}
    write("scaling", options.out, device, settings | {"measured": measured}, tables, NOTES)


def measure(jobs: Mapping[str, Job], rounds: int) -> dict[str, list[Row]]:
    """Measure the jobs in turn, each in processes of its own."""
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(job)) for name, job in jobs.items()}
        for worker in workers.values():
            worker.wait_until_ready()
        return in_turn({name: worker.step for name, worker in workers.items()}, rounds, warmup=MEASURED_K)


def world_row(processes: int, found: Mapping[str, Sequence[Row]]) -> Row:
    """Cost of a step on this many processes."""
    base, plain, refresh = decomposed(found)
    return {
        "processes": processes,
        "baseline_step_s": base,
        "step_s": plain,
        "over_baseline": plain / base,
        "projection_%": 100 * projection_seconds(found[f"K = {MEASURED_K}"]) / base,
        "refresh_s": refresh,
        f"cost_over_baseline_at_K_=_{MEASURED_K}": (plain + refresh / MEASURED_K) / base,
    }


def interval_rows(found: Mapping[str, Sequence[Row]], share: float) -> list[Row]:
    """Cost of a step against K; ``share``: samples of one refresh per training sample of one step."""
    base, plain, refresh = decomposed(found)
    means = {name: fmean(row["seconds"] for row in steps) / base for name, steps in found.items()}
    rows = [
        {
            "K": "never" if every is None else str(every),
            "cost_over_baseline": (plain + (refresh / every if every else 0)) / base,
            "measured": means.get(f"K = {every}"),
            "reference_share": share / every if every else 0.0,
        }
        for every in KS
    ]
    streaming = {"K": f"{MEASURED_K}, streaming", "cost_over_baseline": None, "measured": means["streaming"]}
    return [*rows, streaming | {"reference_share": share / MEASURED_K}]


def decomposed(found: Mapping[str, Sequence[Row]]) -> tuple[float, float, float]:
    """Median seconds of a baseline step, of a projected step without its refresh, and of a refresh."""
    steps = found[f"K = {MEASURED_K}"]
    return (
        median(row["seconds"] for row in found["baseline"]),
        median(row["seconds"] - row["refresh_seconds"] for row in steps),
        median(row["refresh_seconds"] for row in steps[::MEASURED_K]),
    )


if __name__ == "__main__":
    sys.exit(run(main))
