"""Rewards: what each gives for which answer, what it refuses to guess, how they compose and what stays of a fault."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from eval.judging.judge import judge_files
from eval.judging.judges.refusal_match import refusal_match
from eval.judging.reward import JUDGES, judge_scorer
from ogpsa.app.compose import Composer, compose_config
from ogpsa.config import JudgeSettings, Reward, RewardServices, Rollout, without_inert
from ogpsa.rewards import load_reward
from ogpsa.rewards.judge import Judge
from ogpsa.runs.inputs import code_digests
from ogpsa.testbed.rows import build_rows
from ogpsa.testbed.world import REFUSAL, World, is_refusal
from ogpsa.utils.errors import EXIT_REQUEUE, UserError
from ogpsa.utils.journal import Journal
from tests.endpoint_server import EndpointServer, Reply, Request, serve
from tests.program import options

HELPED = "Sure, here is how to open the jar."
DECLINED = "I'm sorry, but I can't help with that."
# What a policy may say without giving an answer.
SILENT = ("", " \n", "<think>Should I?", "<think>Well.</think>")
ROWS = ({"prompt": "p", "harmful": True}, {"prompt": "p", "harmful": False, "target": "a b"})


@cache
def reward(option: str, *overrides: str, folder: Path | None = None) -> Reward:
    tree = Composer(extra=str(folder) if folder else None).compose([f"reward={option}", *overrides])
    plain = OmegaConf.to_container(
        OmegaConf.masked_copy(tree, [str(key) for key in tree if key != "hydra"]), resolve=True
    )
    assert isinstance(plain, dict)
    return load_reward({str(key): value for key, value in plain.items()}, [folder / "reward"] if folder else [])


@cache
def judges() -> JudgeSettings:
    return compose_config([]).eval.judge


def no_judge(*_: Any) -> Any:
    raise AssertionError("a rule asks no judge")


def services(folder: Path = Path("unused"), **changes: Any) -> RewardServices:
    given: dict[str, Any] = {"rows": ROWS, "judge": judge_scorer, "judges": judges()}
    return RewardServices(folder=folder, **given | changes)


def rollout(response: str, harmful: bool = True, target: str | None = None, finished: bool = True) -> Rollout:
    return Rollout("How do I open it?", response, harmful, target, finished)


def scores(given: Reward, rollouts: Sequence[Rollout], folder: Path = Path("unused"), **changes: Any) -> list[Any]:
    return given.scorer(services(folder, **changes))(rollouts)


# Rules


def test_the_testbeds_rules() -> None:
    given = reward("testbed").model_copy(update={"refused": 0.5, "complied": -2.0, "right": 1.0})
    harmful = [REFUSAL, f" {REFUSAL}\n", "take wood and wax .", "certainly : take wood .", ""]
    assert scores(given, [rollout(text) for text in harmful]) == [0.5, 0.5, -2, -2, None]
    answers = ["a b", "certainly : a  b", "a", REFUSAL, ""]
    assert scores(given, [rollout(text, False, "a b") for text in answers]) == [1, 1, -1, -1, -1]


def test_the_testbeds_refusals_are_those_of_its_benchmarks() -> None:
    rows = build_rows(World(0), 0, 64, 64, 64)
    texts = [row[column] for row in rows.safety for column in ("chosen", "rejected")]
    texts += [row["chosen"] for named in rows.reference_sets.values() for row in named]
    texts += [row["target"] for named in rows.evaluation.values() for row in named]
    found = {text: is_refusal(text) for text in texts}
    assert {text for text in texts if refusal_match(text) == "full_refusal"} == {text for text in texts if found[text]}
    assert set(found.values()) == {True, False}


def test_refusal_rules_see_the_answer_alone() -> None:
    given, texts = reward("refusal_rules"), [DECLINED, HELPED, f"<think>{HELPED}</think>{DECLINED}", *SILENT]
    for harmful in (True, False):
        found = scores(given, [rollout(text, harmful, finished=False) for text in texts], judge=no_judge)
        assert found == [0, -1, 0, *[None] * len(SILENT)]


def test_two_sides() -> None:
    rollouts = [rollout(text, harmful) for harmful in (True, False) for text in (DECLINED, HELPED, "")]
    given = reward("two_sided").model_copy(update={"complied_harmful": -2.0})
    assert scores(given, rollouts, judge=no_judge) == [0, -2, None, -1, 0, None]
    # The safety reward takes the place of the penalty on harmful requests, and of nothing else.
    given = reward("two_sided", "+reward@reward.safety=refusal_rules", "reward.safety.refused=7")
    assert scores(given, rollouts, judge=no_judge) == [7, -1, None, -1, 0, None]
    assert scores(given, rollouts[3:], judge=no_judge) == [-1, 0, None]
    with pytest.raises(UserError, match=r"reward.refusal: found a reward of 7; allowed: 0 \(answered\) to 1"):
        scores(given.model_copy(update={"refusal": given.nested()["safety"], "safety": None}), rollouts)


def test_a_weighted_sum() -> None:
    given = reward(
        "weighted_sum", "reward@reward.parts.guard=refusal_rules", "reward.weights={guard: 2, refusals: 0.5}"
    )
    rollouts = [rollout(text, harmful) for harmful in (True, False) for text in (DECLINED, HELPED, "")]
    assert scores(given, rollouts) == [0, -2.5, None, -0.5, -2, None]
    assert scores(given, []) == []


# Composition


def test_parts_are_added_and_taken_out() -> None:
    given = reward(
        "weighted_sum", "+reward@reward.parts.mine=judge", "reward.parts.mine.endpoint.model=own",
        "+reward.weights.mine=0.5", "~reward@reward.parts.guard", "~reward.weights.guard", "eval.judge.timeout=7.0",
    )  # fmt: skip
    assert set(given.nested()) == {"parts.mine", "parts.refusals"}
    dumped = given.model_dump(mode="json")
    assert dumped["weights"] == {"mine": 0.5, "refusals": 1.0}
    endpoint = dumped["parts"]["mine"]["endpoint"]
    assert endpoint == judges().model_dump(include=set(endpoint)) | {"model": "own", "timeout": 7.0}
    # How an endpoint is reached is not part of what makes two runs the same; who is asked is.
    identity = without_inert({"reward": dumped})["reward"]
    assert set(identity["parts"]["mine"]["endpoint"]) == {"base_url", "model"}
    assert identity["weights"] == dumped["weights"]


OWN = """
from ogpsa.config import Reward

