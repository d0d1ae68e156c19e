"""``slurm/sync_wandb.sh`` against a server on loopback that answers as much as an upload asks for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from tests.program import ROOT
from tests.wandb_server import Server, wandb_server

pytestmark = pytest.mark.slow
server = pytest.fixture(wandb_server)
BROKEN = "offline-run-20260101_000000-broken"


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Two runs kept offline, and between them one whose file is no run's."""
    for name in ("first", "second"):
        with wandb.init(project="ogpsa", id=name, dir=tmp_path, mode="offline", settings={"silent": True}) as run:
            run.log({"loss": 0.5})
    broken = tmp_path / "wandb" / BROKEN
    broken.mkdir()
    (broken / "run-broken.wandb").write_text("not a run", encoding="utf-8")
    return tmp_path


def sync(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"OGPSA_PYTHON": sys.executable, "OGPSA_ENVIRONMENT": "/dev/null", "WANDB_ERROR_REPORTING": "false"}
    given = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.run(
        [ROOT / "slurm" / "sync_wandb.sh", str(folder)],
        cwd=folder, env=given | own | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_one_broken_run_stops_no_other(kept: Path, server: Server) -> None:
    reach = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "a" * 40}
    done = sync(kept, **reach)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "3 runs: 2 uploaded, 0 uploaded before, 1 failed"
    assert done.stderr.splitlines()[-1] == f"failed: {kept / 'wandb' / BROKEN}"
    assert {name: json.loads(lines[0])["loss"] for name, lines in server.history.items()} == {
        "first": 0.5,
        "second": 0.5,
    }
    assert "wandb-summary.json" in server.files
    assert "a" * 40 not in done.stdout + done.stderr
    again = sync(kept, **reach)
    assert again.stdout.splitlines()[-1] == "3 runs: 0 uploaded, 2 uploaded before, 1 failed"


def test_without_a_key_or_a_folder_it_says_so_in_a_line(tmp_path: Path) -> None:
    said = "error: WANDB_API_KEY: not set, and no login is stored; wandb sync needs one of them\n"
    assert sync(tmp_path, HOME=str(tmp_path), NETRC=str(tmp_path / "none")).stderr == said
    command = [ROOT / "slurm" / "sync_wandb.sh", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: nowhere: no such folder\n")
