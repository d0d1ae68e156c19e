"""The endpoint against a real server on loopback: what it retries, when it stops, what it keeps to itself."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from eval.judging.judge import Item, judge_hash, judge_model
from eval.judging.verdicts import judge_responses, open_journal
from ogpsa.app.compose import compose_config
from ogpsa.utils.endpoint import Budget, Completion, Endpoint, public_address
from ogpsa.utils.errors import UserError
from tests.endpoint_server import EndpointServer, Reply, Request, Script, serve
from tests.tiny import byte_tokenizer, tiny_model

KEY = "sk-a-key-that-no-file-or-message-may-hold"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)


def endpoint(server: EndpointServer, **changes: Any) -> Endpoint:
    settings: dict[str, Any] = {
        "section": "eval.judge", "base_url": server.url, "model": "judge-1", "api_key_env": "JUDGE_KEY",
        "concurrency": 4, "timeout": 20.0, "attempts": 3, "backoff": 0.01,
    }  # fmt: skip
    return Endpoint(**(settings | changes))


def ask(asked: Endpoint, count: int = 1) -> dict[int, Completion]:
    """Replies by number of ``count`` different requests."""
    replies: dict[int, Completion] = {}
    requests = [[{"role": "user", "content": f"request {number}"}] for number in range(count)]
    asked.complete(requests, replies.__setitem__, max_tokens=7)
    return replies


def echo(request: Request, before: int) -> Reply:
    return Reply(f"reply to {request.text}")


def first(fault: Reply) -> Script:
    """The fault for the first request of each kind, then the reply."""
    return lambda request, before: fault if before == 0 else echo(request, before)


def told(error: Any, **rest: Any) -> Reply:
    """An error under the status of a success."""
    return Reply(body=json.dumps({"error": error, **rest}).encode())


def test_each_request_gets_its_reply_and_no_more_run_at_once_than_allowed() -> None:
    with serve(lambda request, before: Reply(f"reply to {request.text}", delay=0.02)) as server:
        replies = ask(endpoint(server, concurrency=3), 20)
    assert replies == {number: Completion(f"reply to request {number}", "stop") for number in range(20)}
    assert len(server.requests) == 20
    assert 1 < server.most_at_once <= 3
    assert all(request.headers["authorization"] == f"Bearer {KEY}" for request in server.requests)
    body = {key: value for key, value in server.requests[0].body.items() if key != "messages"}
    assert body == {"model": "judge-1", "max_tokens": 7, "temperature": 0.0}


@pytest.mark.parametrize("name", ["content", "refusal"])
def test_half_a_character_in_a_reply_is_replaced(name: str) -> None:
    body = json.dumps({"choices": [{"message": {name: "a \ud83d"}, "finish_reason": "stop"}]}).encode()
    with serve(lambda *_: Reply(body=body)) as server:
        assert ask(endpoint(server))[0].text == "a ?"
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Reply(status=429),
        Reply(status=429, headers={"retry-after": "0"}),
        Reply(status=429, headers={"retry-after": "soon"}),
        Reply(status=500),
        Reply(status=503, text="overloaded"),
        Reply(status=408),
        Reply(status=502, body=b"<html>bad gateway</html>", headers={"content-type": "text/html"}),
        Reply(reset=True),
        Reply(body=b'{"choices": [{"message": {"content": "cut'),
        Reply(body=b"not JSON"),
        Reply(body=b""),
        Reply(body=b"[]"),
        Reply(body=b'{"choices": []}'),
        Reply(body=b'{"choices": null}'),
        Reply(body=b'{"choices": [{"text": "a completion of another protocol", "finish_reason": "stop"}]}'),
        Reply(body=b'{"choices": [{"text": "half of one", "finish_reason": "length"}]}'),
        Reply(body=b'{"choices": [{"finish_reason": "tool_calls"}]}'),
        Reply(body=b'{"choices": ["text"]}'),
        Reply(body=b'{"choices": [{"message": null, "finish_reason": "stop"}]}'),
        Reply(body=b'{"choices": [{"message": "text", "finish_reason": "stop"}]}'),
        Reply(body=b'{"choices": [{"message": {"content": [1]}}]}'),
        Reply(body=b'{"error": "with status 200"}'),
        Reply(body=b"<html>", headers={"content-type": "text/html"}),
        told({"message": "slow down", "code": 429}, choices=None),
        told({"message": "upstream", "code": 502}),
        told({"message": "busy", "code": "1302"}),
        told({"message": "no code"}),
        # The model's words so far, of a server that failed.
        *(
            Reply("half a", finish_reason=reason)
            for reason in ["error", "ERROR", "network_error", "insufficient_system_resource", "abort", "cancelled"]
        ),
        Reply(
            body=b'{"choices": [{"message": {"content": "half a"}, "finish_reason": "stop", "error": {"code": 502}}]}'
        ),
    ],
    ids=repr,
)
def test_a_passing_fault_is_tried_again(fault: Reply) -> None:
    with serve(first(fault)) as server:
        assert ask(endpoint(server), 3) == {
            number: Completion(f"reply to request {number}", "stop") for number in range(3)
        }
    assert len(server.requests) == 6


@pytest.mark.parametrize("fault", [Reply("late", delay=1.0), Reply("byte by byte", pause=0.02)], ids=repr)
def test_a_late_reply_counts_as_lost(fault: Reply) -> None:
    with serve(first(fault)) as server:
        assert ask(endpoint(server, timeout=0.5)) == {0: Completion("reply to request 0", "stop")}
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "fault", [Reply(status=429), told({"message": "slow down", "code": 429})], ids=["status", "body"]
)
@pytest.mark.parametrize(
    ("header", "least"),
    [
        (lambda: {"retry-after": "1"}, 1.0),
        (lambda: {"retry-after": "0.4"}, 0.4),
        pytest.param(lambda: {"retry-after-ms": "400"}, 0.4, marks=pytest.mark.slow),
        # A date has whole seconds.
        pytest.param(lambda: {"retry-after": formatdate(time.time() + 2, usegmt=True)}, 0.9, marks=pytest.mark.slow),
    ],
)
def test_everybody_waits_as_long_as_the_server_asks(
    header: Callable[[], dict[str, str]], least: float, fault: Reply
) -> None:
    def script(request: Request, before: int) -> Reply:
        if len(server.requests) == 1:
            return replace(fault, headers=header())
        return Reply("reply", delay=0.2)

    with serve(script) as server:
        assert len(ask(endpoint(server, concurrency=2), 4)) == 4
    # The second request was under way already.
    refused, _, *others = (request.time for request in server.requests)
    assert len(others) == 3
    assert min(others) - refused >= least


def test_a_crowded_server_is_not_a_failure_while_others_get_through() -> None:
    def script(request: Request, before: int) -> Reply:
        turned_away = request.text == "request 0" and before < 3
        return Reply(status=429) if turned_away else Reply("served", delay=0.02)

    # One other is served at a time, for longer than three waits of the one that is turned away.
    with serve(script) as server:
        assert len(ask(endpoint(server, concurrency=2, attempts=2, backoff=0.3), 60)) == 60
    assert len(server.requests) == 63


@pytest.mark.parametrize("status", [200, 403, 404, 405, 429, 500])
def test_a_server_is_reached_if_it_answers_and_does_not_turn_the_key_away(status: int) -> None:
    # A key may be allowed to ask the model and not to list models.
    with serve(echo, listing=status) as server:
        endpoint(server).reach()
    with pytest.raises(UserError, match="does not answer"):
        endpoint(server).reach()


def test_a_key_that_is_not_known_is_refused() -> None:
    with serve(echo, listing=401) as server, pytest.raises(UserError, match="401, the key in JUDGE_KEY is not accept"):
        endpoint(server).reach()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Reply(status=429, text="slow down"), "429, too many requests (3 tries)"),
        (Reply(status=500, text="broken"), "500, "),
        (Reply(reset=True), "Connection error."),
        (Reply(body=b"not JSON"), "the reply is not a chat completion in JSON (3 tries)"),
        (told({"message": "busy", "code": "1302"}), "an error in place of a reply: 1302 busy (3 tries)"),
        (told({"message": "upstream died", "code": 502}), "502, upstream died (3 tries)"),
        (told("gone"), "an error in place of a reply: gone (3 tries)"),
        (Reply("half a", finish_reason="network_error"), "the server broke the reply off: network_error (3 tries)"),
    ],
    ids=repr,
)
def test_a_fault_that_stays_ends_in_one_line(fault: Reply, message: str) -> None:
    with serve(lambda request, before: fault) as server, pytest.raises(UserError) as caught:
        ask(endpoint(server))
    assert message in str(caught.value)
    assert "all replies so far are kept" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Reply(status=401, text=f"Incorrect API key provided: {KEY}"), "401, the key in JUDGE_KEY is not accepted"),
        (Reply(status=403, text="no access"), "403, the key in JUDGE_KEY is not accepted"),
        # Not the prompt's fault, so that no verdict is taken for missing.
        (Reply(status=403, text="Your account was flagged."), "403, the key in JUDGE_KEY is not accepted"),
        (Reply(status=404, text="no model judge-1"), "404, "),
        (Reply(status=400, text="unknown parameter"), "unknown parameter"),
        (Reply(status=404, text="no max_tokens here"), "no max_tokens here"),
        (
            Reply(status=429, body=json.dumps({"error": {"message": "pay", "code": "insufficient_quota"}}).encode()),
            "insufficient_quota",
        ),
        (Reply(status=429, headers={"retry-after": "86400"}), "429, asks to wait 86400 s"),
        (Reply(status=503, headers={"retry-after": "86400"}), "503, asks to wait 86400 s"),
        (told({"message": "Insufficient credits", "code": 402}), ": 402, Insufficient credits"),
        (Reply(status=402, body=told({"message": "pay", "code": 402}).body), ": 402, pay"),
        (told({"message": f"no such key: {KEY}", "code": 401}), "401, the key in JUDGE_KEY is not accepted"),
    ],
    ids=repr,
)
def test_a_fault_that_cannot_pass_stops_at_once(fault: Reply, message: str) -> None:
    with serve(lambda request, before: fault) as server, pytest.raises(UserError) as caught:
        ask(endpoint(server, concurrency=1), 50)
    assert message in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(server.requests) == 1


NEWER = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'.",
    "temperature": "Unsupported value: 'temperature' does not support 0.0 with this model.",
}


def newer(names: list[str], with_param: bool, delay: float = 0.0) -> Script:
    """A model that takes none of these parameters, and the first that is there is what it complains of."""

    def script(request: Request, before: int) -> Reply:
        found = next((name for name in names if name in request.body), None)
        if found is None:
            return Reply(f"reply to {request.text}")
        error = {"message": NEWER[found], "code": "unsupported", **({"param": found} if with_param else {})}
        return Reply(status=400, body=json.dumps({"error": error}).encode(), delay=delay)

    return script


@pytest.mark.parametrize("with_param", [True, False])
@pytest.mark.parametrize(
    ("names", "body"),
    [
        (["max_tokens"], {"max_completion_tokens": 7, "temperature": 0.0}),
        (["temperature"], {"max_tokens": 7}),
        (["max_tokens", "temperature"], {"max_completion_tokens": 7}),
    ],
)
def test_a_model_that_does_not_take_a_parameter_is_asked_without(
    names: list[str], body: dict[str, Any], with_param: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    # Being turned away for it is not charged.
    budget = Budget(5)
    with serve(newer(names, with_param)) as server:
        replies = ask(endpoint(server, concurrency=1, budget=budget), 5)
    assert replies == {number: Completion(f"reply to request {number}", "stop") for number in range(5)}
    # Once for each, whatever the number of requests.
    assert len(server.requests) == 5 + len(names)
    assert {key: value for key, value in server.requests[-1].body.items() if key not in ("messages", "model")} == body
    assert budget.calls == 5
    assert f"the model takes no {names[0]}; " in capsys.readouterr().err


def test_requests_under_way_all_find_out_for_themselves() -> None:
    with serve(newer(["max_tokens", "temperature"], True, delay=0.2)) as server:
        assert len(ask(endpoint(server, concurrency=4, attempts=1), 8)) == 8
    assert len(server.requests) <= 8 + 2 * 4


WITHHELD = [
    "content_filter", "content_filter: PROHIBITED_CONTENT", "content_filtered", "SAFETY", "RECITATION",
    "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "sensitive",
]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "completion"),
    [
        (Reply("half a", finish_reason="length"), Completion("half a", "length")),
        (Reply(None, refusal="I will not."), Completion("I will not.", "refusal")),
        (Reply(None), Completion("", "stop")),
        (Reply("seven tokens", tokens=(7, 2)), Completion("seven tokens", "stop", tokens_in=7, tokens_out=2)),
        *(
            (Reply("half a", finish_reason=reason), Completion("half a", "length"))
            for reason in ["MAX_TOKENS", "model_context_window_exceeded"]
        ),
        *((Reply("", finish_reason=reason), Completion("", "content_filter")) for reason in WITHHELD),
        (
            Reply(status=400, body=json.dumps({"error": {"message": "no", "code": "content_filter"}}).encode()),
            Completion("", "content_filter"),
        ),
        (told({"message": "Content Exists Risk", "code": 400}), Completion("", "content_filter")),
        (told({"message": "the request exceeds the available context size", "code": 400}), Completion("", "too_long")),
        (
            Reply(body=b'{"choices": [{"finish_reason": "content_filter", "index": 0}]}'),
            Completion("", "content_filter"),
        ),
        (
            Reply(status=400, text="This model's maximum context length is 64 tokens."),
            Completion("", "too_long"),
        ),
        (
            Reply(status=400, text="'max_tokens' is too large: 512. The model's context length is 64 tokens."),
            Completion("", "too_long"),
        ),
        *(
            (Reply(status=status, text=text), Completion("", "content_filter"))
            for status, text in [
                (400, "Invalid prompt: your prompt was flagged as potentially violating our usage policy."),
                (400, "Content Exists Risk"),
                (400, "data_inspection_failed: Input data may contain inappropriate content."),
                (403, "openai/gpt-x requires moderation on OpenAI. Your input was flagged for harassment."),
            ]
        ),
        *(
            (Reply(status=status, text=text), Completion("", "too_long"))
            for status, text in [
                (400, "the request exceeds the available context size, try increasing it"),
                (400, "prompt is too long: 9 tokens > 8 maximum"),
                (422, "`inputs` tokens + `max_new_tokens` must be <= 8. Given: 9 `inputs` tokens"),
            ]
        ),
    ],
    ids=repr,
)
def test_what_the_model_did_not_say_is_a_reply_too(reply: Reply, completion: Completion) -> None:
    with serve(lambda request, before: reply) as server:
        assert ask(endpoint(server)) == {0: completion}
    assert len(server.requests) == 1


def test_the_cap_on_calls_holds_and_what_was_paid_is_handed_over() -> None:
    replies: dict[int, Completion] = {}
    requests = [[{"role": "user", "content": f"request {number}"}] for number in range(10)]
    budget = Budget(7)
    with serve(first(Reply(status=500))) as server:
        with pytest.raises(UserError, match=r"the cap of 7 calls \(eval.judge.max_calls\) is reached") as caught:
            endpoint(server, concurrency=2, budget=budget).complete(requests, replies.__setitem__, max_tokens=1)
        assert len(server.requests) == 7
        assert len(replies) == 3
        # The same budget is used up for whatever comes next.
        with pytest.raises(UserError, match="cap of 7"):
            ask(endpoint(server, budget=budget))
        assert len(server.requests) == 7
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("fault", [Reply(status=429), told({"message": "slow down", "code": 429})], ids=repr)
def test_being_turned_away_for_the_rate_is_not_charged(fault: Reply) -> None:
    with serve(first(fault)) as server:
        assert len(ask(endpoint(server, budget=Budget(5)), 5)) == 5
    assert len(server.requests) == 10


def test_a_cap_of_nothing_asks_for_nothing() -> None:
    with serve(echo) as server, pytest.raises(UserError, match="cap of 0"):
        ask(endpoint(server, budget=Budget(0)))
    assert server.requests == []


def test_an_error_waits_for_what_is_under_way() -> None:
    def script(request: Request, before: int) -> Reply:
        return Reply(status=401) if request.text == "request 0" else Reply("paid", delay=0.3)

    replies: dict[int, Completion] = {}
    requests = [[{"role": "user", "content": f"request {number}"}] for number in range(9)]
    with serve(script) as server, pytest.raises(UserError, match="401"):
        endpoint(server, concurrency=3).complete(requests, replies.__setitem__, max_tokens=1)
    assert len(server.requests) == 3
    assert replies == {1: Completion("paid", "stop"), 2: Completion("paid", "stop")}


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop", [StopError, SystemExit, KeyboardInterrupt])
def test_whatever_done_raises_ends_the_work(stop: type[BaseException]) -> None:
    seen = []

    def done(index: int, reply: Completion) -> None:
        seen.append(index)
        raise stop

    with serve(lambda request, before: Reply("paid", delay=0.1)) as server, pytest.raises(stop):
        endpoint(server, concurrency=3).complete(
            [[{"role": "user", "content": str(number)}] for number in range(9)], done, max_tokens=1
        )
    assert sorted(seen) == [0, 1, 2]
    assert len(server.requests) == 3


def test_without_a_key_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", " ")
    with serve(echo) as server, pytest.raises(UserError) as caught:
        ask(endpoint(server))
    assert "eval.judge.api_key_env: the environment variable JUDGE_KEY holds no key" in str(caught.value)
    assert server.requests == []


@pytest.mark.parametrize("key", ["sk-caf\u00e9", "sk-one\nsk-two", "sk-\u200bone", "sk-one\ttwo", "sk-\x7f"])
def test_a_key_that_no_request_can_hold_is_named_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    with serve(echo) as server:
        for use in (endpoint(server).reach, lambda: ask(endpoint(server))):
            with pytest.raises(
                UserError, match=r"api_key_env: the key in JUDGE_KEY holds a line break or a character[^\n]+\Z"
            ) as caught:
                use()
            assert "sk-" not in str(caught.value)
        assert server.requests == []


@pytest.mark.parametrize(
    "key", ["sk-proj-aB3_x", "gsk_0aZ", "hf_abc", "AIzaSyD3", "AKIAIOSFODNN7EXAMPLE", "0123abcd", "sk-a\nb"]
)
def test_a_key_in_the_place_of_its_variables_name_is_not_shown(key: str) -> None:
    with serve(echo) as server, pytest.raises(UserError, match=r"api_key_env: [^\n]+ holds no key[^\n]+\Z") as caught:
        endpoint(server, api_key_env=key).check()
    assert key not in str(caught.value)


def test_a_server_may_need_no_key() -> None:
    with serve(echo) as server:
        assert len(ask(endpoint(server, api_key_env=""))) == 1
    assert KEY not in str(server.requests[0].headers)


def test_the_key_is_in_no_text_about_the_endpoint(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(first(Reply(status=500, text=f"the key was {KEY}"))) as server:
        asked = endpoint(server)
        ask(asked)
    assert KEY not in repr(asked)
    warning = capsys.readouterr().err
    assert "the key was ***" in warning
    assert KEY not in warning


@pytest.mark.parametrize(
    "base_url",
    [
        "127.0.0.1:8000", "ftp://host/v1", "https://", "v1", "http://localhost:8O00/v1", "http://localhost:80000/v1",
        "http://localhost:0/v1", "http://localhost:-1/v1", "http://[::1:8000/v1", "http://::1:8000/v1", "http://[zz]/v1",
        "http://a..b/v1", f"http://{'a' * 64}/v1", "http://\u2603.net/v1", "http://local host/v1", " http://localhost/v1",
        "http://local\nhost/v1", "http://localhost/v1\ud800",
    ],
)  # fmt: skip
def test_an_invalid_address_is_named(base_url: str) -> None:
    with serve(echo) as server, pytest.raises(UserError, match=r"eval\.judge\.base_url: found '[^\n]+'; .*\Z"):
        endpoint(server, base_url=base_url).check()
    # It is part of a judge's identity, which is asked for before the judge is.
    assert public_address(base_url)


@pytest.mark.parametrize("base_url", ["http://[::1]:8000/v1", "https://my_host.example.", "http://m\u00fcnchen.de/v1"])
def test_other_addresses_are_accepted(base_url: str) -> None:
    with serve(echo) as server:
        endpoint(server, base_url=base_url).check()


def test_nobody_at_the_address_ends_in_one_line() -> None:
    with serve(echo) as server:
        asked = endpoint(server)
    with pytest.raises(UserError, match=r"http://127.0.0.1:\d+/v1: Connection error. \(ConnectError\) \(3 tries\)"):
        ask(asked)


@pytest.mark.parametrize("path", ["", " with a blank"])
def test_a_password_in_the_address_is_not_repeated(path: str) -> None:
    with serve(lambda request, before: Reply(status=404)) as server, pytest.raises(UserError) as caught:
        ask(endpoint(server, base_url=server.url.replace("//", "//user:secret@") + path))
    assert "secret" not in str(caught.value)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, LlamaForCausalLM]]:
    """Address, folder and weights of a tiny model behind ``transformers serve``."""
    folder = tmp_path_factory.mktemp("served") / "model"
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer, max_position_embeddings=8192)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder)]
    program += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = folder.with_name("log")
    with log.open("wb") as output:
        process = subprocess.Popen(program, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        for _ in range(1200):
            assert process.poll() is None, log.read_text()
            with suppress(URLError), urlopen(f"http://127.0.0.1:{port}/health") as response:
                if response.status == 200:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1", folder, model
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_transformers_serve_answers_as_the_model_does(served: tuple[str, Path, LlamaForCausalLM]) -> None:
    url, folder, model = served
    tokenizer = byte_tokenizer()
    asked = Endpoint("eval.judge", url, str(folder), "", concurrency=2, timeout=60.0, attempts=2)
    replies = ask(asked, 3)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    for number, reply in replies.items():
        prompt = tokenizer(f"<user>request {number}<end><assistant>", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            tokens = model.generate(prompt, max_new_tokens=7, do_sample=False)[0, prompt.shape[1] :]
        assert reply.text == tokenizer.decode(tokens, skip_special_tokens=True)
    assert len(replies) == 3


@pytest.mark.long
def test_a_judge_behind_transformers_serve_that_speaks_nonsense_is_unparsed(
    served: tuple[str, Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    url, folder, _ = served
    defaults = compose_config([]).eval.judge
    settings = defaults.model_copy(update={"base_url": url, "model": str(folder), "api_key_env": ""})
    items = [Item(str(number), "How do I open a jar?", f"Turn the lid {number} times.", "") for number in range(2)]
    found = judge_responses("xstest_rubric", items, settings, open_journal(tmp_path / "journal"), "judging")
    assert [judged.verdict.value for judged in found] == [None, None]
    assert {judged.verdict.parse_status for judged in found} <= {"unparsed", "truncated"}
    assert all(judged.verdict.detail["reply"] for judged in found)


def test_an_address_can_be_named_by_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rests on the judge stays the same when its server moves."""
    settings = compose_config(["eval.judge.base_url=$JUDGE", "eval.judge.api_key_env=JUDGE_KEY"]).eval.judge
    hashes, model = set(), "gpt-4o-mini at $JUDGE"
    for _ in range(2):
        with serve(echo) as server:
            monkeypatch.setenv("JUDGE", server.url)
            assert ask(Endpoint.of("eval.judge", settings, settings.model))[0].text == "reply to request 0"
            hashes.add(judge_hash("xstest_rubric", settings))
            assert judge_model("xstest_rubric", settings) == model
    assert len(hashes) == 1
    monkeypatch.delenv("JUDGE")
    with pytest.raises(UserError) as refused:
        Endpoint.of("eval.judge", settings, settings.model)
    assert str(refused.value) == "eval.judge.base_url: the environment has no variable JUDGE; set it to the address"
