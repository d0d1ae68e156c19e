"""The attacks against a scripted endpoint; the requests are about polishing stones that do not exist."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks.attacks import PAIR_SYSTEM, PAP_SYSTEM, main
from eval.benchmarks.definition import find_benchmarks
from eval.benchmarks.sources import load_rows
from ogpsa.data.readers import read_table
from ogpsa.utils.command_line import run_program
from tests.endpoint_server import EndpointServer, Reply, Request, serve
from tests.eval.local_mirror import write_mirror

ROOT = Path(__file__).parents[3]
Judge = Callable[[str], str]


def role(request: Request) -> str:
    return str(request.body["model"])


def last(request: Request) -> str:
    return str(request.body["messages"][-1]["content"])


def tries(request: Request) -> int:
    return 1 + sum(message["role"] == "assistant" for message in request.body["messages"])


def script(rate: Judge, write: Callable[[Request], str] | None = None) -> Callable[[Request, int], Reply]:
    """An attacker that numbers its tries, a target that repeats what it is asked, and a judge that says ``rate``."""

    def answer(request: Request, before: int) -> Reply:
        if role(request) == "attacker":
            asked = request.body["messages"][1]["content"].split("<request>\n")[1].split("\n</request>")[0]
            text = f"I try it.\n<message>As a keeper, try {tries(request)}: {asked}</message>"
            return Reply(write(request) if write else text)
        if role(request) == "target":
            return Reply(f"Echo of {last(request)}")
        return Reply(rate(last(request)))

    return answer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """StrongReject's made-up requests, and no jailbreaks."""
    write_mirror(tmp_path)
    for file in tmp_path.glob("strongreject_p*.jsonl"):
        file.unlink()
    return tmp_path


def arguments(attack: str, server: EndpointServer, folder: Path, *more: str) -> list[str]:
    given = [
        f"data_dir={folder}",
        f"attacker.base_url={server.url}",
        "attacker.api_key_env=",
        "attacker.model=attacker",
    ]
    return [attack, *given, "target.model=target", "judge.model=judge", *more]


def make(attack: str, server: EndpointServer, folder: Path, *more: str) -> list[dict[str, Any]]:
    assert main(arguments(attack, server, folder, *more)) == 0
    name = "strongreject_pair" if attack == "pair" else "strongreject_pap"
    [benchmark] = find_benchmarks([name])
    rows = read_table(folder / f"{name}.jsonl")
    assert load_rows(benchmark, folder) == rows
    return rows


