"""``python -m eval winrate``: evaluations written by hand, and a scripted judge behind a real server on loopback."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main
from ogpsa.utils.errors import EXIT_DONE, EXIT_USER_ERROR
from tests.endpoint_server import EndpointServer, Reply, Request, serve
from tests.eval.handmade import Benchmark, write_evaluation, write_run

NAME = "alpaca_answers"
GOOD, BAD = "a good answer", "a bad one"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")


def answers(responses: Sequence[str], **changes: Any) -> dict[str, Benchmark]:
    given = {"group": "over_refusal", "metric": "refusal_rate", "judge": "refusal_rules"} | changes
    return {NAME: Benchmark([0.0] * len(responses), responses=responses, **given)}


def evaluation(folder: Path, responses: Sequence[str], **changes: Any) -> Path:
    return write_evaluation(folder, answers(responses, **changes))


def texts(request: Request) -> tuple[str, str]:
    """The first and the second answer that a judge is shown."""
    parts = request.text.split("\n===== ")
    return parts[2].split("\n", 1)[1], parts[3].split("\n", 1)[1]


def fair(request: Request, before: int) -> Reply:
    first, second = (GOOD in text for text in texts(request))
    return Reply("Verdict: TIE" if first == second else f"So.\nVerdict: {'FIRST' if first else 'SECOND'}")


def winrate(*given: Path | str, server: EndpointServer | None = None) -> int:
    address = ["--base-url", server.url] if server else []
    return main(["winrate", *map(str, given), *address])


def kept(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary and the rows of the only comparison in an evaluation's folder."""
    [summary] = (folder / "winrates").glob("*.json")
    rows = [json.loads(line) for line in summary.with_suffix(".jsonl").read_text().splitlines()]
    return json.loads(summary.read_text()), rows


def test_both_orders_are_asked_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = evaluation(tmp_path / "a", [GOOD, GOOD, BAD, BAD + "!"], model="1" * 16)
    b = evaluation(tmp_path / "b", [BAD, GOOD + "!", BAD + "?", GOOD], model="2" * 16)
    with serve(fair) as server:
        assert winrate(a, b, server=server) == EXIT_DONE
        assert len(server.requests) == 8
        assert {texts(request) for request in server.requests} >= {(GOOD, BAD), (BAD, GOOD)}
        out = capsys.readouterr().out
        summary, rows = kept(a)
        assert winrate(a, b, server=server) == EXIT_DONE
        assert capsys.readouterr().out == out
        assert len(server.requests) == 8
        # The other side's answers are part of what the verdicts rest on; what has been asked is not asked again.
        evaluation(b, [BAD, GOOD + "!", BAD + "?", BAD])
        assert winrate(a, b, server=server) == EXIT_DONE
        assert len(server.requests) == 10
    assert len(list((a / "winrates").glob("*.json"))) == 2
    assert [row["score"] for row in rows] == [1.0, 0.5, 0.5, 0.0]
    assert (summary["wins"], summary["ties"], summary["losses"], summary["value"]) == (1, 2, 1, 0.5)
    assert (summary["flipped"], summary["first"], summary["missing"]) == (0.0, 0.5, {})
    assert (summary["a_model_fingerprint"], summary["b_model_fingerprint"]) == ("1" * 16, "2" * 16)
    assert f"| {NAME} |    1 |    2 |      1 |    0.500 |" in out


