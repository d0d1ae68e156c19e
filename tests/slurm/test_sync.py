"""``slurm/sync_wandb.sh`` against a server on loopback that answers as much as an upload asks for."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb

from tests.program import ROOT

pytestmark = pytest.mark.slow
BROKEN = "offline-run-20260101_000000-broken"


@dataclass
class Server:
    """What was uploaded: history lines by run, and names of files."""

    address: str = ""
    history: dict[str, list[str]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer: dict[str, Any] = {}
            if self.path == "/graphql":
                answer = self._graphql(json.loads(body))
            elif self.path.endswith("/file_stream"):
                run = self.path.split("/")[-2]
                lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
                found.history.setdefault(run, []).extend(lines)
            elif self.path.startswith("/upload/"):
                found.files.append(self.path.removeprefix("/upload/"))
            text = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_PUT = do_POST  # noqa: N815

        def _graphql(self, asked: dict[str, Any]) -> dict[str, Any]:
            given = asked.get("variables") or {}
            if "createRunFiles" in asked["query"]:
                names = given["files"]
                files = [{"name": name, "uploadUrl": f"{found.address}/upload/{name}"} for name in names]
                return {"data": {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}}
            project = {"id": "project", "name": "ogpsa", "entity": {"id": "entity", "name": "us"}}
            names = {"name": given.get("name"), "displayName": given.get("displayName"), "description": None}
            bucket = names | {"id": "bucket", "config": "{}", "sweepName": None, "historyLineCount": 0}
            bucket |= {"project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        found.address = f"http://127.0.0.1:{listening.server_address[1]}"
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield found
        listening.shutdown()


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
