"""The whole program under torchrun: one directory, one voice, one exit code."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ogpsa.runs.directory import LOCK_FILE
from ogpsa.utils.errors import EXIT_REQUEUE, EXIT_USER_ERROR
from ogpsa.utils.files import exclusive, is_complete, read_json
from tests.distributed.launch import exit_codes, torchrun
from tests.program import PROGRAM, Result

pytestmark = pytest.mark.slow

DDP = ["distributed=ddp", "hydra.run.dir=run"]
TRAINING = [
    "stage=sft_dpo", "method=ogpsa", "method.samples=7", "method.refresh_every=2",
    "stage.sft.micro_batch_size=4", "stage.sft.epochs=9", "stage.sft.save_every=5", "stage.sft.log_every=1",
    "stage.dpo.batch_size=8", "stage.dpo.micro_batch_size=2", "stage.dpo.save_every=5",
]  # fmt: skip
# Longer than anything here takes: a process that hangs fails the test.
PATIENCE = 300


def start(*overrides: str, cwd: Path) -> subprocess.Popen[str]:
    return torchrun(str(PROGRAM), *overrides, cwd=cwd)


def finish(process: subprocess.Popen[str]) -> Result:
    try:
        stdout, stderr = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return Result(process.returncode, stdout, stderr)


def process_of_rank(launcher: subprocess.Popen[str], rank: int) -> int:
    """The process id of the worker that torchrun gave ``rank``."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    [found] = [
        int(pid)
        for pid in children
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    ]
    return found


def signal_when(
    reached: Callable[[], bool], launcher: subprocess.Popen[str], number: signal.Signals, rank: int
) -> Result:
    """Send one process a signal at a point of the run, and wait for the end of all."""
    while not reached():
        if launcher.poll() is not None:
            pytest.fail(f"ended before the point was reached:\n{launcher.communicate()[1]}")
        time.sleep(0.01)
    os.kill(process_of_rank(launcher, rank), number)
    return finish(launcher)


@pytest.mark.smoke
def test_killed_signalled_and_finished(small: list[str], tmp_path: Path) -> None:
    directory = tmp_path / "run"
    checkpoints = directory / "01-sft" / "checkpoints"
    command = [*small, *DDP, *TRAINING]

    killed = signal_when(
        lambda: is_complete(checkpoints / "checkpoint-5"), start(*command, cwd=tmp_path), signal.SIGKILL, rank=1
    )
    assert -signal.SIGKILL in exit_codes(killed.stderr)

    asked = signal_when(
        lambda: is_complete(checkpoints / "checkpoint-15"), start(*command, cwd=tmp_path), signal.SIGTERM, rank=1
    )
    assert exit_codes(asked.stderr) == [EXIT_REQUEUE, EXIT_REQUEUE], asked.stderr
    log = (directory / "run.log").read_text()
    [left] = [line for line in log.splitlines() if "and stopped, as a signal asked" in line]
    step = int(left.partition("saved at step ")[2].split()[0])
    assert is_complete(checkpoints / f"checkpoint-{step}")

    final = finish(start(*command, cwd=tmp_path))
    assert final.code == 0, final.stderr
    log = (directory / "run.log").read_text()
    assert f"sft: resumes from checkpoint-{step}\n" in log
    assert log.count("evaluating 01-sft") == log.count("evaluating 02-dpo") == 1
    assert " ".join(final.stdout.split()).count("| after SFT | after DPO |") == 1
    metrics = read_json(directory / "metrics.json")
    assert metrics["stages"].keys() == {"sft", "dpo"}
    sessions = read_json(directory / "provenance.json")["sessions"]
    assert [session["host"]["world_size"] for session in sessions] == [2, 2, 2]
    assert not list(directory.rglob("checkpoints"))

    written = {
        path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file() and path.name != LOCK_FILE
    }
    again = finish(start(*command, cwd=tmp_path))
    assert again.code == 0, again.stderr
    # In front of it transformers may say that W&B is offline.
    assert "after DPO" in again.stdout and final.stdout.endswith(again.stdout)
    assert written == {path: path.stat().st_mtime_ns for path in written}


def errors(result: Result) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.long
def test_mistakes_are_reported_once(small: list[str], tmp_path: Path) -> None:
    result = finish(start(*small, "hydra.run.dir=run", cwd=tmp_path))
    assert errors(result) == [
        "error: distributed.name: found single, but torchrun started 2 processes; allowed: ddp, fsdp2, zero2, zero3"
    ]
    assert exit_codes(result.stderr) == [EXIT_USER_ERROR, EXIT_USER_ERROR]
    assert not list(tmp_path.iterdir())

    # The main process alone can see this one, and the others wait for it.
    with exclusive(tmp_path / "run" / LOCK_FILE, "busy"):
        result = finish(start(*small, *DDP, *TRAINING, cwd=tmp_path))
    assert len(errors(result)) == 1 and "another process runs in" in errors(result)[0]
    assert exit_codes(result.stderr) == [EXIT_USER_ERROR, EXIT_USER_ERROR]

    # So it is of this one, in the middle of the run.
    result = finish(start(*small, *DDP, *TRAINING, "stage.sft.max_length=8", cwd=tmp_path))
    assert len(errors(result)) == 3 and all(": 8 tokens leave no answer" in line for line in errors(result))
    assert exit_codes(result.stderr) == [EXIT_USER_ERROR, EXIT_USER_ERROR]

    result = finish(start("-m", *small, *DDP, "seed=0,1", cwd=tmp_path))
    assert errors(result) == [
        "error: --multirun: found under torchrun, which runs one point; start torchrun for each point"
    ]
    assert exit_codes(result.stderr) == [EXIT_USER_ERROR, EXIT_USER_ERROR]
