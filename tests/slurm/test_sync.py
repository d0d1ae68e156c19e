"""``slurm/sync_wandb.sh`` against a server on loopback that answers as much as an upload asks for."""

import json
import os
import subprocess
import sys
import time
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
    """Two runs kept offline, and between them one whose file is not a run's."""
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


def test_the_sessions_of_a_requeued_run_are_one_history(tmp_path: Path, server: Server) -> None:
    # The first was killed after step 5 with a checkpoint of step 3; long texts take more than a block of its file.
    sessions = [[("sft", step) for step in range(1, 6)], [("sft", 4), ("sft", 5), ("sft", 6), ("dpo", 1)], [("dpo", 2)]]
    for number, steps in enumerate(sessions):
        with wandb.init(project="ogpsa", id="one", dir=tmp_path, mode="offline", settings={"silent": True}) as run:
            for stage, step in steps:
                row = {"train/stage": stage, "train/global_step": step, "session": number, "text": "x" * 20_000}
                run.log(row)
            if number == 2:
                run.log({"benchmarks": 1})
        time.sleep(1.1)  # W&B names the folders by the second
    reach = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "a" * 40}
    done = sync(tmp_path, **reach)
    assert done.stdout.splitlines()[-1] == "1 runs: 1 uploaded, 0 uploaded before, 0 failed", done.stderr
    rows = [json.loads(line) for line in server.history["one"]]
    assert [row["_step"] for row in rows] == list(range(9))
    assert [(row["train/stage"], row["train/global_step"], row["session"]) for row in rows[:-1]] == [
        ("sft", 1, 0), ("sft", 2, 0), ("sft", 3, 0), ("sft", 4, 1), ("sft", 5, 1), ("sft", 6, 1), ("dpo", 1, 1),
        ("dpo", 2, 2),
    ]  # fmt: skip
    assert rows[-1]["benchmarks"] == 1
    times = [row["_runtime"] for row in rows]
    assert times == sorted(times)
    again = sync(tmp_path, **reach)
    assert again.stdout.splitlines()[-1] == "1 runs: 0 uploaded, 1 uploaded before, 0 failed"
    assert len(server.history["one"]) == 9


def test_without_a_network_it_says_so_in_a_line(kept: Path) -> None:
    began = time.monotonic()
    done = sync(kept, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="a" * 40)
    assert time.monotonic() - began < 30
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("error: W&B cannot be reached (URLError: ")


def test_without_a_key_or_a_folder_it_says_so_in_a_line(tmp_path: Path) -> None:
    said = "error: WANDB_API_KEY: not set, and no login is stored; wandb sync needs one of them\n"
    assert sync(tmp_path, HOME=str(tmp_path), NETRC=str(tmp_path / "none")).stderr == said
    command = [ROOT / "slurm" / "sync_wandb.sh", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: nowhere: no such folder\n")
