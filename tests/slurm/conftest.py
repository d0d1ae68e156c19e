"""A real SLURM of two nodes, which ``.ci/run`` starts by ``tests/slurm/cluster.sh``, and a user's sweeps on it."""

import hashlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from ogpsa.utils.files import read_json
from tests.program import PROGRAM, ROOT

SLURM = ROOT / "slurm"
# Steps enough to be disturbed among them, and a line in the log at each.
STEPS = ["stage.sft.max_steps=60", "stage.dpo.max_steps=30", "stage.sft.log_every=1", "stage.dpo.log_every=1"]
PATIENCE = 600.0


@dataclass(frozen=True)
class Cluster:
    """The cluster in ``directory``, and how its users speak to it."""

    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "SLURM_CONF": str(self.directory / "slurm.conf"),
            "OGPSA_PYTHON": sys.executable,
            "OGPSA_ENVIRONMENT": "/dev/null",
            "OGPSA_WARNING_SECONDS": "30",
            "OMP_NUM_THREADS": "1",
        }
        return {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"} | own

    def call(self, *command: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment | more
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)

    def ask(self, *command: str) -> str:
        done = self.call(*command)
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def facts(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says of a task."""
        words = self.ask("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def daemon(self, name: str) -> int:
        """The process of ``slurmctld`` or of ``slurmd.<node>``."""
        return int((self.directory / "run" / f"{name}.pid").read_text(encoding="utf-8"))

    def script(self, *arguments: str) -> None:
        subprocess.run(["tests/slurm/cluster.sh", *arguments], cwd=ROOT, check=True)


@dataclass(frozen=True)
class Work:
    """A folder that a user works in, with one sweep."""

    cluster: Cluster
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "sweep.txt"

    @property
    def results(self) -> Path:
        return self.folder / "outputs" / "sweep"

    def write(self, *rows: Sequence[str]) -> None:
        self.file.write_text("".join(f"{shlex.join(row)}\n" for row in rows), encoding="utf-8")

    def submit(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(SLURM / "submit.sh"), self.file.name, *options]
        return self.cluster.call(*command, cwd=self.folder, **environment)

    def queue(self, *options: str, **environment: str) -> str:
        """Submit, and return the job's number."""
        done = self.submit(*options, **environment)
        match = re.search(r"queued as job (\d+)", done.stdout)
        assert match, done.stdout + done.stderr
        return match[1]

    def status(self, *options: str) -> list[str]:
        done = self.cluster.call(str(SLURM / "status.sh"), self.file.name, *options, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def nodes(self) -> str:
        """Every node and its state, a line each."""
        return self.cluster.ask("sinfo", "--noheader", "--Node", "--format=%N %T").replace("*", "")

    def runs(self) -> list[Path]:
        return sorted(path.parent for path in self.results.glob("*/config.yaml"))

    def log(self) -> str:
        """What the one run of the sweep has logged so far."""
        return "".join(path.read_text(encoding="utf-8") for path in self.results.glob("*/run.log"))

    def printed(self) -> str:
        """What the tasks have printed."""
        return "".join(path.read_text(encoding="utf-8") for path in sorted(self.results.glob("slurm/logs/*.log")))

    def events(self) -> list[str]:
        """What happened to the rows once they were queued, in one word each."""
        files = sorted(self.results.glob("slurm/events/*.tsv"))
        words = [line.split("\t")[1] for file in files for line in file.read_text(encoding="utf-8").splitlines()]
        return [word for word in words if word != "queued"]

    def until(self, what: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Wait until ``what`` holds."""
        limit = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < limit, "\n".join(["waited too long", *self.status(), self.printed()[-3000:]])
            time.sleep(0.25)

    def reaches(self, text: str) -> None:
        """Wait until the run's log holds ``text``."""
        self.until(lambda: text in self.log())

    def ends(self) -> None:
        """Wait until SLURM has no task of the sweep."""
        self.until(lambda: not self.cluster.ask("squeue", "--noheader", "--name=sweep").strip())

    def all_done(self) -> None:
        self.ends()
        assert self.status()[-1].endswith(" done") and "," not in self.status()[-1], "\n".join(
            [*self.status("--failed"), self.printed()[-3000:]]
        )


def result(run: Path) -> tuple[object, dict[str, str]]:
    """A finished run's metrics, and a fingerprint of every stage's weights."""
    weights = {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.glob("*/*.safetensors"))
    }
    return read_json(run / "metrics.json"), weights


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    directory = os.environ.get("OGPSA_TEST_CLUSTER")
    if directory is None:
        pytest.skip("needs a SLURM: tests/slurm/cluster.sh start DIR, then OGPSA_TEST_CLUSTER=DIR")
    return Cluster(Path(directory))


@pytest.fixture
def work(cluster: Cluster, tmp_path: Path) -> Iterator[Work]:
    yield Work(cluster, tmp_path)
    cluster.call("scancel", "--name=sweep")
    deadline = time.monotonic() + 60
    while cluster.call("squeue", "--noheader").stdout.strip() and time.monotonic() < deadline:
        time.sleep(0.25)


@pytest.fixture(scope="session")
def row(small: list[str]) -> list[str]:
    """A row of SFT, then DPO, that takes some seconds."""
    return ["stage=sft_dpo", "method=ogpsa", "method.refresh_every=10", *small, *STEPS]


@pytest.fixture(scope="session")
def undisturbed(row: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[object, dict[str, str]]:
    """What ``row`` gives without SLURM."""
    return run_alone(row, tmp_path_factory.mktemp("undisturbed"))


def run_alone(row: Sequence[str], folder: Path, processes: int = 1) -> tuple[object, dict[str, str]]:
    """The result of a row that runs in ``folder`` without SLURM."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, str(PROGRAM), *row, f"hydra.run.dir={folder / 'run'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return result(folder / "run")
