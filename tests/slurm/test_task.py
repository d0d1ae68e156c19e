"""What a task does with its row and with SLURM, whose commands are stand-ins: a real cluster does not fail on
demand."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from slurm.squeue import write_words
from tests.program import ROOT

# Do as told, and write down what was asked.
STANDINS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scancel": 'echo "scancel $*" >> "$ASKED"',
    # In place of 120 seconds until SLURM ends the task.
    "sleep": "exec /bin/sleep 0.1",
    "python": 'echo "cores ${SRUN_CPUS_PER_TASK:-all} threads $OMP_NUM_THREADS" >> "$ASKED"; eval "$RUN"',
}
SCONTROL = 'echo "scontrol $*" >> "$ASKED"; [[ $1 == requeue ]] || echo "$FACTS"'
FACTS = "JobId=7 JobState=RUNNING Restarts=0 Requeue=1"


@dataclass(frozen=True)
class Task:
    folder: Path

    def start(self, run: str, scontrol: str = SCONTROL, **environment: str) -> "subprocess.Popen[str]":
        """A task whose run is the shell command ``run``."""
        result = self.folder / "metrics.json"
        write_words(self.folder / "0", ["row", str(self.folder / "events.tsv"), "1", str(result), "seed=1"])
        programs = self.folder / "bin"
        programs.mkdir()
        for name, text in (STANDINS | {"scontrol": scontrol}).items():
            (programs / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
            (programs / name).chmod(0o755)
        slurm = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_NNODES": "1"}
        own = {
            "PATH": f"{programs}:{os.environ['PATH']}", "OGPSA_PYTHON": str(programs / "python"), "RUN": run,
            "OGPSA_ENVIRONMENT": "/dev/null", "ASKED": str(self.folder / "asked"), "FACTS": FACTS,
            "RESULT": str(result),
        }  # fmt: skip
        command = ["bash", str(ROOT / "slurm" / "array.sbatch"), str(ROOT), str(self.folder)]
        return subprocess.Popen(command, env=slurm | own | environment, stderr=subprocess.PIPE, text=True)

    def __call__(self, run: str, scontrol: str = SCONTROL, **environment: str) -> int:
        process = self.start(run, scontrol, **environment)
        process.communicate()
        return process.returncode

    def events(self) -> list[str]:
        """What was recorded, with its reason."""
        lines = (self.folder / "events.tsv").read_text(encoding="utf-8").splitlines()
        return [" ".join(filter(None, line.split("\t")[1::4])) for line in lines]

    def asked(self) -> list[str]:
        return (self.folder / "asked").read_text(encoding="utf-8").splitlines()


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(tmp_path)


def test_a_row_that_saved_is_requeued(task: Task) -> None:
    assert task("exit 85") == 85
    assert task.events() == ["started", "requeued saved and left"]
    assert task.asked()[-1] == "scontrol requeue 7_0"


def test_a_node_that_was_lost_has_finished_nothing(task: Task) -> None:
    # srun ends with 0 then.
    assert task("exit 0") == 1
    assert task.events() == ["started", "ended srun ended with 0, but there is no result"]


def test_a_crash_is_a_failure(task: Task) -> None:
    assert task("exit 3") == 3
    assert task.events() == ["started", "failed exit code 3"]
    assert not any(line.startswith("scontrol requeue") for line in task.asked())


def test_a_task_whose_place_was_taken_requeues_nothing(task: Task) -> None:
    assert task("exit 85", FACTS="JobId=7 JobState=RUNNING Restarts=1 Requeue=1") == 85
    assert task.events() == ["started", "ended SLURM had started it anew"]
    assert not any(line.startswith("scontrol requeue") for line in task.asked())


def test_a_row_that_was_cancelled_while_it_saved_stays_so(task: Task) -> None:
    assert task("exit 85", FACTS="JobId=7 JobState=CANCELLED Restarts=0 Requeue=1") == 85
    assert task.events() == ["started", "ended"]
    assert not any(line.startswith("scontrol requeue") for line in task.asked())


@pytest.mark.parametrize(
    ("restarts", "events"),
    [
        ("2", ["started", "failed requeued 2 times already, the most that OGPSA_MOST_REQUEUES allows"]),
        ("3", ["failed requeued 3 times, more than OGPSA_MOST_REQUEUES allows"]),
    ],
)
def test_requeues_have_an_end(task: Task, restarts: str, events: list[str]) -> None:
    facts = f"JobId=7 JobState=RUNNING Restarts={restarts} Requeue=1"
    assert task("exit 85", OGPSA_MOST_REQUEUES="2", SLURM_RESTART_COUNT=restarts, FACTS=facts) == 1
    assert task.events() == events


def test_a_controller_that_is_away_is_asked_again(task: Task) -> None:
    # No answer to the question, nor to the first request.
    scontrol = 'echo "scontrol $*" >> "$ASKED"; [[ $1 == requeue ]] && (($(grep -c requeue "$ASKED") > 1))'
    assert task("exit 85", scontrol=scontrol) == 85
    assert task.events() == ["started", "requeued saved and left"]
    assert task.asked().count("scontrol requeue 7_0") == 2


def test_a_warning_before_the_run_begins_requeues_it(task: Task) -> None:
    environment = task.folder / "env.sh"
    environment.write_text(f"touch {task.folder}/loading; while [[ ! -e {task.folder}/go ]]; do sleep 1; done; false\n")
    process = task.start("exit 0", OGPSA_ENVIRONMENT=str(environment))
    while not (task.folder / "loading").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    (task.folder / "go").touch()
    process.communicate()
    assert process.returncode == 85
    assert task.events() == ["started", "requeued warned before the run began"]


def test_a_warning_reaches_the_run_again_and_again_until_it_leaves(task: Task) -> None:
    run = 'touch "$ASKED.there"; while (($(grep -c scancel "$ASKED") < 3)); do sleep 1; done; exit 85'
    process = task.start(run)
    while not (task.folder / "asked.there").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    process.communicate()
    assert process.returncode == 85
    assert task.asked().count("scancel --signal=USR1 7_0.0") >= 3
    assert task.events() == ["started", "requeued saved and left"]


def test_the_environment_sees_no_arguments_of_the_scripts(task: Task) -> None:
    environment = task.folder / "env.sh"
    # As conda's activate, which takes them for its own.
    environment.write_text(f'echo "given $# $*" >> {task.folder}/asked\n', encoding="utf-8")
    assert task('touch "$RESULT"', OGPSA_ENVIRONMENT=str(environment)) == 0
    assert task.asked()[0] == "given 0 "
    assert task.events() == ["started", "finished"]


def test_the_environments_own_faults_are_not_the_tasks(task: Task) -> None:
    environment = task.folder / "env.sh"
    environment.write_text('echo "$not_set_by_anyone" > /dev/null\nfalse\n', encoding="utf-8")
    assert task('touch "$RESULT"', OGPSA_ENVIRONMENT=str(environment)) == 0
    assert task.events() == ["started", "finished"]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "cores all threads 1"),
        ({"SLURM_CPUS_ON_NODE": "6"}, "cores all threads 6"),
        ({"SLURM_CPUS_ON_NODE": "6", "SLURM_CPUS_PER_TASK": "4"}, "cores 4 threads 4"),
        ({"SLURM_CPUS_PER_TASK": "4", "OMP_NUM_THREADS": "2"}, "cores 4 threads 2"),
    ],
)
def test_a_run_has_the_jobs_cores(task: Task, environment: dict[str, str], said: str) -> None:
    assert task('touch "$RESULT"', **environment) == 0
    assert task.asked()[0] == said
