"""A server on loopback that answers as much as an upload to W&B asks for."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Server:
    """What was uploaded: history lines by run, each at its offset, and names of files.

    ``status`` is the code of every answer.
    """

    address: str = ""
    history: dict[str, list[str]] = field(default_factory=dict)
    status: int = 200
    files: list[str] = field(default_factory=list)


def wandb_server() -> Iterator[Server]:
    """Serve on loopback until the test is over."""
    found = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer: dict[str, Any] = {}
            if self.path == "/graphql":
                answer = self._graphql(json.loads(body))
            elif self.path.endswith("/file_stream"):
                run = self.path.split("/")[-2]
                sent = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
                if sent:
                    # As W&B's server: what is sent takes the place of what has the same offsets.
                    lines, start = found.history.setdefault(run, []), sent["offset"]
                    lines[start : start + len(sent["content"])] = sent["content"]
            elif self.path.startswith("/upload/"):
                found.files.append(self.path.removeprefix("/upload/"))
            text = json.dumps(answer).encode()
            self.send_response(found.status)
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
            if "ServerFeatures" in asked["query"] or "RunResumeStatus" in asked["query"]:
                return {"data": {}}
            if "CreateArtifact " in asked["query"]:
                return {"errors": [{"message": "no artefacts here"}]}
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