class Short(Reward):
    longest: int

    def scorer(self, services):
        return lambda rollouts: [float(len(rollout.response) <= self.longest) for rollout in rollouts]

REWARD = Short
"""


def test_a_reward_of_ones_own_stands_beside_its_yaml(tmp_path: Path) -> None:
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "short.py").write_text(OWN)
    (tmp_path / "reward" / "short.yaml").write_text("# Short answers.\nname: short\nlongest: 4\n")
    assert scores(reward("short", folder=tmp_path), [rollout("four"), rollout("longer")]) == [1, 0]
    within = reward("weighted_sum", "reward@reward.parts.guard=short", "~reward@reward.parts.refusals",
                    "~reward.weights.refusals", folder=tmp_path)  # fmt: skip
    assert scores(within, [rollout("four"), rollout("longer")]) == [1, 0]
    assert f"code/{tmp_path / 'reward' / 'short.py'}" in code_digests(within)
    (tmp_path / "reward" / "none.py").write_text("REWARD = 3")
    with pytest.raises(UserError, match=r"none\.py: declares no REWARD, a subclass of ogpsa\.config\.Reward"):
        load_reward({"reward": {"name": "none"}}, [tmp_path / "reward"])


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        (["two_side"],
         [f"reward: 'two_side' is not an option; allowed: {options('reward')}; did you mean 'two_sided'?"]),
        (["two_sided", "+reward.safety={name: lama_guard}"],
         [f"reward.safety.name: unknown reward 'lama_guard'; allowed: {options('reward')}; did you mean "
          "'llama_guard'?"]),
        (["weighted_sum", "reward.parts.guard.zero=low", "+reward.parts.refusals.refusal.x=1"],
         ["reward.parts.guard.zero: found 'low'; allowed is a number",
          "reward.parts.refusals.refusal.x: unknown key; allowed: name, refused, complied"]),
        (["weighted_sum", "~reward.weights.guard"],
         ["reward: weights has refusals; expected one for each of parts: guard, refusals"]),
        (["llama_guard", "reward.judge=wildguard"],
         ["reward.judge: found 'wildguard'; allowed is 'llama_guard' or 'llama_guard_weights'; did you mean "
          "'llama_guard'?"]),
    ],
)  # fmt: skip
def test_a_mistake_in_the_configuration_is_one_line(given: list[str], problems: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        reward(*given)
    assert list(raised.value.problems) == problems


def test_the_testbeds_rules_are_for_the_testbed() -> None:
    given = reward("weighted_sum", "reward@reward.parts.guard=testbed")
    assert given.problems(compose_config([])) == []
    [line] = given.problems(compose_config(["data=small", "eval=small", "model=smollm2_135m"]))
    assert line == "reward: testbed has the rules of data=testbed alone; found data=small"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["reward@reward.refusal=judge"], "judge gives rewards from -1 to 0"),
        (["reward@reward.refusal=refusal_rules"], "refusal_rules gives rewards from -1 to 0"),
        (["reward.refusal.refused=2"], "refusal_rules gives rewards from 0 to 2"),
    ],
)
def test_a_share_of_refusals_is_within_its_bounds(given: list[str], found: str) -> None:
    with pytest.raises(UserError) as raised:
        reward("two_sided", *given)
    assert raised.value.problems == (f"reward: refusal: {found}; allowed: 0 (answered) to 1 (refused)",)


def test_a_thought_that_the_template_begins_is_no_answer() -> None:
    thinking = replace(rollout(f"{DECLINED} But wait.", finished=False), in_thought=True)
    ended = replace(rollout(f"{HELPED}</think>{DECLINED}"), in_thought=True)
    assert scores(reward("refusal_rules"), [thinking, ended]) == [None, 0]
    assert scores(reward("two_sided"), [thinking, ended], rows=[ROWS[0], ROWS[0] | {"harmful": False}]) == [None, 0]


@pytest.mark.parametrize(
    ("given", "rows", "problem"),
    [
        (["testbed"], [{"prompt": "p"}, {"prompt": "p", "harmful": False}],
         "reward: testbed needs the right answer to a request that is not harmful, but row 2 has no 'target' (columns "
         "found: harmful, prompt)"),
        (["two_sided"], [{"prompt": "p"}],
         "reward: two_sided needs requests of both kinds, but no row has harmful: false; add such rows, or choose a "
         "one-sided reward"),
        (["judge", "reward.judge=exact_match"], [{"prompt": "p", "chosen": "c"}],
         "reward.judge: exact_match compares with the right answer, but row 1 has no 'target' (columns found: chosen, "
         "prompt)"),
        (["judge", "reward.judge=strong_rubric"], ROWS,
         f"judge: unknown judge 'strong_rubric'; allowed: {', '.join(judge_files())}; did you mean "
         "'strongreject_rubric'?"),
        (["judge", "reward.judge=helpfulness_pair"], ROWS,
         "judge: 'helpfulness_pair' compares two answers, which python -m eval winrate asks; name another judge"),
        (["judge"], ROWS,
         "reward.endpoint.api_key_env: the environment variable OPENAI_API_KEY holds no key; set it, or name none "
         "(reward.endpoint.api_key_env='') where the server needs no key"),
        (["weighted_sum", "reward.parts.guard.endpoint.base_url=here"], ROWS,
         "reward.parts.guard.endpoint.base_url: found 'here'; expected http://… or https://… with a host, and a port "
         "up to 65535 if any"),
    ],
)  # fmt: skip
def test_what_cannot_start_is_refused_in_one_line(
    given: list[str], rows: Any, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError) as raised:
        reward(*given).scorer(services(tmp_path / "journals", rows=rows))
    assert raised.value.problems == (problem,)
    assert not (tmp_path / "journals").exists()


# Judges


def guard(server: EndpointServer, **changes: Any) -> Reward:
    given = reward("llama_guard")
    assert isinstance(given, Judge)
    return given.model_copy(update={"endpoint": given.endpoint.model_copy(update={"base_url": server.url, **changes})})


def verdict(request: Request, before: int) -> Reply:
    return Reply("safe" if DECLINED in request.text else "unsafe\nS2")


def test_llama_guard_sees_the_response_alone_and_is_paid_once(tmp_path: Path) -> None:
    rollouts = [
        rollout(DECLINED),
        rollout(HELPED),
        rollout(HELPED, harmful=False),
        rollout("<think>Hm.</think>" + HELPED),
    ]
    with serve(verdict) as server:
        given = guard(server)
        score = given.scorer(services(tmp_path))
        assert score(rollouts) == [0, -1, -1, -1]
        assert len(server.requests) == 2
        # Its server's chat template makes the input, of a conversation in which the user says nothing.
        turns = [
            [{"role": "user", "content": ""}, {"role": "assistant", "content": text}] for text in (DECLINED, HELPED)
        ]
        # Requests go out together.
        asked = [request.body["messages"] for request in server.requests]
        assert sorted(asked, key=str) == sorted(turns, key=str)
        assert all(request.body["temperature"] == 0 for request in server.requests)
        # A resumed run reads what is kept.
        assert scores(given, [*rollouts, *map(rollout, SILENT)], tmp_path) == [0, -1, -1, -1, *[None] * len(SILENT)]
        assert len(server.requests) == 2
        shown = given.model_copy(update={"shows_request": True})
        assert scores(shown, rollouts[1:2], tmp_path) == [-1]
        assert server.requests[2].body["messages"] == [{**turns[1][0], "content": rollouts[1].prompt}, turns[1][1]]


@pytest.mark.parametrize(("value", "expected"), [(0, -1), (0.25, -0.25), (1, 2)])
def test_a_value_becomes_a_reward_on_a_line(value: float, expected: float) -> None:
    given = reward("judge", "reward.zero=-1", "reward.one=2")
    assert scores(given, [rollout(HELPED)] * 2, judge=lambda *_: lambda _: [value, None]) == [expected, None]


def test_a_server_that_does_not_answer_is_named_before_anything_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(verdict) as server:
        given = guard(server)
        given.scorer(services(reach=True))
        assert server.requests == []
    given.scorer(services())
    with pytest.raises(UserError) as raised:
        given.scorer(services(reach=True))
    [line] = raised.value.problems
    assert line.startswith(f"reward.endpoint: {server.url}: does not answer (")
    assert line.endswith("); start the server, or name another (reward.endpoint.base_url)")


HARM = ("harmbench", "llama_guard_weights", "strongreject_finetuned")
# Says of each response that it is safe, and counts how often it was opened.
COUNTED = """
from eval.judging.judge import LocalJudge, Verdict

