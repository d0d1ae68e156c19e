"""The W&B mirror: an offline run that W&B itself reads back, closed however the run ends."""

import json
import logging
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from eval.evaluation import evaluate
from ogpsa.config import Config
from ogpsa.runs import tracking
from ogpsa.runs.tracking import END_SECONDS, tracker
from ogpsa.utils.files import read_json
from ogpsa.utils.network import PROBE_SECONDS
from slurm.wandb_sessions import read_records
from tests.program import ROOT, run_here
from tests.wandb_server import Server, wandb_server

pytestmark = pytest.mark.slow

server = pytest.fixture(wandb_server)
OVERRIDES = ["tracker=wandb", "stage=sft", "stage.max_steps=4", "stage.log_every=2", "hydra.run.dir=run"]


@pytest.fixture(scope="module", autouse=True)
def _without_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither a key in the environment nor one from an earlier ``wandb login``."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE"):
            patch.delenv(name, raising=False)
        home = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(home))
        patch.setenv("NETRC", str(home / ".netrc"))
        yield


@pytest.fixture(scope="module")
def mirrored(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run whose mirror is offline, as it is without a key."""
    place = tmp_path_factory.mktemp("mirrored")
    result = run_here(*small, *OVERRIDES, cwd=place)
    assert result.code == 0, result.stderr
    return place / "run"


def offline_run(directory: Path) -> Path:
    [found] = (directory / "wandb").glob("offline-run-*")
    return found


def read_back(directory: Path) -> dict[str, Any]:
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--summary", "--json"]
    done = subprocess.run([*command, str(offline_run(directory))], capture_output=True, text=True, check=True)
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def test_scores_and_configuration(mirrored: Path) -> None:
    read, metrics = read_back(mirrored), read_json(mirrored / "metrics.json")
    headline = {name: metrics[name] for name in ("safety", "utility", "over_refusal")}
    assert {name: read["summary"][name] for name in headline} == headline
    assert (read["state"], read["exit_code"]) == ("finished", 0)
    assert read["config"]["stage"]["max_steps"] == 4
    assert "tracker" not in read["config"]


def test_training_by_step(mirrored: Path) -> None:
    summary = read_back(mirrored)["summary"]
    history = [json.loads(line) for line in (mirrored / "01-sft" / "history.jsonl").read_text().splitlines()]
    last = [entry for entry in history if "loss" in entry][-1]
    assert summary["train/global_step"] == last["step"] == 4
    assert summary["sft/loss"] == pytest.approx(last["loss"])


def test_table_of_benchmarks(mirrored: Path) -> None:
    metrics = read_json(mirrored / "metrics.json")
    [file] = (offline_run(mirrored) / "files" / "media" / "table").glob("benchmarks_*.table.json")
    table = read_json(file)
    keys = ["group", "value", "stderr", "n", "missing", "low", "high", "metric", "judge"]
    assert table["columns"] == ["checkpoint", "benchmark", *keys]
    assert table["data"] == [
        [name, benchmark, *(entry[key] for key in keys)]
        for name, scores in [("base", metrics["base"]), ("sft", metrics["stages"]["sft"])]
        for benchmark, entry in scores["benchmarks"].items()
    ]


def test_is_closed_after_a_failure(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no space left")

    monkeypatch.setattr("eval.evaluation.evaluate", fail)
    result = run_here(*small, *OVERRIDES, cwd=tmp_path)
    assert result.code == 1
    assert result.stderr.endswith("RuntimeError: no space left\n")
    assert wandb.run is None
    read = read_back(tmp_path / "run")
    assert (read["state"], read["exit_code"]) == ("failed", 1)


def test_the_end_of_wandbs_process_costs_the_run_nothing(
    small: list[str], tmp_path: Path, mirrored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_it_and_evaluate(*arguments: Any) -> Any:
        subprocess.run(["pkill", "-TERM", "-P", str(os.getpid()), "wandb-core"], check=True)
        monkeypatch.undo()
        return evaluate(*arguments)

    # As a cluster does that sends SIGTERM to every process of a run.
    monkeypatch.setattr("eval.evaluation.evaluate", end_it_and_evaluate)
    result = run_here(*small, *OVERRIDES, cwd=tmp_path)
    assert result.code == 0, result.stderr
    assert result.stderr.count("W&B is lost (ConnectionResetError: ") == 1
    assert read_json(tmp_path / "run" / "metrics.json") == read_json(mirrored / "metrics.json")
    # The next run of this process has its mirror again.
    result = run_here(*small, *OVERRIDES, "stage.max_steps=2", "hydra.run.dir=next", cwd=tmp_path)
    assert result.code == 0 and "lost" not in result.stderr
    assert read_back(tmp_path / "next")["exit_code"] == 0


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def talking() -> Iterator[str]:
    """An address where something answers that speaks no HTTP."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"220 mail\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()


@pytest.fixture
def mirrored_config(small_config: Callable[..., Config]) -> Config:
    return small_config("tracker=wandb")


@pytest.mark.parametrize(
    ("trouble", "line"),
    [
        ("unreachable", "W&B cannot be reached (URLError: "),
        ("silent", "W&B cannot be reached (TimeoutError: "),
        ("no web server", "W&B cannot be reached (BadStatusLine: "),
        ("refuses the key", "W&B cannot be reached (HTTPError: HTTP Error 401: "),
        ("invalid address", "W&B cannot be used (ValidationError: "),
        ("invalid mode", "W&B cannot be used (ValidationError: "),
        ("no folder", "W&B cannot be used (NotADirectoryError: "),
    ],
)
def test_what_w_and_b_refuses_costs_a_line(
    trouble: str, line: str, mirrored_config: Config, server: Server, silent: str, talking: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    addresses = {
        "unreachable": "http://127.0.0.1:9", "silent": silent, "no web server": talking, "invalid address": "nowhere"
    }  # fmt: skip
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", addresses.get(trouble, server.address))
    server.status = 401 if trouble == "refuses the key" else 200
    if trouble == "invalid mode":
        monkeypatch.setenv("WANDB_MODE", "sometimes")
    if trouble == "no folder":
        (tmp_path / "wandb").write_text("a file", encoding="utf-8")
    wandb.teardown()  # which has read the environment once
    began = time.monotonic()
    with caplog.at_level(logging.WARNING), tracker(mirrored_config, tmp_path, {}) as mirror:
        mirror.log({"sft/loss": 0.5})
    assert time.monotonic() - began < PROBE_SECONDS + END_SECONDS + 5
    [said] = [record.getMessage() for record in caplog.records if "W&B" in record.getMessage()]
    assert said.startswith(line)
    kept = list((tmp_path / "wandb").glob("offline-run-*")) if "used" not in line else []
    assert len(kept) == ("reached" in line)


def use(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have W&B talk to ``server`` from now on."""
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server.address)
    wandb.teardown()


def test_a_server_that_answers_has_the_history(
    mirrored_config: Config, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    use(server, monkeypatch)
    # On a busy machine W&B's own process takes longer than a run waits for it.
    monkeypatch.setattr(tracking, "END_SECONDS", 60)
    with caplog.at_level(logging.WARNING), tracker(mirrored_config, tmp_path, {}) as mirror:
        for step in range(3):
            mirror.log({"train/global_step": step})
    assert "W&B" not in caplog.text
    [lines] = server.history.values()
    assert [json.loads(line)["train/global_step"] for line in lines] == [0, 1, 2]
    assert list(offline_run(tmp_path).glob("*.synced"))


def test_a_silent_server_is_given_up_after_seconds(
    mirrored_config: Config, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    use(server, monkeypatch)
    with caplog.at_level(logging.WARNING):
        with tracker(mirrored_config, tmp_path, {}) as mirror:
            server.status = 503
            mirror.log({"train/global_step": 1, "benchmarks": [{"value": 1}]})
            began = time.monotonic()
        assert time.monotonic() - began < END_SECONDS + 2
    said = [message for message in caplog.messages if "W&B" in message]
    assert said == ["W&B has not taken everything; slurm/sync_wandb.sh uploads it later"]


KILLED = """
import os, signal, time
from pathlib import Path
from ogpsa.app.compose import compose_config
from ogpsa.runs.tracking import tracker
mirror = tracker(compose_config(["tracker=wandb"]), Path("."), {})
for step in range(3):
    mirror.log({"train/global_step": step})
while not list(Path(".").rglob("*.wandb")):  # W&B's own process takes its time on a busy machine
    time.sleep(0.1)
time.sleep(4)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_takes_no_row_that_is_older_than_a_second(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    # Not the W&B process of this test session, which may have another working directory.
    environment.pop("WANDB_SERVICE", None)
    command = [sys.executable, "-c", KILLED]
    assert subprocess.run(command, cwd=tmp_path, env=environment, check=False, timeout=300).returncode == -9
    [file] = offline_run(tmp_path).glob("*.wandb")
    assert sum(record.WhichOneof("record_type") == "history" for record in read_records(file)) == 3


def test_online_without_a_key_is_the_users_mistake(small: list[str], tmp_path: Path) -> None:
    result = run_here(*small, *OVERRIDES, "tracker=wandb", "tracker.mode=online", cwd=tmp_path)
    assert result.stderr == (
        "error: tracker.mode: online needs WANDB_API_KEY in the environment; set it, or use offline or auto\n"
    )
    assert (result.code, list(tmp_path.iterdir())) == (2, [])