def test_an_answer_that_no_judge_read_says_nothing_of_its_length(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", [GOOD, GOOD, GOOD], model="1" * 16)
    b = evaluation(tmp_path / "b", [f"{BAD}, and a long one", "", ""], model="2" * 16)
    with serve(fair) as server:
        assert winrate(a, b, server=server) == EXIT_DONE
    summary, rows = kept(a)
    assert [bool(row["verdicts"]) for row in rows] == [True, False, False]
    assert (summary["wins"], summary["asked"], summary["longer"]) == (3, 1, 0.0)


def test_a_judge_with_a_position_bias_is_shown_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = evaluation(tmp_path / "a", [GOOD, BAD]), evaluation(tmp_path / "b", [BAD, GOOD])
    with serve(lambda request, before: Reply("Verdict: FIRST")) as server:
        assert winrate(a, b, server=server) == EXIT_DONE
    summary, _ = kept(a)
    assert (summary["ties"], summary["value"], summary["flipped"], summary["first"]) == (2, 0.5, 1.0, 1.0)
    assert "a share of 1.000 gets another verdict when the answers change places" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (lambda first: Reply("I like the first one." if first else "Verdict: SECOND"), "unparsed"),
        (
            lambda first: Reply("Verdict: FIRST", finish_reason="length") if first else Reply("Verdict: TIE"),
            "truncated",
        ),
        (lambda first: Reply("Verdict: TIE") if first else Reply("I can't help with that."), "refused_by_judge"),
    ],
)
def test_an_unreadable_verdict_is_missing_not_a_tie(
    reply: Callable[[bool], Reply], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = evaluation(tmp_path / "a", ["strange", GOOD])
    b = evaluation(tmp_path / "b", [BAD, BAD])

    def judge(request: Request, before: int) -> Reply:
        return reply(texts(request)[0] == "strange") if "strange" in texts(request) else fair(request, before)

    with serve(judge) as server:
        assert winrate(a, b, server=server) == EXIT_DONE
    summary, rows = kept(a)
    assert [row["score"] for row in rows] == [None, 1.0]
    assert summary["missing"] == {reason: 1}
    assert (summary["ties"], summary["value"], summary["low"], summary["high"]) == (0, 1.0, 0.5, 1.0)
    assert f"Missing: 1 {reason}; with them the win rate lies between 0.500 and 1.000." in capsys.readouterr().out


def test_an_empty_answer_loses_and_no_judge_is_asked(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", ["", GOOD, " ", "<think>I wonder", GOOD])
    b = evaluation(tmp_path / "b", [BAD, "***", "", BAD, "<think>So.</think>" + BAD])
    with serve(fair) as server:
        assert winrate(a, b, server=server) == EXIT_DONE
        assert {texts(request) for request in server.requests} == {(GOOD, BAD), (BAD, GOOD)}
    summary, rows = kept(a)
    assert [row["score"] for row in rows] == [0.0, 1.0, None, None, 1.0]
    assert summary["missing"] == {"empty": 1, "unfinished": 1}
    assert summary["asked"] == 1


def test_a_run_is_set_against_its_untuned_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", answers([BAD, BAD]), answers([GOOD, BAD + "!"]))
    with serve(fair) as server:
        assert winrate(run, server=server) == EXIT_DONE
    assert f"B: {run / 'eval' / 'base'}" in capsys.readouterr().out
    assert kept(run / "eval" / "01-sft")[0]["value"] == 0.75


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a", "b", "--judge", "refusal_rules"], "--judge: 'refusal_rules' does not compare two answers"),
        (["a", "b", "--judge", "helpfulness"], "did you mean 'helpfulness_pair'?"),
        (
            ["a", "b", "--benchmark", "gsm8k"],
            "generations/gsm8k.jsonl: no answers; evaluate with the benchmark in a list",
        ),
        (["a", "others"], "alpaca_answers: not the same requests: 2 in A, 1 in B"),
        (["a", "capped"], "alpaca_answers: not asked alike: task_hash 7777777777777777 in A, 8888888888888888 in B"),
        (["a"], "no evaluation 'base' beside it; name the folder of the other model's as B"),
        (["a", "b", "--model"], "--model: expected one argument"),
        (["a", "b", "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["a", "b", "c"], "unrecognized arguments"),
    ],
)
def test_mistakes_take_one_line(
    given: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluation(Path("a"), [GOOD, GOOD])
    evaluation(Path("b"), [BAD, BAD])
    evaluation(Path("others"), [BAD])
    evaluation(Path("capped"), [BAD, BAD], task_hash="8" * 16)
    assert winrate(*given) == EXIT_USER_ERROR
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not Path("a/winrates").exists()
