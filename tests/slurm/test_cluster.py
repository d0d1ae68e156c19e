"""Sweeps on a real SLURM: what is queued, what a fault costs, and that results are those of an undisturbed run."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.slurm.conftest import SLURM, Work, result, run_alone

pytestmark = pytest.mark.slow
Undisturbed = tuple[object, dict[str, str]]
TAKE_NODE = ["--partition=high", "--exclusive", "--nodelist=n1"]


def preempt(work: Work) -> None:
    work.cluster.ask("sbatch", *TAKE_NODE, "--output=/dev/null", "--wrap", "sleep 3")


def mirrored(row: list[str]) -> list[str]:
    """The row with W&B, offline, as users have it."""
    return [word for word in row if word != "tracker=none"]


def by_torchrun(row: list[str]) -> list[str]:
    """The row by two processes."""
    return [*row, "distributed=ddp", "stage.sft.micro_batch_size=8", "stage.dpo.micro_batch_size=4"]


def one_run_equals(work: Work, undisturbed: Undisturbed, failures: int = 0) -> None:
    """The row's one run gave what it would have given, and was finished once."""
    [run] = work.runs()
    assert result(run) == undisturbed
    assert (work.events().count("finished"), work.events().count("failed")) == (1, failures)


@pytest.mark.smoke
def test_a_grid_from_submission_to_the_pareto_table(work: Work, row: list[str]) -> None:
    short = [*row, "stage=sft", "stage.max_steps=2"]
    left_out = ("stage=sft_dpo", "stage.sft", "stage.dpo", "method.refresh_every")
    short = [word for word in mirrored(short) if not word.startswith(left_out)]
    grid = work.cluster.call(
        work.cluster.environment["OGPSA_PYTHON"], "-m", "slurm.grid", *short, "method.rank=1,2",
        "method.refresh_every=2,5", "--out", str(work.file), cwd=SLURM.parent,
    )  # fmt: skip
    assert grid.returncode == 0, grid.stderr
    with work.file.open("a", encoding="utf-8") as file:
        # It is valid, and its loss is not a number after a few steps.
        crash = ["stage.learning_rate=1e30", "stage.warmup_ratio=0", "stage.log_every=1", "++stage.max_steps=6"]
        file.write(" ".join([*short, "method.rank=1", *crash]) + "\n")
    job = work.queue(OGPSA_ROWS_AT_ONCE="3")
    assert work.cluster.facts(f"{job}_4")["ArrayTaskThrottle"] == "3"
    work.ends()
    assert work.status()[-1] == "4 done, 1 failed"
    failed = work.cluster.facts(f"{job}_4")
    assert (failed["JobState"], failed["ExitCode"]) == ("FAILED", "2:0")
    table = work.status("--failed")
    assert "the gradient's norm is " in table[1] and "Traceback" not in work.printed()
    pareto = (work.results / "pareto.csv").read_text(encoding="utf-8").splitlines()
    assert len(pareto) == 1 + 4
    # A W&B run for each that ended, in the sweep's group, and one for the front.
    assert len(list(work.results.glob("*/wandb/offline-run-*"))) == 5
    assert len(list(work.results.glob("slurm/front/wandb/offline-run-*"))) == 1
    assert yaml.safe_load((work.runs()[0] / "config.yaml").read_text(encoding="utf-8"))["tracker"]["group"] == "sweep"
    # Submitted again, only what failed is queued; an appended row beside it.
    appended = [*short, "method.rank=1", "method.refresh_every=3"]
    with work.file.open("a", encoding="utf-8") as file:
        file.write(" ".join(appended) + "\n")
    assert "4 done, 0 queued or running, 2 queued as job" in work.submit().stdout
    work.ends()
    assert work.status()[-1] == "5 done, 1 failed"
    assert (work.events().count("finished"), work.events().count("failed")) == (5, 2)
    [run] = [run for run in work.runs() if "refresh_every: 3" in (run / "config.yaml").read_text(encoding="utf-8")]
    assert result(run) == run_alone([*appended, "tracker=none"], work.folder)
    # A row that ran may not be edited.
    lines = work.file.read_text(encoding="utf-8").splitlines()
    work.file.write_text("\n".join([lines[0].replace("rank=1", "rank=3"), *lines[1:]]) + "\n", encoding="utf-8")
    refused = work.submit()
    # Before it, on a busy machine, the progress of reading the rows.
    line = refused.stderr.splitlines()[-1]
    assert refused.returncode == 2 and line.startswith("error: sweep.txt:1: edited after it ran")
    assert "rank=1" in line and "rank=3" in line and "Traceback" not in refused.stderr


