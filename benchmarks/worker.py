"""Trainers in processes of their own, which take an optimizer step on request.

Processes separate the trainers' memory and global state; turns of one step let a drift of the machine affect all of
them. The other end is ``benchmarks/trl_process.py``, started over torchrun where a job has several processes.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal, TextIO

import torch

from benchmarks.common import HERE, Row

Stage = Literal["sft", "dpo"]
Procedure = Literal["baseline", "ogpsa", "authors"]
# Steps between two log lines, with their diagnostics, in a benchmark's run.
LOG_TURNS = 3


@dataclass(frozen=True)
class Job:
    """The training to run.

    Attributes:
        rows: rows (DPO: pairs) of an optimizer step, over all processes.
        micro_rows: rows of a micro-batch in one process.
        tokens: of a row; in DPO of each of its two answers, prompt included.
        rank: directions (r), from as many reference sets (M = r).
        samples: rows of each reference set (N).
        refresh_every: optimizer steps between two refreshes (K); None refreshes once.
        steps: optimizer steps in all.
        bf16: bf16 autocast over fp32 weights.
    """

    procedure: Procedure
    stage: Stage
    architecture: str
    rows: int
    micro_rows: int
    tokens: int
    rank: int
    samples: int
    refresh_every: int | None
    steps: int
    processes: int = 1
    device: str = "cpu"
    bf16: bool = False
    streaming: bool = False

    def of(self, procedure: Procedure) -> "Job":
        """The same job by another procedure."""
        return replace(self, procedure=procedure)


class Worker:
    """Handle of the processes that work on a job; leaving its ``with`` block ends them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.folder = tempfile.TemporaryDirectory(prefix="ogpsa-benchmark-")
        self.log = Path(self.folder.name) / "log"
        self.server = socket.socket(socket.AF_UNIX)
        address = str(Path(self.folder.name) / "socket")
        self.server.bind(address)
        self.server.listen()
        self.server.settimeout(1)
        quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        # The same threads in all, whatever the number of processes.
        threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // job.processes))}
        launch = [sys.executable, "-m"]
        if job.processes > 1:
            launch += ["torch.distributed.run", "--standalone", f"--nproc-per-node={job.processes}", "-m"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*launch, "benchmarks.trl_process", address, json.dumps(asdict(job))],
                cwd=HERE.parent,
                env=os.environ | quiet | threads,
                stdout=log,
                stderr=log,
            )
        self.streams: list[TextIO] = []

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self.streams:
            stream.close()
        self.server.close()
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()

    def wait_until_ready(self) -> None:
        """Wait for every process to stand before its first step.

        Raises:
            RuntimeError: a process ended; the end of its log is told.
        """
        while len(self.streams) < self.job.processes:
            try:
                connection, _ = self.server.accept()
            except TimeoutError:
                if self.process.poll() is not None:
                    raise self._failure() from None
            else:
                connection.setblocking(True)
                self.streams.append(connection.makefile("rw", encoding="utf-8"))
                connection.close()

    def step(self) -> dict[str, Any]:
        """Have one optimizer step taken: each measurement's largest value over the processes.

        Returns:
            ``seconds``, and of them ``refresh_seconds``; ``peak_bytes`` of memory; whether the step was ``logged``,
            and then ``projection_seconds``, the mean of the steps since the last log line.

        Raises:
            RuntimeError: as in ``wait_until_ready``.
        """
        for stream in self.streams:
            stream.write("step\n")
            stream.flush()
        lines = [stream.readline() for stream in self.streams]
        if not all(lines):
            raise self._failure()
        found = [json.loads(line) for line in lines]
        return {key: None if value is None else max(measured[key] for measured in found)
                for key, value in found[0].items()}  # fmt: skip

    def _failure(self) -> RuntimeError:
        self.process.wait()
        return RuntimeError(f"the trainer of {self.job} ended:\n{self.log.read_text()[-4000:]}")


def projection_seconds(steps: Sequence[Row]) -> float:
    """Median seconds of a projection over the steps that tell it."""
    told: list[float] = [row["projection_seconds"] for row in steps if row["projection_seconds"] is not None]
    return median(told)