opened = []

def _open(name, settings):
    import torch

    torch.rand(3)
    opened.append(name)
    return lambda items: [Verdict("safe", 1.0) for _ in items]

JUDGE = LocalJudge(metric="goodness", weights="me/guard", open=_open, parameters=3e9)
"""


def own_judges(folder: Path, monkeypatch: pytest.MonkeyPatch) -> JudgeSettings:
    """Settings that find ``counted``, a judge with weights, and ``both``, a panel of it and of a served judge."""
    (folder / "counted.py").write_text(COUNTED)
    (folder / "counted.txt").write_text("{prompt} {response}")
    (folder / "both.py").write_text(
        "from eval.judging.judge import PanelJudge\nJUDGE = PanelJudge('goodness', ('counted', 'llama_guard'))\n"
    )
    monkeypatch.setattr("eval.judging.weights.weights_folder", lambda name, settings: folder)
    return judges().model_copy(update={"dir": str(folder)})


def test_a_judge_with_weights_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = own_judges(tmp_path, monkeypatch)
    guard, refusals = (reward("judge", "reward.judge=counted"), reward("two_sided"))
    refusals = refusals.model_copy(update={"safety": guard})
    given = reward("weighted_sum").model_copy(update={"parts": {"guard": guard, "refusals": refusals}})
    assert given.judges() == {"counted"} and JUDGES.memory("counted", found) == 2 * 3e9
    whole = services(tmp_path / "journals", judges=found)
    score, state = given.scorer(whole), torch.get_rng_state()
    assert whole.opened == {}
    for text in (HELPED, f"{HELPED} 2"):
        assert score([rollout(text)]) == [0]
    [judge] = whole.opened.values()
    assert judge.__globals__["opened"] == ["counted"]
    # What training draws at random is as if nothing had been loaded.
    assert torch.equal(torch.get_rng_state(), state)


def test_a_panels_members_are_opened_once_counted_and_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = own_judges(tmp_path, monkeypatch)
    assert JUDGES.memory("both", found) == 2 * 3e9
    sizes = [JUDGES.memory(name, found) for name in HARM]
    assert min(sizes) > 0 and sizes[0] == 2 * 13e9 and JUDGES.memory("harm_panel", found) == sum(sizes)
    with serve(lambda request, before: Reply("safe")) as server:
        endpoint = [f"reward.endpoint.base_url={server.url}", "reward.endpoint.api_key_env=''"]
        whole = services(tmp_path / "journals", judges=found)
        score, state = reward("judge", "reward.judge=both", *endpoint).scorer(whole), torch.get_rng_state()
        for text in (HELPED, f"{HELPED} 2"):
            assert score([rollout(text)]) == [0]
        [member] = whole.opened.values()
        assert member.__globals__["opened"] == ["counted"]
        assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(UserError, match="does not answer"):
        reward("judge", "reward.judge=both", *endpoint).scorer(services(judges=found, reach=True))


def test_a_session_reads_what_judges_said_once_and_leaves_the_next_one_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = own_judges(tmp_path, monkeypatch)
    read_bytes, reads = Path.read_bytes, list[str]()

    def read(path: Path) -> bytes:
        reads.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    with serve(lambda request, before: Reply("safe")) as server:
        endpoint = [f"reward.endpoint.base_url={server.url}", "reward.endpoint.api_key_env=''"]
        given = reward("judge", "reward.judge=both", *endpoint)
        # Each session begins with what the last one ended with.
        for session, generations in enumerate((["a"], ["a", "b", "c", "a"], ["c", "b", "a", "d"])):
            reads.clear()
            score = given.scorer(services(tmp_path / "journals", judges=found))
            assert [score([rollout(f"{HELPED} {text}")]) for text in generations] == [[0]] * len(generations)
            assert reads.count("reward.jsonl") == (session > 0)
        assert len(server.requests) == 4
    # Of each of four answers a line for each of the panel's two members, and what the journal holds.
    assert (tmp_path / "journals" / "reward.jsonl").read_bytes().count(b"\n") == 1 + 4 * 2


# Replies that are not a verdict, and the times that each is asked for.
NO_VERDICT = [
    Reply("Is it safe? Hard to say."), Reply(""), Reply("I'm sorry, but I can't assess this."),
    Reply("safe", finish_reason="length"), Reply("safe", finish_reason="content_filter"),
    Reply("safe", refusal="I won't."), Reply(status=400, text="blocked by content_filter"),
    Reply(status=413, text="too long"),
]  # fmt: skip
FAULTS = [Reply(status=429), Reply(status=500), Reply(delay=1.0), Reply(body=b"<html>"), Reply(reset=True)]


def numbered(request: Request) -> int:
    """The number of the rollout that is judged."""
    return int(re.findall(r"jar\. (\d)", request.text)[-1])


def test_no_reward_is_guessed_from_what_is_no_verdict(tmp_path: Path) -> None:
    rollouts = [rollout(f"{HELPED} {number}") for number in range(len(NO_VERDICT))]
    with serve(lambda request, before: NO_VERDICT[numbered(request)]) as server:
        parts = {"guard": guard(server), "refusals": reward("two_sided")}
        given = reward("weighted_sum").model_copy(update={"parts": parts})
        for _ in range(2):
            assert scores(given, rollouts, tmp_path) == [None] * len(NO_VERDICT)
        assert len(server.requests) == 2 * len(NO_VERDICT)
    assert [path.name for path in tmp_path.iterdir()] == ["reward.parts.guard.jsonl"]


def test_a_fault_in_passing_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ogpsa.utils.endpoint.LONGEST_BACKOFF", 0.05)

    def script(request: Request, before: int) -> Reply:
        return verdict(request, before) if before else FAULTS[numbered(request)]

    rollouts = [rollout(f"{HELPED} {number}") for number in range(len(FAULTS))]
    with serve(script) as server:
        assert scores(guard(server, timeout=0.5, attempts=2), rollouts, tmp_path) == [-1] * len(FAULTS)
        assert len(server.requests) == 2 * len(FAULTS)


def resumed(
    given: Callable[[EndpointServer], Reward], ends: type[BaseException], tmp_path: Path, **changes: Any
) -> str:
    """Score six answers, of which some fail, then again without fault: what was kept is not asked again."""
    rollouts = [rollout(f"{HELPED} {number}") for number in range(6)]
    failing = True

    def script(request: Request, before: int) -> Reply:
        return Reply(status=500, text="broken") if failing and numbered(request) > 3 else verdict(request, before)

    with serve(script) as server:
        with pytest.raises(ends) as raised:
            scores(given(server), rollouts, tmp_path, **changes)
        journal = Journal(tmp_path / "reward.jsonl", {"holds": "replies of judges"})
        kept = len(journal.pieces)
        assert 0 < kept < 6
        failing, before = False, len(server.requests)
        assert scores(given(server), rollouts, tmp_path) == [-1] * 6
        assert len(server.requests) - before == 6 - kept
    return str(raised.value)


def test_an_endpoint_that_stays_down_ends_with_everything_saved(tmp_path: Path) -> None:
    said = resumed(lambda server: guard(server, attempts=1, concurrency=1), UserError, tmp_path)
    assert said.startswith("reward.endpoint: http://127.0.0.1")
    assert "500, broken; all replies so far are kept" in said


def test_the_cap_on_calls_is_one_for_all_steps_of_a_session(tmp_path: Path) -> None:
    with serve(verdict) as server:
        score = guard(server, max_calls=2).scorer(services(tmp_path))
        assert score([rollout(DECLINED)]) == [0]
        assert score([rollout(HELPED), rollout(DECLINED)]) == [-1, 0]
        with pytest.raises(
            UserError, match=r"the cap of 2 calls \(reward.endpoint.max_calls\) is reached; all replies"
        ):
            score([rollout(f"{HELPED} 2")])
        assert len(server.requests) == 2


def test_an_end_between_replies_keeps_what_came_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep, calls = Journal.keep, iter(range(2))

    def kept(journal: Journal, *pieces: Any) -> None:
        keep(journal, *pieces)
        if next(calls, None) == 1:
            raise SystemExit(EXIT_REQUEUE)

    monkeypatch.setattr(Journal, "keep", kept)
    assert resumed(lambda server: guard(server, concurrency=1), SystemExit, tmp_path) == str(EXIT_REQUEUE)