@pytest.mark.long
def test_two_submissions_at_the_same_instant_queue_a_row_once(
    work: Work, row: list[str], undisturbed: Undisturbed
) -> None:
    folder = work.results / "it's a row, ä"
    work.write(row, [*row, "seed=1", f'hydra.run.dir="{folder}"'])
    command = [str(SLURM / "submit.sh"), work.file.name]
    both = [
        subprocess.Popen(command, cwd=work.folder, env=work.cluster.environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(process.communicate()[0] for process in both)
    assert "0 done, 0 queued or running, 2 queued as job" in said[0]
    assert "0 done, 2 queued or running, 0 to queue" in said[1]
    work.all_done()
    assert work.events() == ["started", "finished"] * 2
    assert result(folder) == run_alone([*row, "seed=1"], work.folder)
    [other] = [run for run in work.runs() if run != folder]
    assert result(other) == undisturbed
    # A log is lines, not a bar drawn over itself.
    assert "\r" not in work.printed()


@pytest.mark.long
def test_a_warning_is_for_one_row_of_an_array(work: Work, row: list[str], undisturbed: Undisturbed) -> None:
    work.write([*row, "seed=1"], row)
    job = work.queue()
    work.until(lambda: work.log().count("sft 10/60") == 2)
    # To SLURM, one task of every array is also called by the array's own number.
    [both] = [task for task in ("0", "1") if work.cluster.facts(f"{job}_{task}")["JobId"] == job]
    work.cluster.ask("scancel", "--batch", "--signal=USR1", f"{job}_{both}")
    work.all_done()
    histories = {path.name: path.read_text(encoding="utf-8") for path in work.results.glob("slurm/events/*.tsv")}
    assert sorted(text.count("started") for text in histories.values()) == [1, 2]
    assert sorted(text.count("finished") for text in histories.values()) == [1, 1]
    other, first = sorted(work.runs(), key=lambda run: "-seed0-" in run.name)
    assert result(first) == undisturbed
    assert result(other) == run_alone([*row, "seed=1"], work.folder)


@pytest.mark.parametrize(
    "phase",
    [
        "sft 20/60",
        pytest.param("dpo 10/30", marks=pytest.mark.long),
        pytest.param("evaluating 02-dpo", marks=pytest.mark.long),
    ],
)
def test_a_preempted_row_resumes_bit_for_bit(work: Work, row: list[str], undisturbed: Undisturbed, phase: str) -> None:
    work.write(mirrored(row))
    work.queue()
    work.reaches(phase)
    preempt(work)
    work.all_done()
    assert "requeued" in work.events()
    assert work.events()[-1] == "finished"
    one_run_equals(work, undisturbed)
    # W&B was closed before the run left, and taken up again.
    assert len(list(work.runs()[0].glob("wandb/offline-run-*"))) == 2
    assert "W&B is lost" not in work.printed()


@pytest.mark.long
@pytest.mark.parametrize(
    ("processes", "signal_name"),
    [
        (1, "TERM"),
        (2, "TERM"),
        (2, "USR1"),
    ],
)
def test_a_signal_to_every_process_of_a_row_has_it_requeued(
    work: Work, row: list[str], undisturbed: Undisturbed, processes: int, signal_name: str
) -> None:
    """SIGTERM: as on a cluster that sends it to a preempted job in place of a warning."""
    row = by_torchrun(row) if processes > 1 else row
    work.write(mirrored(row))
    job = work.queue(OGPSA_PROCESSES=str(processes))
    work.reaches("sft 20/60")
    target = ["--batch", job] if signal_name == "USR1" else [f"{job}_0.0"]
    work.cluster.ask("scancel", f"--signal={signal_name}", *target)
    work.all_done()
    assert work.events() == ["started", "requeued", "started", "finished"]
    assert "sft: resumes from checkpoint-" in work.log()
    one_run_equals(work, run_alone(row, work.folder, processes) if processes > 1 else undisturbed)


@pytest.mark.long
def test_a_row_at_its_time_limit_is_requeued_and_resumes(work: Work, row: list[str]) -> None:
    longer = [*row, "stage.sft.max_steps=1500"]
    work.write(longer)
    work.queue("--time=2", OGPSA_WARNING_SECONDS="60")
    work.until(lambda: "requeued" in work.events())
    # What had been done is not done again.
    assert "sft: saved at step" in work.log()
    work.all_done()
    assert "sft: resumes from checkpoint-" in work.log()
    one_run_equals(work, run_alone(longer, work.folder))


@pytest.mark.long
def test_scontrol_requeue_loses_nothing(work: Work, row: list[str], undisturbed: Undisturbed) -> None:
    work.write(row)
    job = work.queue()
    work.reaches("sft 20/60")
    work.cluster.ask("scontrol", "requeue", f"{job}_0")
    work.all_done()
    assert work.events().count("started") == 2
    one_run_equals(work, undisturbed)


@pytest.mark.long
def test_a_row_that_is_ended_before_it_listens_is_requeued(
    work: Work, row: list[str], undisturbed: Undisturbed
) -> None:
    """As on a cluster that sends a preempted job SIGTERM in place of a warning."""
    work.write(row)
    job = work.queue()
    work.until(lambda: work.events())

    def requeued() -> bool:
        work.cluster.call("scancel", "--signal=TERM", f"{job}_0.0")
        return "requeued" in work.events()

    work.until(requeued)
    work.all_done()
    one_run_equals(work, undisturbed)


@pytest.mark.long
def test_a_cancelled_row_stays_cancelled_and_can_be_submitted_again(
    work: Work, row: list[str], undisturbed: Undisturbed
) -> None:
    work.write(row)
    job = work.queue()
    work.reaches("sft 20/60")
    work.cluster.ask("scancel", job)
    work.ends()
    assert work.cluster.facts(f"{job}_0")["JobState"] == "CANCELLED"
    assert work.status()[-1] == "1 cancelled"
    work.queue()
    work.all_done()
    one_run_equals(work, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize(
    ("disturb", "why"),
    [
        (["scancel", "--batch", "--signal=USR1"], "requeued 0 times already, the most that OGPSA_MOST_REQUEUES allows"),
        (["scontrol", "requeue"], "requeued 1 times, more than OGPSA_MOST_REQUEUES allows"),
    ],
)
def test_a_row_is_requeued_no_more_than_allowed(work: Work, row: list[str], disturb: list[str], why: str) -> None:
    work.write(row)
    job = work.queue(OGPSA_MOST_REQUEUES="0")
    work.reaches("sft 20/60")
    work.cluster.ask(*disturb, f"{job}_0")
    work.ends()
    assert work.cluster.facts(f"{job}_0")["JobState"] == "FAILED"
    assert why in work.status()[1]


@pytest.mark.long
def test_the_controller_may_die_while_rows_run(work: Work, row: list[str], undisturbed: Undisturbed) -> None:
    work.write(row)
    work.queue()
    work.reaches("sft 10/60")
    os.kill(work.cluster.daemon("slurmctld"), signal.SIGKILL)
    assert work.status()[-1] == "1 unknown"
    refused = work.submit()
    assert refused.returncode == 2 and refused.stderr.startswith("error: squeue: ")
    work.cluster.script("controller", str(work.cluster.directory))
    work.all_done()
    assert work.events() == ["started", "finished"]
    one_run_equals(work, undisturbed)


@pytest.mark.long
def test_a_node_may_die_while_a_row_runs(work: Work, row: list[str]) -> None:
    longer = [*row, "stage.sft.max_steps=800"]
    work.write(longer)
    work.queue("--nodelist=n1")
    work.reaches("sft 10/800")
    try:
        # Its daemon alone: the row lives on, as on a node that only lost its network, and keeps the run's lock.
        os.kill(work.cluster.daemon("slurmd.n1"), signal.SIGKILL)
        work.until(lambda: "n1 down" in work.nodes())
    finally:
        work.cluster.script("node", str(work.cluster.directory), "n1")
    work.all_done()
    assert work.events().count("started") > 1
    one_run_equals(work, run_alone(longer, work.folder), work.events().count("failed"))


@pytest.mark.long
def test_a_full_disk_fails_the_row_and_costs_nothing(work: Work, row: list[str], undisturbed: Undisturbed) -> None:
    disk = work.folder / "outputs"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(disk)], check=True)
    try:
        work.write(row)
        job = work.queue()
        work.ends()
        assert work.cluster.facts(f"{job}_0")["JobState"] == "FAILED"
        assert work.status()[-1] == "no space left on the disk of outputs/sweep"
        subprocess.run(["mount", "-o", "remount,size=500m", str(disk)], check=True)
        work.queue()
        work.all_done()
        # What the first task wrote of its end may not have fitted.
        one_run_equals(work, undisturbed, failures=min(work.events().count("failed"), 1))
    finally:
        work.cluster.call("scancel", "--name=sweep")
        work.ends()
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.long
@pytest.mark.parametrize(("victim", "state"), [("process", "1 failed"), ("script", "1 stopped")])
def test_two_nodes_are_requeued_together_and_fail_together(work: Work, row: list[str], victim: str, state: str) -> None:
    both = by_torchrun(row)
    work.write(both)
    job = work.queue("--nodes=2", OGPSA_PROCESSES="1", OGPSA_HEAD="127.0.0.1")
    work.reaches("sft 10/60")
    # On the head, without a warning: the process of rank 0, or the task itself.
    if victim == "process":
        [head] = [pid for pid in _processes("slurm.worker") if _variable(pid, "RANK") == "0"]
    else:
        [head] = _processes("slurm_script")
    os.kill(head, signal.SIGKILL)
    work.ends()
    assert work.cluster.facts(f"{job}_0")["JobState"] == "FAILED"
    assert work.status()[-1] == state
    assert not _processes("slurm.worker")
    # Submitted again it resumes from its last checkpoint, and is requeued when warned.
    again = work.queue("--nodes=2", OGPSA_PROCESSES="1", OGPSA_HEAD="127.0.0.1")
    work.reaches("sft 20/60")
    work.cluster.ask("scancel", "--batch", "--signal=USR1", again)
    work.until(lambda: "requeued" in work.events())
    work.all_done()
    one_run_equals(work, run_alone(both, work.folder, processes=2), failures=int(victim == "process"))


def _processes(what: str) -> list[int]:
    """A module of unbuffered Pythons, or a script of bash."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        python = words[1:2] == [b"-u"] and what.encode() in words[:5]
        if python or (words[0].endswith(b"bash") and words[1:2] and words[1].endswith(what.encode())):
            found.append(int(path.parent.name))
    return found


def _variable(pid: int, name: str) -> str:
    pairs = (entry.partition(b"=") for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return {key.decode(): value.decode() for key, _, value in pairs}[name]
