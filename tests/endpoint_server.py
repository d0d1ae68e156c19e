"""A scripted server of chat completions on loopback."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What the server does with one request: by default it answers ``text``.

    Attributes:
        body: sent in place of a completion.
        delay: seconds before anything is sent.
        pause: seconds before each byte of the body.
        reset: send half of the body, then reset the connection.
        tokens: charged for the request and for the answer.
    """

    text: str | None = "stop"
    finish_reason: str = "stop"
    refusal: str | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    delay: float = 0.0
    pause: float = 0.0
    reset: bool = False
    tokens: tuple[int, int] | None = None

    def content(self) -> bytes:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": self.text, "code": None}}).encode()
        message = {"role": "assistant", "content": self.text, "refusal": self.refusal}
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        completion = {"id": "1", "object": "chat.completion", "choices": [choice]}
        if self.tokens is not None:
            completion["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), self.tokens, strict=True))
        return json.dumps(completion).encode()


@dataclass(frozen=True)
class Request:
    """What the server was sent, and when."""

    body: dict[str, Any]
    headers: dict[str, str]
    time: float

    @property
    def text(self) -> str:
        return "\n".join(message["content"] for message in self.body["messages"])


# What to do with a request; the second argument counts the requests with the same messages, from 0.
Script = Callable[[Request, int], Reply]


class EndpointServer(ThreadingHTTPServer):
    """Keeps every request it was sent, and the most that it answered at one time.

    Attributes:
        listing: the status of its answer to whoever asks for the list of models.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script: Script, listing: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.listing = script, listing
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @contextmanager
    def counted(self, request: Request) -> Iterator[int]:
        """Yield how often the same messages came before."""
        with self._lock:
            before = sum(other.body["messages"] == request.body["messages"] for other in self.requests)
            self.requests.append(request)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            yield before
        finally:
            with self._lock:
                self._now -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that were killed or gave up are expected."""


class _Handler(BaseHTTPRequestHandler):
    server: EndpointServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(self.server.listing)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        request = Request(body, {name.lower(): value for name, value in self.headers.items()}, time.monotonic())
        with self.server.counted(request) as before:
            reply = self.server.script(request, before)
            time.sleep(reply.delay)
            content = reply.content()
            self.send_response(reply.status)
            for name, value in {"content-type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            for byte in content if reply.pause else b"":
                time.sleep(reply.pause)
                self.wfile.write(bytes([byte]))
            if not reply.pause:
                self.wfile.write(content[: len(content) // 2] if reply.reset else content)
            self.wfile.flush()
            if reply.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def serve(script: Script, listing: int = 404) -> Iterator[EndpointServer]:
    """A running server, stopped at the end."""
    server = EndpointServer(script, listing)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