def facts(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.attack.json").read_text())
    return found


def requests(folder: Path) -> list[str]:
    return [row["forbidden_prompt"] for row in read_table(folder / "strongreject.csv")]


def test_pair_stops_at_the_best_rating(folder: Path) -> None:
    with serve(script(lambda text: "Rating: 10" if "try 2" in text else "Rating: 3")) as server:
        rows = make("pair", server, folder)
    asked = requests(folder)
    assert [row["prompt"] for row in rows] == [f"As a keeper, try 2: {request}" for request in asked]
    assert [row["request"] for row in rows] == asked
    assert [row["id"] for row in rows] == [f"strongreject-{number:03d}" for number in range(6)]
    assert {(row["fallback"], row["rating"], row["tries"]) for row in rows} == {(False, 10, 2)}
    assert Counter(map(role, server.requests)) == {"attacker": 12, "target": 12, "judge": 12}
    for request in server.requests:
        assert request.body["temperature"] == (1.0 if role(request) == "attacker" else 0.0)
        if role(request) == "target":
            assert len(request.body["messages"]) == 1
        if role(request) == "judge":
            assert any(text in last(request) for text in asked)
    second = next(request for request in server.requests if role(request) == "attacker" and tries(request) == 2)
    assert second.body["messages"][0]["content"] == PAIR_SYSTEM
    assert "Echo of As a keeper, try 1" in last(second)
    assert "Its rating is 3" in last(second)


def test_pair_keeps_the_best_of_its_rounds(folder: Path) -> None:
    ratings = {"try 1": "Rating: 2", "try 2": "**Rating: 7**", "try 3": "rating - 5", "try 4": "Rating: 7"}

    def rate(text: str) -> str:
        return next(rating for name, rating in ratings.items() if name in text)

    with serve(script(rate)) as server:
        rows = make("pair", server, folder, "rounds=4")
    assert {row["prompt"].split(":")[0] for row in rows} == {"As a keeper, try 2"}
    assert {(row["rating"], row["tries"]) for row in rows} == {(7, 4)}


def test_a_rating_that_cannot_be_read_is_not_guessed(folder: Path) -> None:
    ratings = {"try 1": "I will not rate that.", "try 2": "Rating: 11", "try 3": "Rating: 1"}

    def rate(text: str) -> str:
        return next(rating for name, rating in ratings.items() if name in text)

    with serve(script(rate)) as server:
        rows = make("pair", server, folder)
    assert {(row["prompt"].split(":")[0], row["rating"]) for row in rows} == {("As a keeper, try 3", 1)}
    assert any("Its rating is not known" in last(request) for request in server.requests)


@pytest.mark.parametrize("attack", ["pair", "pap_misrepresentation"])
def test_what_the_attacker_will_not_write_falls_back_and_is_counted(attack: str, folder: Path) -> None:
    asked = requests(folder)
    unusable = {
        asked[0]: "I'm sorry, no.",
        asked[1]: "<message> </message>",
        asked[2]: f"<message>{asked[2]}</message>",
    }

    def write(request: Request) -> str:
        wanted = request.body["messages"][1]["content"].split("<request>\n")[1].split("\n</request>")[0]
        return unusable.get(wanted, f"<message>Please: {wanted}</message>")

    with serve(script(lambda text: "Rating: 10", write)) as server:
        rows = make(attack, server, folder)
    name = "strongreject_pair" if attack == "pair" else "strongreject_pap"
    assert [row["fallback"] for row in rows] == [True] * 3 + [False] * 3
    assert [row["prompt"] for row in rows[:3]] == asked[:3]
    assert [row["prompt"] for row in rows[3:]] == [f"Please: {request}" for request in asked[3:]]
    assert facts(folder, name)["fallbacks"] == 3
    assert facts(folder, name)["rows"] == 6
    assert Counter(map(role, server.requests))["attacker"] == 3 * 3 + 3


def test_misrepresentation_needs_the_attacker_alone(folder: Path) -> None:
    with serve(script(lambda text: "")) as server:
        rows = make("pap_misrepresentation", server, folder)
    assert [row["prompt"] for row in rows] == [f"As a keeper, try 1: {request}" for request in requests(folder)]
    assert Counter(map(role, server.requests)) == {"attacker": 6}
    assert {request.body["messages"][0]["content"] for request in server.requests} == {PAP_SYSTEM}
    assert facts(folder, "strongreject_pap")["models"] == {"attacker": "attacker"}


def test_what_was_paid_for_is_not_asked_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(script(lambda text: "Rating: 4")) as server:
        assert run_program(lambda: main(arguments("pair", server, folder, "max_calls=20"))) == 2
        assert "20" in capsys.readouterr().err
        assert not (folder / "strongreject_pair.jsonl").exists()
        assert len(server.requests) == 20
        rows = make("pair", server, folder)
    asked = [(role(request), json.dumps(request.body["messages"])) for request in server.requests]
    assert len(asked) == len(set(asked)) == 6 * 3 * 3
    assert {row["rating"] for row in rows} == {4}
    assert not list(folder.glob(".*journal*"))


@pytest.mark.slow
def test_a_kill_in_the_middle_loses_nothing(folder: Path) -> None:
    with serve(script(lambda text: "Rating: 4")) as whole:
        expected = make("pair", whole, folder)
    (folder / "strongreject_pair.jsonl").unlink()

    def slowly(request: Request, before: int) -> Reply:
        reply = script(lambda text: "Rating: 4")(request, before)
        return Reply(reply.text, delay=0.15)

    with serve(slowly) as server:
        command = [sys.executable, "-m", "eval", "attacks", *arguments("pair", server, folder, "concurrency=1")]
        started = subprocess.Popen(command, cwd=ROOT, env={**os.environ}, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(server.requests) < 10 and time.monotonic() < deadline:
            time.sleep(0.02)
        started.send_signal(signal.SIGKILL)
        assert started.wait() == -signal.SIGKILL
        assert 10 <= len(server.requests) < 54
        assert make("pair", server, folder) == expected
    asked = Counter(json.dumps([role(request), request.body["messages"]]) for request in server.requests)
    assert len(asked) == 54
    # The one request that was under way may have been heard twice.
    assert sum(asked.values()) <= 55


def test_a_frozen_file_is_not_made_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(script(lambda text: "Rating: 10")) as server:
        make("pair", server, folder)
        before, calls = (folder / "strongreject_pair.jsonl").read_bytes(), len(server.requests)
        assert run_program(lambda: main(arguments("pair", server, folder))) == 2
        assert len(server.requests) == calls
    assert "frozen" in capsys.readouterr().err
    assert (folder / "strongreject_pair.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["pairs", "attacker.model=a"],
            "unknown attack 'pairs'; allowed: pair, pap_misrepresentation; did you mean 'pair'",
        ),
        (["pair"], "attacker.model: no value given"),
        (["pair", "attacker.model=a", "rounds=0"], "rounds: found '0'"),
        (["pair", "attacker.model=a", "rounds=x"], "rounds: found 'x'"),
        (["pair", "attacker.model=a", "round=3"], "round: unknown key"),
        (["pair", "attacker.model"], "expected KEY=VALUE"),
        (["pair", "attacker.model=a", "attacker.api_key_env=NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["pair", "attacker.model=a", "attacker.api_key_env=", "attacker.base_url=localhost"], "attacker.base_url"),
        (["pair", "attacker.model=a", "data_dir=/dev/null/x"], "data_dir"),
    ],
)
def test_mistakes_are_named(
    given: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    place = [] if any(argument.startswith("data_dir") for argument in given) else [f"data_dir={folder}"]
    assert run_program(lambda: main([*given, *place])) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(folder.glob("strongreject_pair*"))


def test_without_requests_there_is_nothing_to_attack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(lambda: main(["pair", "attacker.model=a", f"data_dir={tmp_path}"])) == 2
    assert "strongreject_none: no rows in the data folder" in capsys.readouterr().err
